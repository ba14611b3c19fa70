"""From which share of touched memory on coarse protection costs more than fine: the crossing, and what `auto` makes of it.

Compared is one figure at a time (`FIGURES`), between rows of `pagefire trace` that differ in granularity and share touched alone.
Between two shares that were measured the difference is taken for linear. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from pagefire.source_host.tracking import Granularity

Json = dict[str, Any]

#: What is compared, and what it is called.
FIGURES = {"tracing_s": "CPU time", "collected_pages": "pages to send again"}
_SAME = ("install", "tracer", "backing", "vcpus", "step")
_COARSE, _FINE, _AUTO = Granularity.GRANULE.value, Granularity.PAGE.value, Granularity.AUTO.value


def crossings(rows: Sequence[Json]) -> list[Json]:
    """Compare 2M with 4K over the shares touched, for each figure and way; [] where not both were measured.

    Gives {install, tracer, backing, vcpus, step, figure, touched, coarse_over_fine, auto_over_better, at}: ratios for each share of
    `touched`, `auto` over the better of the other two (None where it was not measured), and `at`, the shares where 2M and 4K cost
    the same.
    """
    found = []
    for way in dict.fromkeys(tuple(row[field] for field in _SAME) for row in rows):
        of_way = {
            (row["granularity"], row["touched"]): row for row in rows if tuple(row[field] for field in _SAME) == way
        }
        shares = sorted({share for granularity, share in of_way if granularity == _COARSE and (_FINE, share) in of_way})
        for figure in FIGURES:
            cost = {key: row[figure] for key, row in of_way.items() if row[figure]}
            measured = [share for share in shares if (_COARSE, share) in cost and (_FINE, share) in cost]
            if not measured:
                continue
            ratios = [cost[_COARSE, share] / cost[_FINE, share] for share in measured]
            better = [min(cost[_COARSE, share], cost[_FINE, share]) for share in measured]
            autos = [cost.get((_AUTO, share)) for share in measured]
            found.append(
                dict(zip(_SAME, way, strict=True))
                | {
                    "figure": figure,
                    "touched": measured,
                    "coarse_over_fine": ratios,
                    "auto_over_better": [
                        auto / least if auto else None for auto, least in zip(autos, better, strict=True)
                    ],
                    "at": _zeros(measured, [ratio - 1 for ratio in ratios]),
                }
            )
    return found


def _zeros(at: Sequence[float], differences: Sequence[float]) -> list[float]:
    points = list(zip(at, differences, strict=True))
    return [
        x0 + (x1 - x0) * y0 / (y0 - y1)
        for (x0, y0), (x1, y1) in itertools.pairwise(points)
        if y0 * y1 < 0
    ]  # fmt: skip


def crossing_words(one: Json) -> str:
    """Say it in a sentence."""
    ratios = ", ".join(
        f"{ratio:.2f} at {share:.0%}" for share, ratio in zip(one["touched"], one["coarse_over_fine"], strict=True)
    )
    if one["at"]:
        crossing = "they cross at " + " and ".join(f"{share:.0%}" for share in one["at"]) + " touched"
    else:
        crossing = "they do not cross"
    words = f"{FIGURES[one['figure']]}, 2M over 4K: {ratios}; {crossing}"
    autos = [ratio for ratio in one["auto_over_better"] if ratio is not None]
    if autos:
        words += f"; auto over the better of them: {', '.join(f'{ratio:.2f}' for ratio in autos)}"
    return words
