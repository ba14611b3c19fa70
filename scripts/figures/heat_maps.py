"""A quantity by two parameters, a cell for each pair: the median, and what became of the runs where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagefire.scripts.experiment.parameters import Value, words_of
from pagefire.scripts.figures.description import Axis, Cells, Figure, Panel, Row
from pagefire.scripts.figures.grouping import digits, measure, row, values_of, with_value
from pagefire.scripts.figures.quantities import QUANTITIES
from pagefire.scripts.figures.wanted import Wanted

Json = dict[str, Any]


def heat_map(wanted: Wanted, lines: Sequence[Json], name: str) -> Figure:
    """Draw a map whose rows grow upwards. A cell in which some runs arrived and others did not says how many did."""
    quantity, xs, ys = QUANTITIES[wanted.y], values_of(lines, wanted.x), values_of(lines, wanted.by)
    values, words, rows = list[tuple[float | None, ...]](), list[tuple[str, ...]](), list[Row]()
    for y in ys:
        cells = list[tuple[float | None, str]]()
        for x in xs:
            here = with_value(with_value(lines, wanted.by, y), wanted.x, x)
            measured = measure(here, quantity)
            if here:
                rows.append(row(f"{wanted.x} {words_of(x)}, {wanted.by} {words_of(y)}", measured, quantity.unit))
            cells.append((measured.median, _words(here, measured.median, len(measured.figures))))
        values.append(tuple(value for value, _ in cells))
        words.append(tuple(said for _, said in cells))
    panel = Panel(
        "", _places(wanted.x, xs), _places(wanted.by, ys), cells=Cells(tuple(values), tuple(words), quantity.label)
    )
    known = any(value is not None for cells_row in values for value in cells_row)
    return Figure(name, wanted.title, f"{quantity.counts}; medians", (panel,) if known else (), tuple(rows))


def _places(name: str, values: Sequence[Value]) -> Axis:
    return Axis(name, tuple((float(index), words_of(value)) for index, value in enumerate(values)))


def _words(here: Sequence[Json], median: float | None, measured: int) -> str:
    if not here:
        return "not run"
    if median is None:
        outcomes = {line["outcome"] for line in here}
        return "does not\nconverge" if outcomes == {"cancelled"} else "none arrived"
    return digits(median) + (f"\n({measured} of {len(here)})" if measured < len(here) else "")
