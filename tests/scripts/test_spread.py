"""Median, spread, percentiles and growth, on figures small enough to be seen."""

from __future__ import annotations

import pytest

from pagefire.scripts.spread import growth, percentiles, spread


def test_spread_is_the_median_between_the_ends() -> None:
    assert spread([4.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert spread([3.0, 1.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert spread([7.0]) == {"median": 7.0, "min": 7.0, "max": 7.0}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([5.0], (5.0, 5.0, 5.0)),
        ([2.0, 1.0], (1.0, 2.0, 2.0)),
        ([float(one) for one in range(100, 0, -1)], (50.0, 99.0, 100.0)),
        ([float(one) for one in range(1, 201)], (100.0, 198.0, 200.0)),
        ([1.0] * 99 + [9.0], (1.0, 1.0, 9.0)),
    ],
)
def test_a_percentile_is_a_figure_that_was_measured(figures: list[float], expected: tuple[float, float, float]) -> None:
    found = percentiles(figures)
    assert (found["p50"], found["p99"], found["max"]) == expected


def test_growth_is_the_slope_of_the_line_through_the_points() -> None:
    assert growth([(1, 10.0), (2, 12.0), (4, 16.0)]) == pytest.approx(2.0)
    assert growth([(1, 5.0), (3, 5.0)]) == 0
    # Least squares: what lies as far above as below does not turn it.
    assert growth([(0, 0.0), (1, 2.0), (2, 1.0), (3, 3.0)]) == pytest.approx(0.8)
    assert growth([(1, 5.0), (1, 9.0)]) is None
    assert growth([]) is None
