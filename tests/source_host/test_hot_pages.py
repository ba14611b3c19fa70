"""Which pages go with the switchover: those that every short window wrote, and where sequential writers have come to."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.pages import PageSet
from pagefire.source_host.hot_pages import ENDS, RUN_PAGES, STEADY_PAGES, HotPages, run_ends

windows = st.lists(st.integers(0, 60), max_size=30).map(PageSet.of_pages)
NONE = PageSet.empty()


def hot_after(seen: list[PageSet], last: PageSet = NONE) -> PageSet:
    hot = HotPages()
    for window in seen:
        hot.note(window)
    return hot.choose(last)


@given(st.lists(windows, max_size=4), windows)
def test_hot_is_what_every_window_wrote_and_the_ends_of_the_last_runs(seen: list[PageSet], last: PageSet) -> None:
    always = set.intersection(*(set(window.page_numbers().tolist()) for window in seen)) if seen else set()
    ends = set[int]()
    for window in (*seen[-1:], last):
        pages = set(window.page_numbers().tolist())
        ends |= {page for page in pages if page + 1 not in pages and pages >= set(range(page + 1 - RUN_PAGES, page))}
    assert set(hot_after(seen, last).page_numbers().tolist()) == always | ends


def test_a_vcpu_that_did_not_run_at_the_very_end_is_not_forgotten() -> None:
    counters = PageSet.of_pages([7, 900])
    assert hot_after([counters, counters, counters], last=NONE) == counters


def test_a_guest_that_writes_everything_does_not_lengthen_its_stun() -> None:
    for dirty in (PageSet.span(0, 100_000), PageSet.of_runs(range(0, 100_000, 8), range(5, 100_005, 8))):
        assert STEADY_PAGES <= hot_after([dirty, dirty], dirty).pages <= STEADY_PAGES + 2 * ENDS


def test_a_log_is_hot_where_it_has_come_to() -> None:
    log, scattered = PageSet.span(5000, 5030), PageSet.of_pages(range(0, 3000, 3))
    assert run_ends(log | scattered) == PageSet.of_pages([5029])
    assert not run_ends(scattered)


def test_neighbours_that_chance_hit_are_no_log() -> None:
    scattered = PageSet.of_pages(np.random.default_rng(5).integers(0, 1 << 16, 500))
    assert (scattered.counts == 2).any()
    assert not run_ends(scattered)


def test_the_longest_runs_are_the_logs() -> None:
    short = PageSet.of_runs(range(0, 8000, 8), range(4, 8000, 8))
    logs = PageSet.of_runs(range(10_000, 10_000 + ENDS * 100, 100), range(10_020, 10_000 + ENDS * 100, 100))
    assert run_ends(short | logs) == PageSet.of_pages(logs.stops - 1)
