"""CPU time of a process."""

from __future__ import annotations

import psutil


def cpu_seconds(pid: int | None = None) -> float:
    """Give the user and system CPU seconds that a process (this one by default) has used; 0 when it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
