"""Target: a bitmap of any form is refused, or names pages of the guest that are coded again as the same set."""

from __future__ import annotations

import numpy as np

from pagefire.protocol.bitmap import FORMS, decode_bitmap, encode_bitmap
from pagefire.protocol.bitmap_raw import raw_bytes
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.pages import PageSet
from tests.fuzz.choices import Choices, damage
from tests.fuzz.limits import BITMAP_FACTOR, FIXED_BYTES, MemoryWithin
from tests.support.second_decoder import HEADER_BYTES, second_opinion

#: Pages of guests: none, some, where numbers need more bits than 32, 6 TiB, the vast.
_GUESTS = (0, 1, 8, 1000, 1 << 14, 6 << 28, (1 << 32) + 1, 1 << 52, 1 << 61)
#: The largest guest whose raw bitmap is made here.
_RAW_PAGES = 1 << 14
#: Runs up to which the second decoder, which reads number by number, is asked as well.
_FEW_RUNS = 64


def one_input(given: bytes) -> None:
    choices = Choices(given)
    form = choices.one_of((*FORMS, "roaring"))
    total_pages, coded = bitmap(choices, form)
    with MemoryWithin(BITMAP_FACTOR * len(coded) + FIXED_BYTES):
        try:
            pages = decode_bitmap(form, coded, total_pages)
        except RemoteProtocolError:
            return
    assert not pages or pages.stops[-1] <= total_pages
    assert len(pages) <= 4 * len(coded), "a run takes 16 bytes: so many are not warranted by these"
    if total_pages <= _RAW_PAGES or form == "compacted":
        assert decode_bitmap(form, encode_bitmap(form, pages, total_pages), total_pages) == pages
    if form == "compacted" and coded[1] == 0 and len(pages) <= _FEW_RUNS:
        assert second_opinion(coded) == list(zip(pages.starts.tolist(), pages.stops.tolist(), strict=True))


def bitmap(choices: Choices, form: str) -> tuple[int, bytes]:
    """Make a guest's number of pages and what could come as its bitmap: a true one, a damaged one, bytes behind a true head."""
    total_pages = choices.one_of(_GUESTS)
    match choices.below(4):
        case 0:
            coded = choices.rest()
            # Else no raw bits would fit a guest but by chance.
            return (len(coded) * 8 - choices.below(8) if form == "raw" else total_pages), coded
        case 1:
            return total_pages, encode_bitmap("compacted", PageSet.empty(), total_pages)[:HEADER_BYTES] + choices.rest()
        case _:
            if form != "compacted":
                total_pages = min(total_pages, _RAW_PAGES)
            coded = encode_bitmap(form if form in FORMS else "raw", page_set(choices, total_pages), total_pages)
            for _ in range(choices.below(3)):
                coded = damage(choices, coded)
            return total_pages, coded


def page_set(choices: Choices, total_pages: int) -> PageSet:
    """Make a set within the guest: a few runs of any scale, or many at random distances around one scale."""
    if not total_pages:
        return PageSet.empty()
    if choices.below(2):
        steps = [1 + (choices.number() >> 3) for _ in range(2 * choices.below(24))]
    else:
        rng = np.random.default_rng(choices.below(256))
        scale = 1 + choices.number() % 64
        steps = (1 + rng.geometric(1 / scale, 2 * (1 + choices.number() % 1024))).tolist()
    # Cut where the guest ends; in integers of any size, since such steps add up to more than 64 bits.
    edges, at = list[int](), -1
    for step in steps:
        at += step
        if at >= total_pages:
            break
        edges.append(at)
    return PageSet(edges[: len(edges) & ~1 : 2], edges[1::2])


def seeds() -> list[bytes]:
    """Sets of every kind in guests of every size, and the known bombs: levels in levels, a count without its numbers."""
    true = [
        bytes((form, guest, 2, kind, *parameters, 0))
        for form in range(len(FORMS))
        for guest in range(len(_GUESTS))
        for kind, parameters in (
            (0, (1, 6, 9, 12, 255, 15)),
            (0, (2, 6, 40, 8, 3, 1)),
            (1, (4, 9, 1, 3, 7, 33, 9, 5, 1)),
        )
    ]
    full = [
        bytes((FORMS.index("raw"), 4, 0)) + bytes((pattern,)) * raw_bytes(_RAW_PAGES) for pattern in (0, 0x55, 0xFF)
    ]
    nested = [
        bytes((FORMS.index("compacted"), 8, 1)) + start * 40
        for start in (b"\x80\x05\x01\x00\x03\x07", b"\x40\xff", b"\xff")
    ]
    return true + full + nested
