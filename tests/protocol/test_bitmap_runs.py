"""The bitmap form for few runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.bitmap import decode_bitmap, encode_bitmap
from pagefire.protocol.errors import LocalProtocolError, RemoteProtocolError
from pagefire.protocol.pages import PageSet

guests = st.sampled_from([1, 9, 1 << 20, 1 << 32, (1 << 32) + 1, 1 << 52])


@given(guests, st.data())
def test_there_and_back(total_pages: int, data: st.DataObject) -> None:
    pages = PageSet.of_pages(sorted(data.draw(st.sets(st.integers(0, total_pages - 1), max_size=50))))
    coded = encode_bitmap("runs", pages, total_pages)
    assert decode_bitmap("runs", coded, total_pages) == pages
    assert len(coded) == len(pages) * (8 if total_pages <= 1 << 32 else 16)


@given(guests, st.binary(max_size=80))
def test_any_bytes_are_a_set_within_the_guest_or_refused(total_pages: int, coded: bytes) -> None:
    try:
        pages = decode_bitmap("runs", coded, total_pages)
    except RemoteProtocolError:
        return
    assert pages == PageSet(pages.starts, pages.stops)
    assert not pages or pages.stops[-1] <= total_pages
    assert encode_bitmap("runs", pages, total_pages) == coded


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((5, 3, 1, 1), id="out of order"),
        pytest.param((3, 4, 1, 1), id="touching"),
        pytest.param((3, 8, 0, 1), id="empty"),
        pytest.param((3, 99, 1, 2), id="beyond the guest"),
        pytest.param((3, 1, 1), id="no whole number of runs"),
    ],
)
def test_what_is_refused(words: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_bitmap("runs", b"".join(word.to_bytes(4, "little") for word in words), 100)


def test_a_page_beyond_the_guest_is_not_coded() -> None:
    with pytest.raises(LocalProtocolError):
        encode_bitmap("runs", PageSet.span(9, 11), 10)
