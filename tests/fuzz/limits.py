"""What one input may cost, and the measuring of it.

Memory is what tracemalloc counts: a limit of the protocol is of one input and grows with its length, which the size of a process
does not show, and numpy and Python allocate by way of it. It counts only while the code under test runs, because it costs three
quarters of the speed. What bypasses it (malloc in C) is bounded by the size of the process, PROCESS_BYTES: several times what is
used, because tracemalloc itself keeps up to 3 KiB of an input (without it the process stays as it is, over any number of inputs).

An input beyond its limit is run again before that counts: msgpack enters the names of fields into the interpreter's table of names,
which is made anew, 415 KB, every 11,000 names that nobody knows. It does not grow by them.

Time is bounded twice. An input holds at most INPUT_BYTES, and decoding takes time in proportion to what it gets: the slowest
take up to 0.1 s of CPU. 1 s of it means that something grows faster than its input, on a slow machine too. An input that never
ends is given up after 30 s by the clock, which leaves room for others on the machine.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from types import TracebackType

INPUT_BYTES = 4096
#: Beside the limits that grow with an input: a refusal's exception with its traceback, numpy's smallest arrays.
FIXED_BYTES = 64 << 10
#: README.md, section 8: what a body and a compacted bitmap may take for each of their bytes.
BODY_FACTOR = 80
BITMAP_FACTOR = 1024

PROCESS_BYTES = 1 << 30
SLOW_S = 1.0
HANG_S = 30


class TooMuchMemory(AssertionError):
    """A block held more than it may."""


class MemoryWithin:
    """`with` this much memory: TooMuchMemory where the block held more at a time, whether it raised or not."""

    #: The most that any block held, and the largest share of its limit.
    peak_bytes = 0
    peak_share = 0.0

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes

    def __enter__(self) -> None:
        assert not tracemalloc.is_tracing(), "somebody else's memory would be counted too"
        tracemalloc.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak_bytes > self._limit_bytes:
            raise TooMuchMemory(f"{peak_bytes} bytes of memory, {self._limit_bytes} are the limit")
        MemoryWithin.peak_bytes = max(MemoryWithin.peak_bytes, peak_bytes)
        MemoryWithin.peak_share = max(MemoryWithin.peak_share, peak_bytes / self._limit_bytes)


def cpu_s(one_input: Callable[[bytes], None], given: bytes) -> float:
    """Run one input; gives its CPU time in seconds, AssertionError where that is beyond SLOW_S."""
    began_ns = time.thread_time_ns()
    try:
        one_input(given)
    except TooMuchMemory:
        one_input(given)
    took_s = (time.thread_time_ns() - began_ns) / 1e9
    assert took_s <= SLOW_S, f"{took_s:.3f} s for an input of {len(given)} bytes"
    return took_s
