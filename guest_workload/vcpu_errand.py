"""The vCPU's side of an errand (`errand.py`): take calls off the list and make them, without the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from pagefire.guest_workload import control_block as block_layout
from pagefire.guest_workload.atomics import add_u32, load_u32, load_u64, store_u32
from pagefire.guest_workload.native import futex_wake_all, ioctl

_CLAIMED = np.uint64(block_layout.AT_CLAIMED)
_FD = np.uint64(block_layout.AT_ERRAND_FD)
_REQUEST = np.uint64(block_layout.AT_ERRAND_REQUEST)
_TABLE = np.uint64(block_layout.AT_ERRAND_TABLE)
_STRIDE = np.uint64(block_layout.AT_ERRAND_STRIDE)
_CALLS = np.uint64(block_layout.AT_ERRAND_CALLS)
_NEXT = np.uint64(block_layout.AT_ERRAND_NEXT)
_DONE = np.uint64(block_layout.AT_ERRAND_DONE)
_ERROR = np.uint64(block_layout.AT_ERRAND_ERROR)
_WORKERS = np.uint64(block_layout.AT_ERRAND_WORKERS)
_EVERY = np.uint32(block_layout.EVERY_VCPU)
_ONE, _MINUS_ONE = np.uint32(1), np.uint32(0xFFFF_FFFF)


@njit(types.boolean(types.uint64, types.uint32), nogil=True, cache=True)
def is_claimed(header, mine):  # type: ignore[no-untyped-def]
    """Ask whether the vCPU whose number + 1 is `mine` has to do the errand."""
    claimed: Any = load_u32(header + _CLAIMED)
    return claimed in (mine, _EVERY)


@njit(types.void(types.uint64, types.uint32), nogil=True, cache=True)
def do_errand(header, mine):  # type: ignore[no-untyped-def]
    """Make calls until none is left; comes back at once when the errand ended meanwhile."""
    # Counted before the second look: either the host that ends the errand sees this vCPU counted, or this one sees the end.
    add_u32(header + _WORKERS, _ONE)
    if is_claimed(header, mine):
        calls = load_u32(header + _CALLS)
        while load_u32(header + _NEXT) < calls:
            call = add_u32(header + _NEXT, _ONE)
            if call >= calls:
                break
            argument = load_u64(header + _TABLE) + np.uint64(call) * load_u64(header + _STRIDE)
            error = ioctl(load_u32(header + _FD), load_u64(header + _REQUEST), argument)
            if error != np.uint32(0):
                store_u32(header + _ERROR, error)
            if np.uint32(add_u32(header + _DONE, _ONE) + _ONE) == calls:
                futex_wake_all(header + _DONE)
    add_u32(header + _WORKERS, _MINUS_ONE)
