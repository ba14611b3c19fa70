"""Figures of a quantity by one parameter, told apart by another: lines, where the parameter is a number, or bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagefire.scripts.experiment.parameters import Value, words_of
from pagefire.scripts.figures.description import Axis, Figure, Panel, Row, Series
from pagefire.scripts.figures.grouping import measure, parameter_axis, quantity_axis, row, values_of, with_value
from pagefire.scripts.figures.quantities import QUANTITIES
from pagefire.scripts.figures.wanted import Wanted

Json = dict[str, Any]


def lines_or_bars(wanted: Wanted, lines: Sequence[Json], name: str) -> Figure:
    """Draw medians with their spread; a value that no run measured has no point, and says so in the table."""
    quantity, xs = QUANTITIES[wanted.y], values_of(lines, wanted.x)
    axis, places, by_number = parameter_axis(wanted.x, xs)
    bars = wanted.kind == "bars"
    if bars and by_number:  # a bar has no width on an axis of numbers
        places = {value: float(index) for index, value in enumerate(xs)}
        axis = Axis(axis.label, tuple((place, words_of(value)) for value, place in places.items()))
    series, rows = list[Series](), list[Row]()
    groups: list[Value] = values_of(lines, wanted.by) if wanted.by else [""]
    for look, group in enumerate(groups):
        label = f"{wanted.by} {words_of(group)}" if wanted.by else ""
        of_group = with_value(lines, wanted.by, group)
        points = [(x, measure(with_value(of_group, wanted.x, x), quantity)) for x in xs]
        rows += [
            row(", ".join(filter(None, (f"{wanted.x} {words_of(x)}", label))), point, quantity.unit)
            for x, point in points
            if point.runs
        ]
        drawn = [(places[x], point) for x, point in points if point.figures]
        series.append(
            Series(
                label,
                "bar" if bars else "line",
                look,
                tuple(place for place, _ in drawn),
                tuple(point.median for _, point in drawn),
                tuple(point.least for _, point in drawn),
                tuple(point.largest for _, point in drawn),
            )
        )
    known = [figure for one in series for figure in (*one.least, *one.largest)]
    # The height of a bar is what is read: it begins at zero.
    upwards = Axis(quantity.label) if bars else quantity_axis(quantity, known)
    panel = Panel("", axis, upwards, tuple(one for one in series if one.x))
    counts = f"{quantity.counts}; medians, and from the least to the largest run"
    return Figure(name, wanted.title, counts, (panel,) if known else (), tuple(rows))
