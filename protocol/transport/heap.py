"""What a daemon's memory allocator and garbage collector must not do while a guest stands still.

Fact: numpy's arrays come from malloc, which maps every larger one afresh and gives it back when it is freed (mallopt(3)); each page
of it is then a page fault and a page to zero: some 10 us each on a virtual machine whose host takes idle memory back (seen in the
stun: 3.3 ms with 238 faults for noting the missing pages). With freed memory kept, a union of 20,000 runs fell from 2.6 to 1.05 ms.
Python's collector walks every object whenever it finds it due; that it ever did in a stun was not seen.
Decision: freed memory stays in the heap and is used again, and what was there at the start is never walked. Cost: a heap never
shrinks by itself, and it grows by what lies in cycles until the collector finds it due (a megabyte a migration, arrays of a
migration that is over), and by the holes that leaves: two daemons grew from 83 to 121 MB in 100 migrations of one guest, of which
14 MB each were in use all the time. So both are dealt with when a migration begins, and when it has ended (`tidy`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

#: malloc.h. Each setting also ends glibc's own adapting of the mmap threshold.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: The largest that glibc takes on 64 bits: larger blocks are mapped whatever one asks.
_MMAP_THRESHOLD_BYTES = 32 << 20
_NEVER_TRIM_BYTES = 1 << 30


def settle() -> bool:
    """Keep freed memory, in one heap for all threads, and take what exists out of the collector's sight; once, at the start.

    False where the C library is not glibc and does not take the settings: slower, not wrong.
    """
    gc.collect()
    gc.freeze()
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _NEVER_TRIM_BYTES),
        (_M_ARENA_MAX, 1),
    )
    return all(mallopt(what, value) for what, value in settings)


def tidy() -> None:
    """Free what lies in cycles, and give free memory back to the system, holes in the heap included: 1.5 ms where it is 20 MiB."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
