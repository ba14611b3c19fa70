"""What a daemon's memory allocator and garbage collector must not do while a guest stands still.

Fact: numpy's arrays come from malloc, which maps every larger one afresh and gives it back when it is freed (mallopt(3)); each page
of it is then a page fault and a page to zero: some 10 us each on a virtual machine whose host takes idle memory back (seen in the
stun: 3.3 ms with 238 faults for noting the missing pages). With freed memory kept, a union of 20,000 runs fell from 2.6 to 1.05 ms.
Python's collector walks every object whenever it finds it due; that it ever did in a stun was not seen.
Decision: freed memory stays in the heap and is used again, and what was there at the start is never walked. Cost: a daemon keeps
the largest heap that it ever needed, some tens of MiB for a large dirty bitmap.
"""

from __future__ import annotations

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
