"""The compacted bitmap: against the raw one, against a second decoder written from the layout, and against hostile bytes."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagefire.protocol.bitmap_compacted import decode_compacted, encode_compacted
from pagefire.protocol.bitmap_raw import decode_raw, encode_raw, information_limit_bytes, raw_bytes
from pagefire.protocol.errors import LocalProtocolError, RemoteProtocolError
from pagefire.protocol.pages import PageSet
from tests.support.second_decoder import HEADER_BYTES, second_opinion

SIX_TIB = 6 << 28

counts = st.integers(0, 3) | st.integers(0, 300) | st.integers(0, 1 << 20) | st.integers(0, 1 << 34)


@st.composite
def sets(draw: st.DrawFn) -> tuple[PageSet, int]:
    """Runs and gaps of every scale, mixed, in a guest that ends at the last run or any distance behind it."""
    steps = np.cumsum([1 + step for step in draw(st.lists(counts, max_size=60))], dtype=np.int64) - 1
    pages = PageSet(steps[: steps.size & ~1 : 2], steps[1::2])
    return pages, (int(pages.stops[-1]) if pages else 0) + draw(counts)


def scattered(seed: int, pages: int, total_pages: int) -> PageSet:
    return PageSet.of_pages(np.random.default_rng(seed).integers(0, total_pages, pages))


def clustered(seed: int, clusters: int) -> PageSet:
    """64 pages in each of some granules of a large guest."""
    rng = np.random.default_rng(seed)
    granules = rng.integers(0, SIX_TIB // 512, clusters)
    return PageSet.of_pages((granules[:, None] * 512 + rng.integers(0, 512, (clusters, 64))).ravel())


LARGE = {
    "scattered": (scattered(1, 20_000, SIX_TIB), SIX_TIB),
    "clustered": (clustered(2, 300), SIX_TIB),
    "dense": (scattered(3, 60_000, 200_000), 200_000),
    "almost all": (PageSet.span(0, 400_000) - scattered(4, 4_000, 400_000), 400_000),
    "dense beside scattered": (scattered(5, 9_000, 20_000) | scattered(6, 9_000, SIX_TIB), SIX_TIB),
    "every second": (PageSet.of_pages(np.arange(7, 60_000, 2)), SIX_TIB),
    "granules": (scattered(7, 3_000, SIX_TIB).rounded(512, SIX_TIB), SIX_TIB),
    "one run": (PageSet.span(12_345, 1 << 30), SIX_TIB),
    "beyond 16 TiB": (scattered(8, 3_000, 1 << 50), 1 << 50),
    "two ends": (PageSet.of_pages([0, (1 << 61) - 1]), 1 << 61),
}
large = pytest.mark.parametrize("name", LARGE)


def check(pages: PageSet, total_pages: int) -> bytes:
    coded = encode_compacted(pages, total_pages)
    assert decode_compacted(coded, total_pages) == pages
    assert len(coded) <= raw_bytes(total_pages) + HEADER_BYTES
    return coded


@example((PageSet.of_pages([1, (1 << 32) - 1]), 1 << 32))
@example((PageSet.of_pages([0, (1 << 32) + 1]), (1 << 32) + 2))
@given(sets())
def test_round_trip(case: tuple[PageSet, int]) -> None:
    pages, total_pages = case
    coded = check(pages, total_pages)
    if coded[1] == 0:
        assert second_opinion(coded) == list(zip(pages.starts.tolist(), pages.stops.tolist(), strict=True))


@large
def test_round_trip_of_large_sets(name: str) -> None:
    pages, total_pages = LARGE[name]
    coded = check(pages, total_pages)
    if coded[1] == 0:
        assert second_opinion(coded) == list(zip(pages.starts.tolist(), pages.stops.tolist(), strict=True))


@given(st.integers(0, 2000), st.integers(1, 20_000), st.integers(0, 2**32))
def test_raw_and_compacted_hold_the_same_set(pages: int, total_pages: int, seed: int) -> None:
    chosen = scattered(seed, pages, total_pages)
    compacted = decode_compacted(memoryview(encode_compacted(chosen, total_pages)), total_pages)
    assert compacted == decode_raw(encode_raw(chosen, total_pages), total_pages) == chosen


@pytest.mark.parametrize(
    ("pages", "total_pages", "coded"),
    [
        (PageSet.empty(), 0, "01 01 00 00 00 00 00 00 00 00"),
        (PageSet.empty(), 1000, "01 00 e8 03 00 00 00 00 00 00 00"),
        (PageSet.of_pages([1, 2, 5]), 8, "01 01 08 00 00 00 00 00 00 00 26"),
        # Gaps 5, 1: one level of 3 bits; lengths 1, 0: one level of 1 bit.
        (PageSet.of_pages([5, 6, 9]), 1000, "01 00 e8 03 00 00 00 00 00 00 02 03 0d 01 01"),
        # 30 bits: three planes of bytes and 6 bits.
        (PageSet.span(1000, 1 << 30), SIX_TIB, "01 00 00 00 00 60 00 00 00 00 01 0a e8 03 1e 17 fc ff 3f"),
        # Two numbers are few: one level, as wide as the larger.
        (
            PageSet.of_pages([0, (1 << 40) - 1]),
            1 << 40,
            "01 00 00 00 00 00 00 01 00 00 02 28 00 fd 00 ff 00 ff 00 ff 00 ff 00",
        ),
        # A pattern spends a bit a gap and a bit a length.
        (PageSet.of_pages(range(0, 32, 2)), SIX_TIB, "01 00 00 00 00 60 00 00 00 00 10 40 00 00 40 00 00"),
    ],
)
def test_golden_bytes(pages: PageSet, total_pages: int, coded: str) -> None:
    assert encode_compacted(pages, total_pages).hex(" ") == coded
    assert decode_compacted(bytes.fromhex(coded), total_pages) == pages


def test_sizes() -> None:
    few, many = scattered(1, 1_000, SIX_TIB), scattered(1, 200_000, SIX_TIB)
    assert len(check(few, SIX_TIB)) < 1.02 * information_limit_bytes(few.pages, SIX_TIB)
    assert len(check(many, SIX_TIB)) < 1.02 * information_limit_bytes(many.pages, SIX_TIB)
    assert len(check(PageSet.span(0, SIX_TIB), SIX_TIB)) < 20
    assert len(check(PageSet.empty(), SIX_TIB)) < 20
    # Clusters: which granules, and which of their pages.
    hot = clustered(2, 3_000)
    limit = 3_000 * information_limit_bytes(64, 512) + information_limit_bytes(3_000, SIX_TIB // 512)
    assert len(check(hot, SIX_TIB)) < 1.1 * limit


def test_a_page_beyond_the_guest_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="page 8 is beyond the guest's 8"):
        encode_compacted(PageSet.span(3, 9), 8)


def survive(coded: bytes, total_pages: int) -> PageSet | None:
    """Decode hostile bytes; whatever comes out is valid and can be coded again."""
    try:
        pages = decode_compacted(coded, total_pages)
    except RemoteProtocolError:
        return None
    assert not pages or pages.stops[-1] <= total_pages
    assert len(pages) <= 4 * len(coded)
    check(pages, total_pages)
    return pages


def head(total_pages: int, form: int = 0) -> bytes:
    return bytes((1, form)) + total_pages.to_bytes(8, "little")


@given(st.binary(max_size=60), st.sampled_from([1000, SIX_TIB, 1 << 61]), st.integers(0, 1))
@example(b"\2\0\0\0\0", SIX_TIB, 0)
def test_random_bytes(body: bytes, total_pages: int, form: int) -> None:
    survive(body, total_pages)
    survive(head(total_pages, form) + body, total_pages)


@given(sets(), st.data())
def test_no_prefix_and_no_extension_is_a_bitmap(case: tuple[PageSet, int], data: st.DataObject) -> None:
    pages, total_pages = case
    coded = encode_compacted(pages, total_pages)
    assert survive(coded[: data.draw(st.integers(0, len(coded) - 1))], total_pages) is None
    assert survive(coded + data.draw(st.binary(min_size=1, max_size=9)), total_pages) is None


@given(sets(), st.data())
def test_flipped_bits(case: tuple[PageSet, int], data: st.DataObject) -> None:
    pages, total_pages = case
    coded = bytearray(encode_compacted(pages, total_pages))
    for bit in data.draw(st.sets(st.integers(0, len(coded) * 8 - 1), min_size=1, max_size=4)):
        coded[bit // 8] ^= 1 << bit % 8
    survive(bytes(coded), total_pages)


@large
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_flipped_and_cut_large_sets(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pages, total_pages = LARGE[name]
    coded = bytearray(encode_compacted(pages, total_pages))
    at = int(rng.integers(HEADER_BYTES, min(len(coded), 40) if rng.random() < 0.5 else len(coded)))
    coded[at] ^= 1 << int(rng.integers(8))
    survive(bytes(coded), total_pages)
    del coded[at : at + int(rng.integers(1, 9))]
    survive(bytes(coded), total_pages)


OVERFLOW = b"\x3d" + b"\xff" * 61  # a last level of eight 61-bit numbers: 2**64 - 8 in all, and the runs hold more
NESTED = b"\4\x80\x40" + b"\4\x80\x30" + b"\4\x80\x20" + bytes(90)  # a set in a set in a set
WIDE = b"\x17" + b"\xff" * 2 + b"\x7f"  # a last level of one 23-bit number, 2**23 - 1


@pytest.mark.parametrize(
    ("coded", "total_pages", "why"),
    [
        pytest.param(b"", 9, "ends 1 bytes early", id="nothing"),
        pytest.param(b"\2" + head(9)[1:] + b"\0", 9, "version is 2", id="version"),
        pytest.param(head(9, 2), 9, "form 2 is unknown", id="form"),
        pytest.param(head(10) + b"\0", 9, "for a guest of 10 pages, this one has 9", id="another guest"),
        pytest.param(head(9) + bytes(3), 9, "3 bytes are more than 9 pages need", id="longer than raw"),
        pytest.param(head(9, 1) + b"\0\2", 9, "past the guest's 9 pages", id="raw bits"),
        pytest.param(head(9, 1) + b"\0", 9, "1 bytes of raw bits arrived", id="raw length"),
        pytest.param(head(999) + b"\0\0", 999, "1 bytes trail", id="trailing"),
        pytest.param(head(SIX_TIB) + b"\xff" * 9, SIX_TIB, "longer than 63 bits", id="number"),
        pytest.param(head(SIX_TIB) + b"\x90\x4e\0\0", SIX_TIB, "10000 runs do not fit", id="runs for the bytes"),
        pytest.param(
            head(1 << 61) + b"\x08" + OVERFLOW + b"\0", 1 << 61, "runs end beyond", id="a sum that wraps around"
        ),
        pytest.param(head(9999) + NESTED, 9999, "kind 2 cannot stand at depth 2", id="depth"),
        pytest.param(head(1 << 24) + b"\1\x19", 1 << 24, "25 bits are too wide", id="width"),
        pytest.param(head(1 << 24) + b"\1\0\xc0", 1 << 24, "kind 3", id="kind"),
        pytest.param(head(1 << 23) + b"\1" + WIDE + b"\0", 1 << 23, None, id="the last page is fine"),
        pytest.param(head(1 << 23) + b"\1" + WIDE + b"\1\1", 1 << 23, "runs end beyond 8388608", id="too far"),
        pytest.param(
            head(1 << 23) + b"\1\x41\0\1" + WIDE + b"\0", 1 << 23, "gap or length in it reaches", id="too large"
        ),
        pytest.param(head(999) + b"\1\1\2\0", 999, "unused bits", id="unused bits of fields"),
        pytest.param(head(999) + b"\1\x40\2\0", 999, "unused bits", id="unused bits of a plane"),
        pytest.param(head(999) + b"\1" + b"\x40\1" * 12 + b"\0", 999, "escape from level 12", id="levels"),
    ],
)
def test_refusals_name_what_is_wrong(coded: bytes, total_pages: int, why: str | None) -> None:
    if why is None:
        assert survive(coded, total_pages) == PageSet.span(total_pages - 1, total_pages)
    else:
        with pytest.raises(RemoteProtocolError, match=why):
            decode_compacted(coded, total_pages)


def varint(number: int) -> bytes:
    return bytes((number,)) if number < 128 else bytes((number & 127 | 128,)) + varint(number >> 7)


def all_flags(size: int) -> bytes:
    """A level of width 0 from which all escape, in some ten bytes."""
    width = (size - 1).bit_length()
    length = (size - 1).to_bytes(8, "little")[: -(-width // 8)]
    nested = b"\1\0" + bytes((width,)) + length
    return b"\x80" + varint(len(nested)) + nested


def bomb(size_bytes: int, depth: int) -> bytes:
    """A set of as many runs as so many bytes allow, on as many levels as may be, with half of it again in its last plane."""
    if depth == 2:
        # No sets inside: a level costs a bit a number, so there are fewer numbers.
        runs = size_bytes // 2
        return varint(runs) + (b"\x40" + b"\xff" * (runs // 8)) * 11 + b"\0\0"
    runs = 4 * size_bytes
    inner = bomb(size_bytes * 31 // 64, depth + 1)
    levels = all_flags(runs) * 11 + b"\0" + all_flags(runs) * 10 + b"\x80" + varint(len(inner)) + inner
    return varint(runs) + levels + bytes(max(0, size_bytes - len(levels)))


@pytest.mark.parametrize(
    ("body", "total_pages"),
    [
        pytest.param(varint(10_000_000) + bytes(8), SIX_TIB, id="a count"),
        pytest.param(b"\1\x9e\0" + b"\x3f" * 4 + bytes(8), SIX_TIB, id="a length"),
        pytest.param(varint(1 << 18) + (b"\x40" + bytes(1 << 15)) * 2, SIX_TIB, id="two bits a run"),
        pytest.param(bomb(1 << 16, 0), SIX_TIB, id="levels in levels"),
        pytest.param(bomb(1 << 16, 0), 1 << 61, id="levels in levels of a vast guest"),
        pytest.param(bomb(1 << 16, 1), 1 << 61, id="levels"),
    ],
)
def test_allocation_stays_within_what_is_stated(body: bytes, total_pages: int) -> None:
    coded = head(total_pages) + body
    with suppress(RemoteProtocolError):
        assert len(decode_compacted(coded, total_pages)) <= 4 * len(coded)
    assert peak_bytes(coded, total_pages) <= 1024 * len(coded) + (64 << 10)


def peak_bytes(coded: bytes, total_pages: int) -> int:
    """Decode hostile bytes, whether they are refused or not; gives the most memory that was taken at a time."""
    tracemalloc.start()
    try:
        with suppress(RemoteProtocolError):
            decode_compacted(coded, total_pages)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SMALL_GUEST = 1 << 14  # 64 MiB
#: 1 KiB for each byte that may come, which is one for eight pages, and the fixed part: 3% of what the guest's own pages take.
WARRANTED_BYTES = 1024 * (raw_bytes(SMALL_GUEST) + HEADER_BYTES) + (64 << 10)


def hostile(seed: int) -> bytes:
    """As many bytes as a small guest's bitmap may have: noise, noise after a plausible head, or a true bitmap with noise in it."""
    rng = np.random.default_rng(seed)
    noise = rng.bytes(raw_bytes(SMALL_GUEST))
    if seed % 3 == 0:
        return head(SMALL_GUEST, seed % 2) + noise
    if seed % 3 == 1:
        levels = b"".join(bytes((int(rng.integers(3)) << 6 | int(rng.integers(16)),)) for _ in range(4))
        return (head(SMALL_GUEST) + varint(int(rng.integers(1, 8192))) + levels + noise)[: len(noise) + HEADER_BYTES]
    coded = bytearray(encode_compacted(scattered(seed, int(rng.integers(1, 9000)), SMALL_GUEST), SMALL_GUEST))
    at = int(rng.integers(HEADER_BYTES, len(coded)))
    coded[at : at + 4] = noise[: len(coded[at : at + 4])]
    return bytes(coded)


@pytest.mark.parametrize("seed", range(60))
def test_noise_takes_no_more_memory_than_the_guests_pages_warrant(seed: int) -> None:
    assert peak_bytes(hostile(seed), SMALL_GUEST) <= WARRANTED_BYTES <= SMALL_GUEST * 4096 // 30


def test_a_bitmap_made_to_take_memory_takes_no_more_than_the_guests_pages_warrant() -> None:
    body = bomb(raw_bytes(SMALL_GUEST) - 8, 0)
    assert raw_bytes(SMALL_GUEST) - 8 <= len(body) <= raw_bytes(SMALL_GUEST)
    # It is what it claims to be: worse than noise.
    assert peak_bytes(hostile(0), SMALL_GUEST) < peak_bytes(head(SMALL_GUEST) + body, SMALL_GUEST) // 2
    assert peak_bytes(head(SMALL_GUEST) + body, SMALL_GUEST) <= WARRANTED_BYTES


@pytest.mark.parametrize("form", [0, 1])
def test_bytes_beyond_the_guests_raw_bitmap_are_refused_unread(form: int) -> None:
    coded = head(SMALL_GUEST, form) + varint(1 << 20) + bytes(4 << 20)
    with pytest.raises(RemoteProtocolError, match="more than 16384 pages need"):
        decode_compacted(coded, SMALL_GUEST)
    assert peak_bytes(coded, SMALL_GUEST) < 16 << 10
