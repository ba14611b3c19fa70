"""Guest memory for tests: made with known contents, read without being changed."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.pages import PAGE_BYTES


def fresh(pages: int, name: str = "pagefire-test", *, hugetlb: bool = False) -> memfd.Mapping:
    """Make memory that is all holes (on hugetlb: all zeros); the caller closes it."""
    return memfd.Mapping(memfd.create(name, pages * PAGE_BYTES, hugetlb=hugetlb))


def contents(memory: memfd.Mapping) -> npt.NDArray[np.uint8]:
    """Copy all contents, [pages, 4096], by pread: reading holes through a mapping would allocate them."""
    copy = np.empty(memory.size_bytes, np.uint8)
    view, offset = memoryview(copy), 0
    while offset < memory.size_bytes:
        offset += os.preadv(memory.fd, [view[offset:]], offset)
    return copy.reshape(-1, PAGE_BYTES)


def allocated_pages(memory: memfd.Mapping) -> int:
    """Count the pages that the file holds."""
    return os.fstat(memory.fd).st_blocks * 512 // PAGE_BYTES
