"""Where coarse protection begins to cost more than fine: the crossing, and what `auto` makes of it.

Compared is one figure at a time (`FIGURES`), between rows of `pagefire trace` that differ in granularity and in one share alone: of
the full rate that the guest does, if that was varied, else of its memory that it touches. Between two shares that were measured the
difference is taken for linear. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from pagefire.source_host.tracking import Granularity

Json = dict[str, Any]

#: What is compared, and what it is called.
FIGURES = {
    "tracing_s": "CPU time",
    "collected_pages": "pages to send again",
    "total_s": "CPU time and these pages on the link",
}
#: What is varied, and what it is called.
AXES = {"rate_share": "of the full rate", "touched": "touched"}
_SAME = ("install", "tracer", "backing", "vcpus", "step")
_COARSE, _FINE, _AUTO = Granularity.GRANULE.value, Granularity.PAGE.value, Granularity.AUTO.value


def varied(rows: Sequence[Json]) -> str:
    """Tell which of `AXES` the rows were measured over."""
    return "rate_share" if len({row["rate_share"] for row in rows}) > 1 else "touched"


def share_of(row: Json, axis: str) -> float:
    """Give where a row stands on an axis; a guest that is not paced does all of its full rate."""
    return float(row[axis] if row[axis] is not None else 1.0)


def crossings(rows: Sequence[Json]) -> list[Json]:
    """Compare 2M with 4K over the shares, for each figure and way; [] where not both were measured.

    Gives {install, tracer, backing, vcpus, step, axis, <the other axis>, figure, shares, coarse_over_fine, auto_over_better, at}:
    ratios for each of `shares`, `auto` over the better of the other two (None where it was not measured), and `at`, the shares
    where 2M and 4K cost the same.
    """
    axis = varied(rows)
    same = (*_SAME, next(other for other in AXES if other != axis))
    found = []
    for way in dict.fromkeys(tuple(row[field] for field in same) for row in rows):
        of_way = [row for row in rows if tuple(row[field] for field in same) == way]
        for figure in FIGURES:
            cost = {(row["granularity"], share_of(row, axis)): row[figure] for row in of_way if row[figure]}
            shares = sorted({share for granularity, share in cost if {(_COARSE, share), (_FINE, share)} <= cost.keys()})
            if not shares:
                continue
            ratios = [cost[_COARSE, share] / cost[_FINE, share] for share in shares]
            better = [min(cost[_COARSE, share], cost[_FINE, share]) for share in shares]
            autos = [cost.get((_AUTO, share)) for share in shares]
            compared = {
                "axis": axis,
                "figure": figure,
                "shares": shares,
                "coarse_over_fine": ratios,
                "auto_over_better": [
                    auto / least if auto else None for auto, least in zip(autos, better, strict=True)
                ],
                "at": _zeros(shares, [ratio - 1 for ratio in ratios]),
            }  # fmt: skip
            found.append(dict(zip(same, way, strict=True)) | compared)
    return found


def _zeros(at: Sequence[float], differences: Sequence[float]) -> list[float]:
    points = zip(at, differences, strict=True)
    return [x0 + (x1 - x0) * y0 / (y0 - y1) for (x0, y0), (x1, y1) in itertools.pairwise(points) if y0 * y1 < 0]


def crossing_words(one: Json) -> str:
    """Say it in a sentence."""
    ratios = ", ".join(
        f"{ratio:.2f} at {share:.3g}" for share, ratio in zip(one["shares"], one["coarse_over_fine"], strict=True)
    )
    places = " and ".join(f"{share:.2g}" for share in one["at"])
    crossing = f"they cross at {places}" if places else "they do not cross"
    words = f"{FIGURES[one['figure']]}, 2M over 4K: {ratios} {AXES[one['axis']]}; {crossing}"
    autos = [ratio for ratio in one["auto_over_better"] if ratio is not None]
    if autos:
        words += f"; auto over the better of them: {', '.join(f'{ratio:.2f}' for ratio in autos)}"
    return words
