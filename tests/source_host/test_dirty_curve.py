"""How many pages a guest writes in a time: as it was seen, and beyond that as guests go on that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.source_host.dirty_curve import DirtyCurve

LOOKS_S = [0.01 * 1.5**n for n in range(14)] + [3.0]
MOST = 262_144
CURVES = st.lists(st.tuples(st.floats(0.001, 2.0), st.integers(0, 20_000)), max_size=12)


def curve_of(steps: list[tuple[float, int]], most_pages: int = MOST) -> DirtyCurve:
    """Make a curve by what each look came later and found more."""
    times, pages = np.cumsum([time for time, _ in steps]), np.cumsum([more for _, more in steps])
    return DirtyCurve(times.tolist(), pages.tolist(), most_pages)


@given(CURVES, st.floats(0, 1000), st.floats(0, 1000))
def test_it_rises_and_never_exceeds_what_there_is(steps: list[tuple[float, int]], one_s: float, other_s: float) -> None:
    curve = curve_of(steps)
    less, more = curve.pages(min(one_s, other_s)), curve.pages(max(one_s, other_s))
    assert 0 <= less <= more * (1 + 1e-9) + 1e-6
    assert more <= MOST


@given(CURVES)
def test_what_was_seen_is_given_back(steps: list[tuple[float, int]]) -> None:
    curve = curve_of(steps)
    for time, pages in zip(np.cumsum([t for t, _ in steps]), np.cumsum([p for _, p in steps]), strict=True):
        assert curve.pages(float(time)) == pytest.approx(min(pages, MOST))


@given(CURVES, st.floats(0, 100), st.floats(0, 100))
def test_what_is_written_twice_was_written_in_both_times(
    steps: list[tuple[float, int]], earlier_s: float, later_s: float
) -> None:
    curve = curve_of(steps)
    again = curve.again(earlier_s, later_s)
    assert 0 <= again <= min(curve.pages(earlier_s), curve.pages(later_s)) + 1e-6
    assert curve.again(math.inf, later_s) == curve.pages(later_s)


def random_writer(pages: float, per_s: float, time_s: float) -> float:
    """Different pages of a working set, of which one is drawn at random each time."""
    return pages * -math.expm1(-per_s * time_s / pages)


def zipf(pages: int, per_s: float, time_s: float, exponent: float = 0.99) -> float:
    weights = np.arange(1, pages + 1, dtype=np.float64) ** -exponent
    return float(-np.expm1(-per_s * time_s * weights / weights.sum()).sum())


@pytest.mark.parametrize(
    ("writes", "within"),
    [
        (lambda t: random_writer(65_536, 20_000, t), 0.08),
        (lambda t: random_writer(32_768, 50_000, t), 0.03),
        (lambda t: random_writer(65_536, 5_000, t), 0.05),
        (lambda t: zipf(65_536, 20_000, t), 0.2),
        (lambda t: 10_000 * t, 0.02),
        # Pages that every transaction writes, and others at random.
        (lambda t: 300 * -math.expm1(-100 * t) + random_writer(50_000, 8_000, t), 0.25),
    ],
    ids=["random", "random, nearly all seen", "random, hardly begun", "hotspot", "sequential", "hot and random"],
)
def test_known_guests_go_on_as_they_do(writes: object, within: float) -> None:
    assert callable(writes)
    curve = DirtyCurve(LOOKS_S, [round(writes(t)) for t in LOOKS_S], MOST)
    for later_s in (4.0, 6.0, 10.0, 20.0):
        assert curve.pages(later_s) == pytest.approx(writes(later_s), rel=within), later_s


def test_a_guest_that_writes_nothing() -> None:
    for curve in (DirtyCurve([], [], MOST), DirtyCurve(LOOKS_S, [0] * len(LOOKS_S), MOST)):
        assert curve.pages(0.5) == curve.pages(1000.0) == 0
        assert curve.again(3.0, 5.0) == 0
        assert curve.slowdown(1.0, 0) == 1.0


def test_a_slower_guest_is_told_by_what_it_wrote() -> None:
    curve = DirtyCurve(LOOKS_S, [10_000 * t for t in LOOKS_S], MOST)
    assert curve.slowdown(0.4, 2_000) == pytest.approx(2.0, rel=0.01)
    # Chance, more than was expected, and a guest that was stopped by somebody.
    assert curve.slowdown(0.4, 3_900) == 1.0
    assert curve.slowdown(0.4, 9_000) == 1.0
    assert curve.slowdown(0.4, 0) == 1.0


def test_times_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        DirtyCurve([0.1, 0.1], [1, 2], MOST)
    with pytest.raises(ValueError, match="for each"):
        DirtyCurve([0.1, 0.2], [1], MOST)
