"""What a process takes, read from outside: CPU time to the nanosecond, and the peak of its own memory by sampling."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType

from pagefire.guest_workload.linux.memory_use import memory_use_bytes

#: How often memory is looked at: a peak that is shorter may not be seen.
SAMPLE_S = 0.002


def cpu_s(pid: int) -> float:
    """Give the user and system CPU seconds of a process's threads, ended ones included. Raises OSError when it is gone.

    Its CPU-time clock, by the number that clock_getcpuclockid(3) makes of a pid: /proc counts in ticks of 10 ms, which are 3% of
    what a daemon takes for a GiB.
    """
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e9


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of a process: `own` is memory that is not shared (RssAnon), `tables` its page tables (VmPTE).

    Guest memory, which a daemon maps, is shared and in neither; the kernel's socket buffers and pipes are in neither too.
    """

    own_bytes: int
    tables_bytes: int

    @classmethod
    def of(cls, pid: int) -> MemoryUse:
        """Read it; zeros when the process is gone."""
        return cls(*memory_use_bytes(pid))


class MemoryPeaks:
    """Watches processes while it lasts; `peaks` are then the largest of each figure that was seen, in the order of the pids."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self.peaks = [MemoryUse.of(pid) for pid in pids]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-peaks")

    def _watch(self) -> None:
        while not self._ending.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        for index, pid in enumerate(self._pids):
            now, most = MemoryUse.of(pid), self.peaks[index]
            self.peaks[index] = MemoryUse(max(now.own_bytes, most.own_bytes), max(now.tables_bytes, most.tables_bytes))

    def __enter__(self) -> MemoryPeaks:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._look()
