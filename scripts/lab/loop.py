"""The emulator's loop: packets from one TUN device to another by way of a line, both directions, compiled and without the GIL.

It sleeps in ppoll until a packet comes or the next one is due, and is late by what it takes to wake up, because it runs before
everything else (emulator.py sees to that) and its timer has no slack. When it has moved packets it sleeps for the line's grain,
half a percent of the delay and 0.1 ms at most, so that a busy link does not cost a wake-up for each. Packets that are due are
written before others are read. A device that does not take a packet refuses it, and that is counted.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pagefire.guest_workload.atomics import load_u64
from pagefire.guest_workload.native import clock_ns
from pagefire.scripts.lab.line import GRAIN_NS, REFUSED, SLOT_BYTES, arrive, leave, next_ns, room

_READ, _WRITE, _PPOLL = {"x86_64": (0, 1, 271)}.get(platform.machine(), (63, 64, 73))
_I64 = ir.IntType(64)
#: Packets taken in from one side before what is due is looked at again.
_BATCH = 32
_LONGEST_SLEEP_NS = 100_000_000
_SECOND_NS, _POLLFD_BYTES = 1_000_000_000, 8


def _system_call(_context: Any, number: Any, one: Any, two: Any, three: Any, four: Any, five: Any) -> Any:
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(_I64, [_I64] * 7)
        function = cgutils.get_or_insert_function(builder.module, function_type, "syscall")  # type: ignore[no-untyped-call]
        return builder.call(function, [*arguments, _I64(0)])

    return types.int64(*[types.int64] * 6), generate


#: system_call(number, five arguments, addresses and descriptors alike int64) -> what it gave, negative where it failed.
system_call: Any = intrinsic(_system_call)
_clock_ns: Any = clock_ns

_compiled: Any = njit(cache=True, nogil=True)


@_compiled
def take_in(line, fd):  # type: ignore[no-untyped-def]
    """Read what has come, a batch at most; gives how many packets."""
    for count in range(_BATCH):
        address = np.int64(line.slots.ctypes.data) + room(line) * SLOT_BYTES
        size_bytes = system_call(_READ, np.int64(fd), address, np.int64(SLOT_BYTES), np.int64(0), np.int64(0))
        if size_bytes <= 0:
            return count
        arrive(line, np.int64(_clock_ns()), size_bytes)
    return _BATCH


@_compiled
def give_out(line, fd):  # type: ignore[no-untyped-def]
    """Write what is due; gives how many packets."""
    count, now_ns = 0, np.int64(_clock_ns())
    while next_ns(line) <= now_ns:
        slot = leave(line, now_ns)
        address = np.int64(line.slots.ctypes.data) + slot * SLOT_BYTES
        if system_call(_WRITE, np.int64(fd), address, line.size[slot], np.int64(0), np.int64(0)) < 0:
            line.counters[REFUSED] += 1
        count += 1
        if count % _BATCH == 0:
            # Writing takes a while: what has become due meanwhile goes too, but what comes in is not left waiting for ever.
            break
    return count


@_compiled
def sleep(timespec, sleep_ns, polled_address, descriptors):  # type: ignore[no-untyped-def]
    """Sleep so long at most, or until one of the descriptors has something to read."""
    timespec[0], timespec[1] = sleep_ns // _SECOND_NS, sleep_ns % _SECOND_NS
    system_call(_PPOLL, polled_address, np.int64(descriptors), np.int64(timespec.ctypes.data), np.int64(0), np.int64(0))


@_compiled
def run(forth, back, source_fd, dest_fd, polled, timespec, stop_address):  # type: ignore[no-untyped-def]
    """Carry packets until the u64 at `stop_address` is not 0 (an event on the third descriptor polled ends a sleep)."""
    while load_u64(np.uint64(stop_address)) == 0:
        moved = (
            give_out(forth, dest_fd) + give_out(back, source_fd) + take_in(forth, source_fd) + take_in(back, dest_fd)
        )
        if moved:
            if forth.settings[GRAIN_NS]:
                # Only the word to stop is listened to: what comes and falls due meanwhile is dealt with together.
                sleep(timespec, forth.settings[GRAIN_NS], np.int64(polled.ctypes.data) + 2 * _POLLFD_BYTES, 1)
            continue
        until_ns = min(next_ns(forth), next_ns(back)) - np.int64(_clock_ns())
        if until_ns > 0:
            sleep(timespec, min(until_ns, _LONGEST_SLEEP_NS), np.int64(polled.ctypes.data), 3)
