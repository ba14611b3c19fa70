"""The ledger against sets and brute force, and its one promise under threads: a page is claimed exactly once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.dest_host.ledger import CLAIMED, FILLED, MISSING, PUBLISHED, RECEIVED, REQUESTED, Ledger, publishable
from pagefire.protocol.pages import PageSet

PAGES = 100
numbers = st.sets(st.integers(0, PAGES - 1))


def pages(chosen: set[int]) -> PageSet:
    return PageSet.of_pages(list(chosen))


def as_set(some: PageSet) -> set[int]:
    return set(some.page_numbers().tolist())


@given(numbers, numbers, st.lists(numbers, max_size=5))
def test_claims_are_of_missing_pages_and_for_once(filled: set[int], missing: set[int], wanted: list[set[int]]) -> None:
    ledger = Ledger(PAGES)
    ledger.mark_filled(pages(filled))
    ledger.set_missing(pages(missing))
    left, duplicates = set(missing), 0
    for some in wanted:
        assert as_set(ledger.claim(pages(some))) == some & left
        duplicates += len(some - left)
        left -= some
    assert ledger.duplicates == duplicates
    assert ledger.missing == len(missing)
    assert as_set(ledger.filled_among(PageSet.span(0, PAGES))) == filled


@given(numbers, numbers, numbers, numbers)
def test_what_was_foretold_is_put_right_by_the_switchover(
    filled: set[int], foretold: set[int], added: set[int], hot: set[int]
) -> None:
    ledger = Ledger(PAGES)
    ledger.mark_filled(pages(filled))
    ledger.foretell(pages(foretold))
    added -= hot
    ledger.set_missing(pages(added), pages(hot))
    missing = (foretold - hot) | added
    assert ledger.missing == len(missing)
    assert as_set(ledger.filled_among(PageSet.span(0, PAGES))) == filled
    assert as_set(ledger.claim(PageSet.span(0, PAGES))) == missing
    assert as_set(ledger.forget_unfinished()) == missing
    ledger.mark_received(pages(missing))
    assert ledger.received() == (0, len(missing))


def test_threads_share_the_claims() -> None:
    ledger = Ledger(50_000)
    missing = PageSet.of_pages(np.flatnonzero(np.random.default_rng(3).integers(0, 3, 50_000)))
    ledger.set_missing(missing)
    claimed: list[list[int]] = [[] for _ in range(6)]
    last: list[bool] = []
    start = threading.Barrier(6)

    def claim(seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait()
        for first in random.permutation(np.arange(0, 50_000, 100)).tolist():
            fresh = ledger.claim(PageSet.span(first, first + 100))
            ledger.mark_filled(fresh)
            ledger.mark_received(fresh)
            claimed[seed] += fresh.page_numbers().tolist()
            ledger.request(first)
            if ledger.count_published(fresh.pages):
                last.append(True)

    threads = [threading.Thread(target=claim, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(page for each in claimed for page in each) == missing.page_numbers().tolist()
    assert ledger.missing == 0
    # Exactly one of them is told that nothing is missing any more.
    assert last == [True]
    assert ((ledger.states & (FILLED | RECEIVED)) != 0).sum() == missing.pages


def test_nothing_published_completes_nothing() -> None:
    ledger = Ledger(PAGES)
    ledger.set_missing(PageSet.empty())
    assert not ledger.count_published(0)
    ledger.set_missing(PageSet.span(0, 2))
    assert not ledger.count_published(1)
    assert ledger.count_published(1)


def test_a_page_is_requested_once_and_only_if_it_is_needed() -> None:
    ledger = Ledger(PAGES)
    ledger.set_missing(PageSet.span(0, 3))
    ledger.claim(PageSet.span(2, 3))
    assert [ledger.request(page) for page in (0, 0, 1, 2, 3)] == [[0], [], [1], [], []]


def test_claims_of_requested_pages_are_good() -> None:
    ledger = Ledger(PAGES)
    ledger.set_missing(PageSet.span(0, 3))
    ledger.request(1)
    assert ledger.claim(PageSet.span(0, 3)) == PageSet.span(0, 3)


@pytest.mark.parametrize("kept", range(32))
def test_what_may_be_published(kept: int) -> None:
    named = bool(kept & MISSING)
    expected = bool(kept & FILLED) and (not named or bool(kept & RECEIVED))
    # Received is a mark of named pages only, so the combination without one does not exist.
    if kept & RECEIVED and not named:
        return
    assert publishable(np.array([kept], np.uint8)).tolist() == [expected]


states = st.sampled_from(
    [0, FILLED, MISSING, FILLED | MISSING, MISSING | CLAIMED, FILLED | MISSING | CLAIMED, MISSING | REQUESTED,
     FILLED | PUBLISHED, FILLED | MISSING | CLAIMED | RECEIVED | PUBLISHED,
     FILLED | MISSING | CLAIMED | RECEIVED, MISSING | CLAIMED | RECEIVED, FILLED | MISSING | CLAIMED | RECEIVED | REQUESTED]
)  # fmt: skip


@given(st.lists(states, min_size=1, max_size=70), st.integers(0, 69), st.integers(1, 20))
def test_the_run_around_a_page(chosen: list[int], page: int, window_pages: int) -> None:
    page %= len(chosen)
    ledger = Ledger(len(chosen))
    ledger.states[:] = chosen
    ready = publishable(ledger.states).tolist()
    # Somebody waits for the page itself, shown or not; its neighbours are shown once.
    new = [
        one and (at == page or not state & PUBLISHED) for at, (one, state) in enumerate(zip(ready, chosen, strict=True))
    ]
    first = page // window_pages * window_pages
    end = min(first + window_pages, len(chosen))
    start = stop = page
    if ready[page]:
        while start > first and new[start - 1]:
            start -= 1
        while stop < end and new[stop]:
            stop += 1
    assert ledger.publishable_around(page, window_pages) == (start, stop)


@given(st.lists(states, min_size=1, max_size=70), numbers)
def test_what_is_left_to_publish(chosen: list[int], asked: set[int]) -> None:
    ledger = Ledger(len(chosen))
    ledger.states[:] = chosen
    asked = {page for page in asked if page < len(chosen)}
    ready = publishable(ledger.states)
    expected = {page for page in asked if ready[page] and not chosen[page] & PUBLISHED}
    assert as_set(ledger.unpublished(pages(asked))) == expected
    for page in expected:
        ledger.mark_published(page, page + 1)
    assert not ledger.unpublished(pages(asked))


@given(st.lists(states, min_size=1, max_size=20))
def test_a_page_is_published_zero_or_missing(chosen: list[int]) -> None:
    ledger = Ledger(len(chosen))
    ledger.states[:] = chosen
    for page, state in enumerate(chosen):
        here = ledger.publishable_around(page, 1) != (page, page)
        assert not (here and ledger.is_zero(page))
        assert (here or ledger.is_zero(page)) == (not state & MISSING or bool(state & RECEIVED))


@given(numbers, st.integers(0, PAGES), st.integers(0, PAGES))
def test_filled_is_all_of_a_run(filled: set[int], start: int, stop: int) -> None:
    ledger = Ledger(PAGES)
    ledger.mark_filled(pages(filled))
    assert ledger.filled(start, stop) == set(range(start, stop)).issubset(filled)


@given(st.data())
def test_units_are_shown_as_a_whole_and_fetched_as_a_whole(data: st.DataObject) -> None:
    """Against brute force over every page of a unit, for units of 4 in a guest of 40 pages."""
    unit, total = 4, 40
    some = st.sets(st.integers(0, total - 1))
    filled, missing, received, shown = (data.draw(some) for _ in range(4))
    received &= missing
    ledger = Ledger(total, unit)
    ledger.mark_filled(pages(filled | received))
    ledger.set_missing(pages(missing))
    ledger.claim(pages(received))
    ledger.mark_received(pages(received))
    for first in {page // unit * unit for page in shown}:
        ledger.mark_published(first, first + unit)
    ready = {page for page in filled | received if page not in missing or page in received}
    units = [range(first, first + unit) for first in range(0, total, unit)]
    whole = {page for each in units if ready.issuperset(each) for page in each}
    new = {page for each in units if shown.isdisjoint(each) for page in each}
    assert as_set(ledger.unpublished(PageSet.span(0, total))) == whole & new
    for page in range(total):
        start, stop = ledger.publishable_around(page, 2)
        assert (start, stop) == ((page // unit * unit, page // unit * unit + unit) if page in whole else (page, page))
    page = data.draw(st.integers(0, total - 1))
    around = range(page // unit * unit, page // unit * unit + unit)
    assert ledger.request(page) == sorted((missing - received).intersection(around))
    assert ledger.request(page) == []
