"""From an experiment's results to its figures, as their scenario wants them: one pure function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pagefire.scripts.figures.description import Figure
from pagefire.scripts.figures.distributions import distribution
from pagefire.scripts.figures.grouping import admitted
from pagefire.scripts.figures.heat_maps import heat_map
from pagefire.scripts.figures.lines_and_bars import lines_or_bars
from pagefire.scripts.figures.parts import parts
from pagefire.scripts.figures.timelines import timelines
from pagefire.scripts.figures.wanted import Wanted, parse_wanted

Json = dict[str, Any]


def figures_of(experiment: Json, lines: Sequence[Json]) -> list[Figure]:
    """Give the figures that experiment.json names, of these lines; one without anything to draw has no panel."""
    wanted = [
        parse_wanted(said, f"{experiment['name']}: figure {index + 1}")
        for index, said in enumerate(experiment["figures"])
    ]
    return [
        figure_of(
            one, admitted(lines, one.where), _slug(f"{experiment['name']} {index + 1} {one.title}"), experiment["swept"]
        )
        for index, one in enumerate(wanted)
    ]


def figure_of(wanted: Wanted, lines: Sequence[Json], name: str, swept: Sequence[str]) -> Figure:
    """Give one figure of the lines that it admits."""
    match wanted.kind:
        case "timeline":
            return timelines(wanted, lines, name, swept)
        case "heatmap":
            return heat_map(wanted, lines, name)
        case "distribution":
            return distribution(wanted, lines, name)
        case "parts":
            return parts(wanted, lines, name)
        case _:
            return lines_or_bars(wanted, lines, name)


def in_order(experiment: Json, lines: Sequence[Json]) -> list[Json]:
    """Put lines in the order of the scenario's cases, as its file names them, and then of repetitions and seeds."""
    places: dict[str, list[Any]] = {}
    for sweep in experiment["scenario"]["sweeps"]:
        for name, values in sweep.items():
            places.setdefault(name, []).extend(value for value in values if value not in places.get(name, []))

    def place(line: Json) -> tuple[Any, ...]:
        at = (
            places[name].index(line["case"][name]) if line["case"].get(name) in places[name] else -1
            for name in experiment["swept"]
        )
        return *at, line["repetition"], line["seed"]

    return sorted(lines, key=place)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
