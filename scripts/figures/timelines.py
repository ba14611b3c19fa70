"""Commits per 10 ms over a migration, its phases shaded: a panel for each case, of its run with the median stun.

The looks of the phases, and where they begin, are those of the single timeline (scripts/timeline.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagefire.protocol.units import format_duration
from pagefire.scripts.experiment.parameters import label_of
from pagefire.scripts.figures.description import Axis, Figure, Panel, Row, Series, Shade
from pagefire.scripts.figures.grouping import measure, row
from pagefire.scripts.figures.quantities import QUANTITIES
from pagefire.scripts.figures.wanted import Wanted
from pagefire.scripts.timeline import BUCKET_S, phase_spans

Json = dict[str, Any]

#: More panels than these are not looked at; the table has all cases.
_MOST_PANELS = 8


def timelines(wanted: Wanted, lines: Sequence[Json], name: str, swept: Sequence[str]) -> Figure:
    """Draw the panels in the order of the cases; a case of which no run has a timeline has none."""
    stun, rows, panels = QUANTITIES["stun"], list[Row](), list[Panel]()
    cases: dict[str, list[Json]] = {}
    for line in lines:
        label = label_of(
            {
                name: line["case"][name]
                for name in swept
                if name in line["case"] and len(wanted.where.get(name, ())) != 1
            }
        )
        cases.setdefault(label, []).append(line)
    for label, here in cases.items():
        rows.append(row(label, measure(here, stun), stun.unit))
        shown = median_run(here)
        if shown is not None and len(panels) < _MOST_PANELS:
            panels.append(_panel("" if len(cases) == 1 else label, shown["report"]))
    counts = f"commits of all vCPUs; of each case the run with the median stun. Stun: {stun.counts}"
    return Figure(name, wanted.title, counts, tuple(panels), tuple(rows))


def median_run(lines: Sequence[Json]) -> Json | None:
    """Give the run of the median stun among those that have a timeline; of those without a stun the first."""
    drawn = [line for line in lines if line["report"] is not None and line["report"].get("timeline")]
    ranked = sorted(
        (line for line in drawn if line["report"]["stun_s"] is not None), key=lambda line: line["report"]["stun_s"]
    )
    return ranked[(len(ranked) - 1) // 2] if ranked else drawn[0] if drawn else None


def _panel(title: str, report: Json) -> Panel:
    buckets = report["timeline"]
    # Each bucket is a step from its beginning on; the last one ends with one of its own height.
    xs = (*(one["t_s"] for one in buckets), buckets[-1]["t_s"] + BUCKET_S)
    ys = (*(float(one["commits"]) for one in buckets), float(buckets[-1]["commits"]))
    shades = tuple(
        Shade(one.label, span.start_s, span.end_s, one.fill, one.hatch)
        for one, span in phase_spans(report)
        if one.fill != "#ffffff"
    )
    stun = f"stun {format_duration(report['stun_s'])}" if report["stun_s"] is not None else report["outcome"]
    return Panel(
        f"{title}: {stun}" if title else stun,
        Axis("time since the migrate request (s)"),
        Axis("commits per 10 ms"),
        (Series("commits", "area", 0, xs, ys),),
        shades=shades,
    )
