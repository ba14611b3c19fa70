"""What one page fire costs here: the first store to a protected page, which the kernel notes by itself and lets pass."""

from __future__ import annotations

import os
import statistics
import time

from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.pages import PAGE_BYTES, PageSet

_PAGES = 8192
_REPETITIONS = 5


def fire_cost_s() -> float:
    """Measure it on memory of this process, in seconds: stores to protected pages less stores to the same pages afterwards.

    The median of a few repetitions. Raises OSError where the kernel cannot track asynchronously.
    """
    uffd = userfaultfd.open_uffd(userfaultfd.TRACK_ASYNC)
    memory = memfd.Mapping(memfd.create("pagefire-fires", _PAGES * PAGE_BYTES))
    try:
        memory.populate(0, _PAGES)
        userfaultfd.register(uffd, memory.address, memory.size_bytes, userfaultfd.Mode.WP)
        costs_s = []
        for _ in range(_REPETITIONS):
            userfaultfd.protect_calls(uffd, memory.address, PageSet.span(0, _PAGES).steps(None)).issue()
            first_s, second_s = _store_to_each(memory), _store_to_each(memory)
            costs_s.append((first_s - second_s) / _PAGES)
        return statistics.median(costs_s)
    finally:
        os.close(uffd)
        memory.close()


def _store_to_each(memory: memfd.Mapping) -> float:
    began = time.perf_counter()
    memory.array[::PAGE_BYTES] = 1
    return time.perf_counter() - began
