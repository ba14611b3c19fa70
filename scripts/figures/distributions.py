"""The distribution of a quantity: for each value, the share of runs that had no more. A step for each run, none left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagefire.scripts.experiment.parameters import Value, words_of
from pagefire.scripts.figures.description import Axis, Figure, Panel, Row, Series
from pagefire.scripts.figures.grouping import measure, quantity_axis, row, values_of, with_value
from pagefire.scripts.figures.quantities import QUANTITIES
from pagefire.scripts.figures.wanted import Wanted

Json = dict[str, Any]


def distribution(wanted: Wanted, lines: Sequence[Json], name: str) -> Figure:
    """Draw a step line for each value of `by`; it begins at the least run with a share of 0."""
    quantity, rows, series = QUANTITIES[wanted.y], list[Row](), list[Series]()
    groups: list[Value] = values_of(lines, wanted.by) if wanted.by else [""]
    for look, group in enumerate(groups):
        measured = measure(with_value(lines, wanted.by, group), quantity)
        label = f"{wanted.by} {words_of(group)}" if wanted.by else "all runs"
        rows.append(row(label, measured, quantity.unit))
        if measured.figures:
            ranked = sorted(measured.figures)
            shares = tuple(100 * index / len(ranked) for index in range(len(ranked) + 1))
            series.append(Series(label, "step", look, (ranked[0], *ranked), shares))
    known = [x for one in series for x in one.x]
    panel = Panel("", quantity_axis(quantity, known), Axis("runs with no more (%)"), tuple(series))
    return Figure(name, wanted.title, quantity.counts, (panel,) if series else (), tuple(rows))
