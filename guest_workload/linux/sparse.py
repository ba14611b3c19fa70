"""Arrays of which little is touched: one entry a page of a guest that may have 1.6 thousand million pages, nearly all holes.

Fact: numpy asks the kernel for huge pages for every large array (MADV_HUGEPAGE), so that one byte touched takes 2 MiB, and their
zeroing: the states of a guest of 6 TiB with 256 regions took 535 MiB and 256 such faults, many of them in the stun.

Private, because what is only read of private memory takes none; and not reserved: 16 bytes a page of 6 TiB are 24 GiB, which the
kernel would refuse a host that has less (vm.overcommit_memory 0; with 2 it counts them nevertheless).
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

#: asm-generic/mman-common.h; Python's mmap module names it from 3.13 on.
_MAP_NORESERVE = 0x4000


def sparse_zeros(count: int) -> npt.NDArray[np.uint8]:
    """Make an array of zero bytes that takes memory only where it is written, 4 KiB at a time; freed with its last view.

    Raises OSError where the host keeps strict account of memory and has not so much.
    """
    if not count:
        return np.zeros(0, np.uint8)
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)
