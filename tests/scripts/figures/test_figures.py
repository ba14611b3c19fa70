"""From results to figures: pure functions, of made lines whose medians and spreads are known."""

from __future__ import annotations

from typing import Any

import pytest

from pagefire.scripts.figures.compose import figures_of, in_order
from pagefire.scripts.figures.description import Figure
from pagefire.scripts.figures.grouping import number_of, parameter_axis
from pagefire.scripts.figures.quantities import QUANTITIES
from tests.support.results import made_results

EXPERIMENT, LINES = made_results()
LINES = in_order(EXPERIMENT, LINES)
FIGURES = {figure.name.split("-")[1]: figure for figure in figures_of(EXPERIMENT, LINES)}


def figure(number: int) -> Figure:
    return FIGURES[str(number)]


def test_lines_are_in_the_order_of_the_file() -> None:
    cases = list(dict.fromkeys((line["case"]["mode"], line["case"]["rate"]) for line in LINES))
    assert cases == [(mode, rate) for mode in ("precopy", "hybrid") for rate in ("1k/s", "20k/s", "400k/s")]


def test_lines_have_medians_and_their_spread() -> None:
    (panel,) = figure(1).panels
    precopy, hybrid = panel.series
    assert (precopy.name, hybrid.name) == ("mode precopy", "mode hybrid")
    # Of a rate at which nothing arrived there is no point.
    assert precopy.x == (1e3, 2e4)
    assert hybrid.x == (1e3, 2e4, 4e5)
    assert hybrid.y == pytest.approx((20, 20, 20))
    assert hybrid.least == pytest.approx((10, 10, 10))
    assert hybrid.largest == pytest.approx((30, 30, 30))
    assert panel.x.log
    assert panel.x.ticks == ((1e3, "1k/s"), (2e4, "20k/s"), (4e5, "400k/s"))
    assert panel.y.label == "stun (ms)"
    assert not panel.y.log


def test_the_table_has_every_case_with_its_runs() -> None:
    rows = {row.case: row for row in figure(1).rows}
    assert len(rows) == 6
    one = rows["rate 20k/s, mode hybrid"]
    assert (one.runs, one.measured, one.median, one.least, one.largest) == (3, 3, "20 ms", "10 ms", "30 ms")
    lost = rows["rate 400k/s, mode precopy"]
    assert (lost.runs, lost.measured, lost.median) == (3, 0, "")


def test_bars_stand_side_by_side_by_category() -> None:
    (panel,) = figure(2).panels
    assert [one.form for one in panel.series] == ["bar"] * 3
    assert [one.name for one in panel.series] == ["rate 1k/s", "rate 20k/s", "rate 400k/s"]
    assert panel.series[0].x == (0, 1)
    assert panel.series[0].y == pytest.approx((3, 3))
    assert panel.series[2].x == (1,)


def test_a_heat_map_says_where_nothing_converged() -> None:
    (panel,) = figure(3).panels
    assert panel.cells is not None
    assert panel.cells.values[0] == pytest.approx((20, 20))
    assert panel.cells.values[2] == (None, pytest.approx(20))
    assert panel.cells.words[2] == ("does not\nconverge", "20")
    assert panel.cells.label == "stun (ms)"


def test_a_distribution_has_a_step_for_every_run() -> None:
    (panel,) = figure(4).panels
    precopy, hybrid = panel.series
    assert len(precopy.x) == 7
    assert len(hybrid.x) == 10
    assert (hybrid.x[0], hybrid.y[0]) == (pytest.approx(10), 0)
    assert (hybrid.x[-1], hybrid.y[-1]) == (pytest.approx(30), 100)
    assert list(hybrid.x) == sorted(hybrid.x)


def test_parts_stand_on_each_other() -> None:
    (panel,) = figure(5).panels
    assert panel.stacked
    assert sum(one.y[0] for one in panel.series if one.y[0] is not None) == pytest.approx(7.7)


def test_a_timeline_has_a_panel_a_case_with_its_phases() -> None:
    first, second = figure(6).panels
    assert first.title == "mode precopy: stun 20 ms"
    assert second.title == "mode hybrid: stun 20 ms"
    assert [(shade.label, shade.start, shade.end) for shade in first.shades] == [
        ("setup", 0.0, 0.1), ("pre-copy", 0.1, 0.5), ("switchover", 0.5, 0.52), ("post-copy", 0.52, 1.2),
    ]  # fmt: skip
    (commits,) = first.series
    assert (commits.x[0], len(commits.x)) == (-0.5, 251)


def test_what_nobody_measured_has_no_panel_but_a_table() -> None:
    nothing = figure(7)
    assert nothing.panels == ()
    assert {row.measured for row in nothing.rows} == {0}


def test_no_results_at_all_are_figures_without_panels() -> None:
    assert all(not one.panels for one in figures_of(EXPERIMENT, []))


def test_where_admits_some_lines_only() -> None:
    assert {row.runs for row in figure(6).rows} == {3}


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("memory", "1GiB", 2**30), ("rate", "50k/s", 50_000), ("max-bandwidth", "100MB/s", 1e8), ("delay", "12.5ms", 0.0125),
        ("loss", "0.1%", 0.1), ("vcpus", 4, 4), ("link-rate", "200mbit", 2e8), ("streams", "8", 8), ("mode", "hybrid", None),
        ("rate", "default", None), ("auto-converge", True, None),
    ],
)  # fmt: skip
def test_numbers_of_parameters(name: str, value: Any, number: float | None) -> None:
    assert number_of(name, value) == number


def test_an_axis_with_a_zero_is_linear_and_one_with_words_is_by_place() -> None:
    axis, places, by_number = parameter_axis("delay", ["0ms", "25ms"])
    assert (axis.log, by_number, places["25ms"]) == (False, True, 0.025)
    axis, places, by_number = parameter_axis("rate", ["1k/s", "default"])
    assert (by_number, places) == (False, {"1k/s": 0, "default": 1})


def test_every_quantity_says_what_it_counts_and_reads_an_empty_line() -> None:
    empty = {"outcome": "failed", "report": None, "fault": None}
    for name, quantity in QUANTITIES.items():
        assert name == quantity.name
        assert len(quantity.counts) > 10
        assert quantity.read(empty) in (None, 0.0), name
