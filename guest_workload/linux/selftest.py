"""What this kernel may be trusted with, found by doing it: not by its version.

Each test builds the situation in which a kernel is known to have lost a write or to have invented one, on a few pages of this
process's own memory, and compares. The tracker of the source is chosen by the result; `pagefire doctor` prints it.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from pagefire.guest_workload.linux import memfd, pagemap, userfaultfd
from pagefire.protocol.pages import GRANULE_BYTES, PAGE_BYTES

_MADV_DONTNEED = 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Trial(NamedTuple):
    name: str
    passed: bool
    detail: str


def tracking_self_test() -> list[Trial]:
    """Try asynchronous write tracking on this process; a kernel without it gives one failed trial that says so."""
    try:
        uffd = userfaultfd.open_uffd(userfaultfd.TRACK_ASYNC)
    except OSError as error:
        return [Trial("userfaultfd with WP_ASYNC", False, error.strerror or str(error))]
    memory = memfd.Mapping(memfd.create("pagefire-selftest", 4 * GRANULE_BYTES))
    pagemap_fd = pagemap.open_pagemap(os.getpid())
    try:
        userfaultfd.register(uffd, memory.address, memory.size_bytes, userfaultfd.Mode.WP)
        return _trials(memory, pagemap.Scanner(pagemap_fd, 4096))
    except OSError as error:
        return [Trial("PAGEMAP_SCAN", False, error.strerror or str(error))]
    finally:
        os.close(pagemap_fd)
        os.close(uffd)
        memory.close()


def _trials(memory: memfd.Mapping, scanner: pagemap.Scanner) -> list[Trial]:
    cells = memory.array

    def collect() -> set[int]:
        regions = scanner.scan(
            memory.address, memory.address + memory.size_bytes,
            flags=pagemap.PROTECT, require=pagemap.WRITTEN_ONLY, give=pagemap.WRITTEN_ONLY,
        )  # fmt: skip
        pages = ((regions[:, :2] - memory.address) // PAGE_BYTES).tolist()
        return {page for start, stop in pages for page in range(start, stop)}

    def trial(name: str, expected: set[int]) -> Trial:
        found = collect()
        lost, invented = sorted(expected - found), sorted(found - expected)
        return Trial(
            name, not lost and not invented, f"lost {lost[:4]}, invented {invented[:4]}" if lost or invented else ""
        )

    cells[:GRANULE_BYTES:PAGE_BYTES] = 1
    collect()
    results = [trial("a clean page reads clean", set())]
    cells[5 * PAGE_BYTES] = 2
    results.append(trial("a written page reads written", {5}))
    cells[7 * PAGE_BYTES] = 3
    if _libc.madvise(memory.address + 7 * PAGE_BYTES, PAGE_BYTES, _MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "madvise")
    results.append(trial("a page written and then unmapped reads written", {7}))
    hole = 2 * GRANULE_BYTES // PAGE_BYTES + 9
    cells[hole * PAGE_BYTES] = 4
    results.append(trial("a first write into a hole reads written", {hole}))
    results.append(trial("what was collected is protected again", set()))
    return results
