"""The raw bitmap, bit by bit, and the information limit against exact integers."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.bitmap_raw import decode_raw, encode_raw, information_limit_bytes, raw_bytes
from pagefire.protocol.errors import LocalProtocolError, RemoteProtocolError
from pagefire.protocol.pages import PageSet


@st.composite
def small_sets(draw: st.DrawFn) -> tuple[PageSet, int]:
    """A few hundred pages, so that runs begin, end and cross bytes and words in every way."""
    total_pages = draw(st.integers(0, 400))
    bounds = sorted(draw(st.sets(st.integers(0, total_pages), max_size=40)))
    return PageSet.of_runs(bounds[0:-1:2], bounds[1::2]), total_pages


@given(small_sets())
def test_every_bit_is_where_the_layout_says(case: tuple[PageSet, int]) -> None:
    pages, total_pages = case
    as_integer = sum(1 << page for page in pages.page_numbers().tolist())
    assert encode_raw(pages, total_pages) == as_integer.to_bytes(raw_bytes(total_pages), "little")


@given(small_sets())
def test_round_trip(case: tuple[PageSet, int]) -> None:
    pages, total_pages = case
    assert decode_raw(encode_raw(pages, total_pages), total_pages) == pages


@pytest.mark.parametrize("at", [0, (8 << 20) - 1, (8 << 20) - 70, 8 << 20, (16 << 20) - 8])
def test_runs_cross_the_windows_of_the_decoder(at: int) -> None:
    total_pages = (16 << 20) + 5
    pages = PageSet.of_runs([at, at + 75, 9], [at + 70, total_pages - 3, 20]) & PageSet.span(0, total_pages)
    assert decode_raw(encode_raw(pages, total_pages), total_pages) == pages
    assert (
        decode_raw(bytearray(encode_raw(PageSet.span(0, total_pages), total_pages)), total_pages).pages == total_pages
    )


@given(st.binary(max_size=40), st.integers(0, 300))
def test_any_bytes_are_refused_or_are_the_one_encoding(coded: bytes, total_pages: int) -> None:
    as_integer = int.from_bytes(coded, "little")
    if len(coded) == raw_bytes(total_pages) and as_integer < 1 << total_pages:
        assert encode_raw(decode_raw(coded, total_pages), total_pages) == coded
    else:
        with pytest.raises(RemoteProtocolError):
            decode_raw(coded, total_pages)


@pytest.mark.parametrize(
    ("coded", "why"), [(b"\0", "1 bytes"), (b"\0\0\0", "3 bytes"), (b"\0\x02", "past the guest's 9 pages")]
)
def test_refusals_name_what_is_wrong(coded: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode_raw(coded, 9)


def test_a_page_beyond_the_guest_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="page 8 is beyond the guest's 8"):
        encode_raw(PageSet.span(3, 9), 8)


@pytest.mark.parametrize("pattern", [0x00, 0x55, 0xFF])
def test_allocation_stays_within_what_is_stated(pattern: int) -> None:
    coded = bytes([pattern]) * (1 << 16)
    tracemalloc.start()
    decode_raw(coded, 8 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 512 * len(coded) + (64 << 10)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_information_limit(pages: int, others: int) -> None:
    exact = math.log2(math.comb(pages + others, pages)) / 8
    assert information_limit_bytes(pages, pages + others) == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_information_limit_of_six_tebibytes() -> None:
    assert 360_000 < information_limit_bytes(200_000, 6 << 28) < 361_000
