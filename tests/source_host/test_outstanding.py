"""What a round gives out: everything once, but what was written while it waited; what lies beside that comes last."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.pages import GRANULE_PAGES, PageSet
from pagefire.source_host.outstanding import CHUNK, Outstanding

SETS = st.sets(st.integers(0, 3 * GRANULE_PAGES), max_size=60).map(lambda chosen: PageSet.of_pages(list(chosen)))


def taken(outstanding: Outstanding, chunks: int | None = None) -> list[PageSet]:
    given_out = outstanding.chunks()
    return list(given_out) if chunks is None else [next(given_out) for _ in range(chunks)]


def union(sets: list[PageSet]) -> PageSet:
    return PageSet.of_runs([s for one in sets for s in one.starts], [s for one in sets for s in one.stops])


@given(SETS, st.integers(1, 4))
def test_without_a_look_all_of_it_is_given_out_in_order(pages: PageSet, streams: int) -> None:
    chunks = taken(Outstanding(pages, streams))
    assert union(chunks) == pages
    assert sum(chunk.pages for chunk in chunks) == pages.pages
    assert all(one.stops[-1] <= after.starts[0] for one, after in itertools.pairwise(chunks))


def test_no_stream_takes_more_than_its_share_nor_than_the_link_moves_in_time() -> None:
    assert [chunk.pages for chunk in taken(Outstanding(PageSet.span(0, 1001), 2))] == [256, 501, 244]
    # Sent in no time, they double.
    chunks = taken(Outstanding(PageSet.span(0, 2 * CHUNK.most_pages), 1))
    assert [chunk.pages / 256 for chunk in chunks] == [1, 2, 4, 8, 16, 32, 1]


@given(SETS, SETS, SETS, st.integers(0, 3))
def test_what_was_written_while_it_waited_is_not_sent(
    pages: PageSet, first: PageSet, second: PageSet, ahead: int
) -> None:
    outstanding = Outstanding(pages, 3)
    chunks = outstanding.chunks()
    before = [chunk for chunk in (next(chunks, None) for _ in range(ahead)) if chunk]
    outstanding.rewritten(first)
    between = [chunk for chunk in (next(chunks, None),) if chunk]
    outstanding.rewritten(second)
    after = list(chunks)
    assert not union(after) & (first | second)
    assert not union(between) & first
    everything = before + between + after
    assert sum(chunk.pages for chunk in everything) + outstanding.skipped_pages == pages.pages
    # What is not sent was written, hence is left for later.
    assert not pages - union(everything) - first - second


def test_granules_in_which_something_was_written_come_last() -> None:
    pages = PageSet.span(0, 4 * GRANULE_PAGES)
    outstanding = Outstanding(pages, 4)
    outstanding.rewritten(PageSet.of_pages([5, 2 * GRANULE_PAGES]))
    order = np.concatenate([chunk.page_numbers() for chunk in outstanding.chunks()])
    expected = np.arange(4 * GRANULE_PAGES).reshape(4, GRANULE_PAGES)[[1, 3, 0, 2]].ravel()
    assert order.tolist() == expected[~np.isin(expected, (5, 2 * GRANULE_PAGES))].tolist()


@given(SETS, st.integers(0, 3))
def test_a_stopped_round_gives_back_what_it_has_not_given_out(pages: PageSet, ahead: int) -> None:
    outstanding = Outstanding(pages, 2)
    chunks = outstanding.chunks()
    before = union([chunk for chunk in (next(chunks, None) for _ in range(ahead)) if chunk])
    for _ in range(2):
        outstanding.stop()
        outstanding.rewritten(PageSet.span(0, 5))
        assert before | outstanding.given_back == pages
        assert not before & outstanding.given_back
        assert not list(chunks)
    assert not outstanding.skipped_pages


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_share_it_and_none_sends_what_another_does(streams: int) -> None:
    pages = PageSet.of_runs(range(0, 100_000, 10), range(7, 100_007, 10))
    outstanding, chunks = Outstanding(pages, 50), list[PageSet]()
    threads = [threading.Thread(target=lambda: chunks.extend(outstanding.chunks())) for _ in range(streams)]
    for thread in threads:
        thread.start()
    outstanding.rewritten(PageSet.span(50_000, 60_000))
    for thread in threads:
        thread.join()
    assert sum(chunk.pages for chunk in chunks) + outstanding.skipped_pages == pages.pages
    assert not pages - union(chunks) - PageSet.span(50_000, 60_000)
