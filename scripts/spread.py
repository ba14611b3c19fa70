"""What is said of a figure that was measured several times: median and spread, percentiles, growth. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def spread(figures: Sequence[float]) -> Json:
    """Give median, least and largest."""
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}


def percentiles(figures: Sequence[float]) -> Json:
    """Give p50, p99 and the largest, each a figure that was measured: the least that so large a share does not exceed.

    Of fewer than 100 figures p99 is the largest.
    """
    ranked = sorted(figures)

    def at(share: float) -> float:
        return ranked[math.ceil(share * len(ranked)) - 1]

    return {"p50": at(0.5), "p99": at(0.99), "max": ranked[-1]}


def growth(points: Sequence[tuple[float, float]]) -> float | None:
    """Give by how much the second of each pair grows where the first grows by 1: the line of least squares.

    None where the first is the same in all.
    """
    if len({at for at, _ in points}) < 2:
        return None
    return float(statistics.linear_regression([at for at, _ in points], [figure for _, figure in points]).slope)
