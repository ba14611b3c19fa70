"""The classical dirty bitmap, one bit a page, and the information limit: what every other form is compared with.

Layout: ceil(total_pages / 8) bytes and nothing else; page p is bit p mod 8 (1 << p mod 8) of byte p div 8, and the bits past the
last page are zero. It costs 32 KiB per GiB whatever it holds, 192 MiB at 6 TiB, and both directions walk all of it: never in the
stun. `bitmap_compacted` falls back to this form where its own would be longer.
"""

from __future__ import annotations

from math import lgamma, log

import numpy as np
import numpy.typing as npt

from pagefire.protocol.errors import LocalProtocolError, RemoteProtocolError
from pagefire.protocol.pages import Int64s, PageSet

#: Bytes that the decoder searches at a time: its temporaries stay in the cache instead of growing with the guest.
_WINDOW_BYTES = 1 << 20

Buffer = bytes | bytearray | memoryview


def encode_raw(pages: PageSet, total_pages: int) -> bytes:
    """Code `pages` of a guest of `total_pages` as one bit a page; raises LocalProtocolError for a page beyond the guest."""
    require_within(pages, total_pages)
    coded = np.zeros(raw_bytes(total_pages) + 1, np.uint8)
    first, last = pages.starts >> 3, pages.stops >> 3
    low, high = (pages.starts & 7).astype(np.uint8), (pages.stops & 7).astype(np.uint8)
    # Whole bytes are painted by a sum over +1 and -1. Runs lie apart, so the spans of whole bytes neither touch nor overlap.
    whole_first = (pages.starts + 7) >> 3
    whole = whole_first < last
    if whole.any():
        coded[whole_first[whole]] = 1
        coded[last[whole]] = 255
        np.cumsum(coded, dtype=np.uint8, out=coded)
        np.negative(coded, out=coded)
    # The bytes at the edges may be shared by several runs, whose bits differ.
    one = np.uint8(1)
    from_low, below_high = np.uint8(255) << low, (one << high) - one
    inside = first == last
    np.bitwise_or.at(coded, first[inside], (from_low & below_high)[inside])
    np.bitwise_or.at(coded, first[~inside], from_low[~inside])
    np.bitwise_or.at(coded, last[~inside], below_high[~inside])
    return coded[:-1].tobytes()


def decode_raw(buf: Buffer, total_pages: int) -> PageSet:
    """Return the set that `encode_raw` coded; the result keeps nothing of `buf`.

    Raises RemoteProtocolError for a wrong length or a bit past the last page. Allocates at most 512 bytes for each of `buf`
    (every second bit set, the worst case: four runs a byte) and 64 KiB.
    """
    if len(buf) != raw_bytes(total_pages):
        raise bitmap_refused(f"{len(buf)} bytes of raw bits arrived, {total_pages} pages need {raw_bytes(total_pages)}")
    if total_pages % 8 and buf[-1] >> total_pages % 8:
        raise bitmap_refused(f"a bit past the guest's {total_pages} pages is set")
    coded = np.frombuffer(buf, np.uint8)
    edges: list[Int64s] = []
    before = 0
    for at in range(0, coded.size, _WINDOW_BYTES):
        window = coded[at : at + _WINDOW_BYTES]
        edges.append(_edges(window, before) + at * 8)
        before = int(window[-1]) >> 7
    if before:
        edges.append(np.array([coded.size * 8], np.int64))
    bounds = np.concatenate(edges) if edges else np.zeros(0, np.int64)
    return PageSet(bounds[0::2], bounds[1::2])


def raw_bytes(total_pages: int) -> int:
    """Count the bytes that `encode_raw` fills."""
    return -(-total_pages // 8)


def information_limit_bytes(pages: int, total_pages: int) -> float:
    """Return log2(binomial(total_pages, pages)) / 8: no code can be shorter on average for a uniformly random set of that size."""
    nats = lgamma(total_pages + 1) - lgamma(pages + 1) - lgamma(total_pages - pages + 1)
    return max(0.0, nats / log(2) / 8)


def require_within(pages: PageSet, total_pages: int) -> None:
    """Raise LocalProtocolError if `pages` holds a page that a guest of `total_pages` does not have."""
    if pages and pages.stops[-1] > total_pages:
        raise LocalProtocolError(
            "cannot encode the bitmap", f"page {pages.stops[-1] - 1} is beyond the guest's {total_pages}"
        )


def bitmap_refused(why: str) -> RemoteProtocolError:
    """Name what is wrong with a bitmap that arrived; the caller raises it."""
    return RemoteProtocolError(
        "the peer's bitmap was refused", why, "check that both ends run the same pagefire, then try again"
    )


def _edges(window: npt.NDArray[np.uint8], before: int) -> Int64s:
    """List the bits that differ from the bit before them, `before` being the one before the window."""
    padded = np.zeros(-(-window.size // 8) * 8, np.uint8)
    padded[: window.size] = window
    if window[-1] >> 7:
        padded[window.size :] = 255  # else the padding would end a run that goes on
    words = padded.view("<u8")
    turns = words ^ (words << np.uint64(1))
    turns[1:] ^= words[:-1] >> np.uint64(63)
    turns[0] ^= np.uint64(before)
    busy = np.flatnonzero(turns)
    bits = np.flatnonzero(np.unpackbits(turns[busy].view(np.uint8), bitorder="little"))
    edges: Int64s = busy[bits >> 6] * 64 + (bits & 63)
    return edges
