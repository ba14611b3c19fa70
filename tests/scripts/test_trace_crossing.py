"""Where coarse protection begins to cost more than fine: made-up rows, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pagefire.scripts.trace_crossing import crossing_words, crossings

Json = dict[str, Any]


def row(granularity: str, touched: float, tracing_s: float | None, pages: int = 0, **other: object) -> Json:
    way = {"install": "loose", "tracer": "host", "backing": "thp", "vcpus": 2, "step": None, "rate_share": None}
    figures = {"tracing_s": tracing_s, "collected_pages": pages, "total_s": None}
    return way | {"granularity": granularity, "touched": touched} | figures | other


def test_the_crossing_is_where_both_cost_the_same() -> None:
    rows = [row("4K", share, 0.2) for share in (0.1, 0.3, 1.0)]
    rows += [row("2M", share, cost) for share, cost in ((0.1, 0.1), (0.3, 0.15), (1.0, 0.25))]
    rows += [row("auto", share, cost) for share, cost in ((0.1, 0.1), (0.3, 0.12), (1.0, 0.22))]
    (found,) = crossings(rows)
    assert found["figure"] == "tracing_s"
    assert found["shares"] == [0.1, 0.3, 1.0]
    assert found["coarse_over_fine"] == pytest.approx([0.5, 0.75, 1.25])
    assert found["at"] == pytest.approx([0.65])
    assert found["auto_over_better"] == pytest.approx([1.0, 0.8, 1.1])
    assert crossing_words(found) == (
        "CPU time, 2M over 4K: 0.50 at 0.1, 0.75 at 0.3, 1.25 at 1 touched; they cross at 0.65; "
        "auto over the better of them: 1.00, 0.80, 1.10"
    )


def test_the_rate_is_the_axis_where_it_was_varied() -> None:
    rows = [row("4K", 0.3, 0.2, rate_share=share) for share in (0.01, 0.5, None)]
    rows += [row("2M", 0.3, cost, rate_share=share) for share, cost in ((0.01, 0.3), (0.5, 0.1), (None, 0.1))]
    (found,) = crossings(rows)
    assert (found["axis"], found["touched"], found["shares"]) == ("rate_share", 0.3, [0.01, 0.5, 1.0])
    assert found["at"] == pytest.approx([0.255])
    assert "0.50 at 1 of the full rate; they cross at 0.25" in crossing_words(found)


def test_where_one_is_always_better_nothing_crosses() -> None:
    rows = [row(granularity, share, cost) for granularity, cost in (("4K", 0.2), ("2M", 0.1)) for share in (0.1, 1.0)]
    (found,) = crossings(rows)
    assert found["at"] == []
    assert found["auto_over_better"] == [None, None]
    assert crossing_words(found) == "CPU time, 2M over 4K: 0.50 at 0.1, 0.50 at 1 touched; they do not cross"


def test_each_way_and_each_figure_is_compared_by_itself() -> None:
    rows = [
        row(granularity, 0.1, cost, pages=100, install=install)
        for install in ("loose", "stop")
        for granularity, cost in (("4K", 0.2), ("2M", 0.1))
    ]
    found = crossings(rows)
    assert [(one["install"], one["figure"], one["coarse_over_fine"]) for one in found] == [
        ("loose", "tracing_s", [0.5]), ("loose", "collected_pages", [1.0]),
        ("stop", "tracing_s", [0.5]), ("stop", "collected_pages", [1.0]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("4K", 0.1, 0.2)],
        [row("4K", 0.1, 0.2), row("2M", 0.3, 0.2)],
        [row("4K", 0.1, 0.2), row("2M", 0.1, 0.2, vcpus=4)],
        [row("4K", 0.1, None), row("2M", 0.1, None)],
    ],
)
def test_what_was_not_measured_is_not_compared(rows: list[Json]) -> None:
    assert crossings(rows) == []
