"""PageSet against Python's own sets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet, pages_of

LIMIT = 200
numbers = st.sets(st.integers(0, LIMIT - 1))
spans = st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, LIMIT)), max_size=20)


def as_set(pages: PageSet) -> set[int]:
    """Check what a PageSet promises about itself, then expand it."""
    runs = list(zip(pages.starts.tolist(), pages.stops.tolist(), strict=True))
    assert all(start < stop for start, stop in runs)
    assert all(before[1] < after[0] for before, after in pairwise(runs))
    expanded = {page for start, stop in runs for page in range(start, stop)}
    assert pages.pages == len(expanded)
    assert pages.page_numbers().tolist() == sorted(expanded)
    return expanded


@given(numbers)
def test_of_pages_holds_what_it_was_given(chosen: set[int]) -> None:
    repeated_in_any_order = [*sorted(chosen, reverse=True), *chosen]
    pages = PageSet.of_pages(repeated_in_any_order)
    assert as_set(pages) == chosen
    assert pages.size_bytes == len(chosen) * PAGE_BYTES
    assert pages.counts.sum() == len(chosen)
    assert bool(pages) == bool(chosen)


@given(spans)
def test_of_runs_merges_what_touches_and_drops_what_is_empty(runs: list[tuple[int, int]]) -> None:
    pages = PageSet.of_runs([start for start, _ in runs], [stop for _, stop in runs])
    assert as_set(pages) == {page for start, stop in runs for page in range(start, stop)}


@given(numbers, numbers)
def test_algebra(one: set[int], other: set[int]) -> None:
    a, b = PageSet.of_pages(list(one)), PageSet.of_pages(list(other))
    assert as_set(a | b) == one | other
    assert as_set(a & b) == one & other
    assert as_set(a - b) == one - other


@given(numbers, numbers)
def test_equal_sets_are_equal_and_hash_alike(one: set[int], other: set[int]) -> None:
    a, b = PageSet.of_pages(list(one)), PageSet.of_pages(list(other))
    assert (a == b) == (one == other)
    assert (a | b) == (b | a)
    assert hash(a | b) == hash(b | a)
    assert a != one


@given(numbers)
def test_contains(chosen: set[int]) -> None:
    pages = PageSet.of_pages(list(chosen))
    assert {page for page in range(-2, LIMIT + 2) if page in pages} == chosen


@given(numbers, st.integers(1, 40), st.none() | st.integers(1, 10))
def test_batches_cut_in_order_and_lose_nothing(chosen: set[int], batch_pages: int, batch_runs: int | None) -> None:
    batches = list(PageSet.of_pages(list(chosen)).batches(batch_pages, batch_runs))
    assert [page for batch in batches for page in sorted(as_set(batch))] == sorted(chosen)
    assert all(0 < batch.pages <= batch_pages for batch in batches)
    assert all(batch_runs is None or len(batch) <= batch_runs for batch in batches)
    # A batch ends early only because it holds all the runs it may.
    assert all(batch.pages == batch_pages or len(batch) == batch_runs for batch in batches[:-1])


@given(numbers, st.integers(0, LIMIT), st.integers(0, LIMIT))
def test_a_part_is_counted_in_order(chosen: set[int], first: int, last: int) -> None:
    assert sorted(as_set(PageSet.of_pages(list(chosen)).part(first, last))) == sorted(chosen)[first:last]


@given(numbers, st.integers(0, LIMIT))
def test_an_index_selects_the_pages(chosen: set[int], first: int) -> None:
    chosen = {page for page in chosen if page >= first}
    every = np.arange(first, 2 * LIMIT)
    assert every[PageSet.of_pages(list(chosen)).index(first)].tolist() == sorted(chosen)


def test_an_index_of_one_run_copies_nothing() -> None:
    every = np.arange(10)
    assert np.shares_memory(every[PageSet.span(2, 5).index()], every)


@pytest.mark.parametrize("limits", [(0,), (1, 0)])
def test_a_batch_holds_something(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        list(PageSet.span(0, 5).batches(*limits))


@given(numbers, st.integers(1, 64), st.integers(0, LIMIT + 64))
def test_rounded_widens_to_units_within_the_limit(chosen: set[int], unit_pages: int, limit_pages: int) -> None:
    rounded = PageSet.of_pages(list(chosen)).rounded(unit_pages, limit_pages)
    units = {page // unit_pages for page in chosen}
    assert as_set(rounded) == {page for page in range(limit_pages) if page // unit_pages in units}


@given(numbers, st.integers(1, 40) | st.none())
def test_steps_cover_the_set_and_cross_no_multiple(chosen: set[int], step_pages: int | None) -> None:
    whole = PageSet.of_pages(sorted(chosen))
    starts, counts = whole.steps(step_pages)
    assert (counts > 0).all()
    assert PageSet.of_runs(starts, starts + counts) == whole
    assert int(counts.sum()) == whole.pages
    if step_pages is None:
        assert starts.tolist() == whole.starts.tolist()
    else:
        assert (starts // step_pages == (starts + counts - 1) // step_pages).all()


def test_rounded_to_granules() -> None:
    pages = PageSet.of_pages([0, GRANULE_PAGES * 3 + 1])
    assert pages.rounded(GRANULE_PAGES, GRANULE_PAGES * 3 + 9) == PageSet(
        (0, GRANULE_PAGES * 3), (GRANULE_PAGES, GRANULE_PAGES * 3 + 9)
    )


@given(st.integers(0, LIMIT), st.integers(0, LIMIT))
def test_span(start: int, stop: int) -> None:
    assert as_set(PageSet.span(start, stop)) == set(range(start, stop))


def test_empty() -> None:
    empty = PageSet.empty()
    assert as_set(empty) == set()
    assert empty == PageSet.of_pages([]) == PageSet.of_runs([], [])
    assert len(empty) == 0
    assert 0 not in empty
    assert repr(empty) == "PageSet(0 pages in 0 runs)"


@pytest.mark.parametrize(
    ("starts", "stops"),
    [
        pytest.param([-1], [1], id="a negative page"),
        pytest.param([3], [3], id="an empty run"),
        pytest.param([3], [2], id="a run backwards"),
        pytest.param([0, 2], [2, 4], id="runs that touch"),
        pytest.param([0, 1], [3, 4], id="runs that overlap"),
        pytest.param([5, 0], [6, 1], id="runs out of order"),
        pytest.param([0, 2], [1], id="a start without a stop"),
        pytest.param([[0]], [[1]], id="two dimensions"),
        pytest.param(0, 1, id="no dimension"),
    ],
)
def test_the_constructor_refuses(starts: object, stops: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        PageSet(starts, stops)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [lambda: PageSet.of_pages([-1]), lambda: PageSet.of_runs([-3], [2]), lambda: PageSet.span(-1, 2)]
)
def test_no_constructor_takes_a_negative_page(make: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()  # type: ignore[operator]


def test_a_set_keeps_copies_that_nobody_can_write() -> None:
    starts, stops = np.array([1, 5]), np.array([2, 9])
    pages = PageSet(starts, stops)
    starts[0] = stops[1] = 0
    assert as_set(pages) == {1, 5, 6, 7, 8}
    with pytest.raises(ValueError, match="read-only"):
        pages.starts[0] = 3


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_disjoint(one: set[int], other: set[int]) -> None:
    assert PageSet.of_pages(list(one)).disjoint(PageSet.of_pages(list(other))) == one.isdisjoint(other)


@given(st.sets(st.integers(0, 60)), st.integers(0, 70), st.integers(0, 70))
def test_within_is_the_intersection_with_a_span(pages: set[int], start: int, stop: int) -> None:
    made = PageSet.of_pages(list(pages)).within(start, stop)
    assert as_set(made) == {page for page in pages if start <= page < stop}
    assert made == PageSet(made.starts, made.stops)


def test_pages_of_counts_a_part_as_one() -> None:
    assert [pages_of(size) for size in (0, 1, PAGE_BYTES, PAGE_BYTES + 1)] == [0, 1, 1, 2]
