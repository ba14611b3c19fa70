"""How long an experiment still takes: pure functions of what its migrations have taken."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pagefire.scripts.experiment.sweep import Task

Json = dict[str, Any]


def remaining_s(lines: Sequence[Json], tasks: Sequence[Task], at_once: int = 1) -> float | None:
    """Estimate how long the tasks take, `at_once` at a time; None as long as nothing is known.

    A migration takes what those of its case have taken, in the median, and where there was none yet what all have.
    """
    if not lines:
        return None
    took: dict[str, list[float]] = {}
    for line in lines:
        took.setdefault(line["key"].partition("-")[0], []).append(line["took_s"])
    any_s = statistics.median(line["took_s"] for line in lines)
    each_s = (statistics.median(took[task.case.digest]) if task.case.digest in took else any_s for task in tasks)
    return sum(each_s) / at_once
