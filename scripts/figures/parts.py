"""What the downtime is made of, by a parameter: the parts of the report's breakdown, one upon the other, medians of each part."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pagefire.scripts.compare_figures import BREAKDOWN
from pagefire.scripts.experiment.parameters import words_of
from pagefire.scripts.figures.description import Axis, Figure, Panel, Row, Series
from pagefire.scripts.figures.grouping import measure, row, values_of, with_value
from pagefire.scripts.figures.quantities import QUANTITIES
from pagefire.scripts.figures.wanted import Wanted

Json = dict[str, Any]

#: The parts as they are drawn; what is small nearly always is put together.
PARTS = {
    "quiesce": ("quiesce_s",),
    "final scan": ("final_scan_s",),
    "bitmap": ("bitmap_s",),
    "drain: the last pages": ("drain_s",),
    "transfer": ("transfer_s",),
    "install there": ("install_s",),
    "the rest": ("checkpoint_s", "verify_s", "resume_s"),
}
assert {part for parts in PARTS.values() for part in parts} == set(BREAKDOWN)


def parts(wanted: Wanted, lines: Sequence[Json], name: str) -> Figure:
    """Draw bars of milliseconds; the medians of the parts need not add up to the median of the whole, which the table has."""
    xs, downtime, rows = values_of(lines, wanted.x), QUANTITIES["downtime"], list[Row]()
    found = list[tuple[float, list[Json]]]()
    for index, x in enumerate(xs):
        here = with_value(lines, wanted.x, x)
        rows.append(row(f"{wanted.x} {words_of(x)}", measure(here, downtime), downtime.unit))
        broken_down = [line["report"]["downtime_breakdown"] for line in here if line["outcome"] == "completed"]
        if broken_down := [one for one in broken_down if one is not None]:
            found.append((float(index), broken_down))
    series = tuple(
        Series(
            label,
            "bar",
            look,
            tuple(at for at, _ in found),
            tuple(1e3 * sum(_median_s(runs, part) for part in names) for _, runs in found),
        )
        for look, (label, names) in enumerate(PARTS.items())
    )
    axis = Axis(wanted.x, tuple((float(index), words_of(x)) for index, x in enumerate(xs)))
    panel = Panel("", axis, Axis("downtime (ms)"), series, stacked=True)
    counts = f"{downtime.counts}; the median of each part, and in the table of the whole"
    return Figure(name, wanted.title, counts, (panel,) if found else (), tuple(rows))


def _median_s(runs: Sequence[Json], part: str) -> float:
    """Give a part's median over the runs that know it; a part that none knows has no height."""
    known = [one[part] for one in runs if one[part] is not None]
    return statistics.median(known) if known else 0.0
