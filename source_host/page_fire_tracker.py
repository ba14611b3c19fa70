"""Tracking by page fires: each first write to a protected page stops its vCPU until this host has noted it.

The literal vMotion picture, and what is left below Linux 6.7. A thread reads the events, marks the page, unprotects it and so
lets the vCPU go on: 50-80 us a fire instead of half a microsecond.

One lock makes "mark and unprotect" and "take the marks and protect" exclude each other. Without it a collection could fall between
a mark and its unprotect: the page would be taken as dirty, protected while it still was, and then be unprotected by the late
handler, and every later store to it would be lost.

Only known granules are protected (known_memory.py), at 4 KiB: for shared memory the kernel has no other synchronous protection.
PAGEMAP_SCAN skips mappings that are not tracked asynchronously, and UFFDIO_WRITEPROTECT splits what is mapped by 2 MiB. Memory on
hugetlb cannot be split, so there a fire is one of 2 MiB (`unit_pages`).
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque

import numpy as np

from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.calls import Calls
from pagefire.protocol.pages import PAGE_BYTES, PageSet, pages_of
from pagefire.source_host.known_memory import KnownMemory
from pagefire.source_host.tracking import Collected, Granularity

#: The newest answers that are kept for their percentiles.
_ANSWERS_KEPT = 100_000


class PageFireTracker:
    """Owns `uffd`, opened without WP_ASYNC, and the thread that answers its events.

    `fires` counts them; `answers_ns` holds how long each batch of events, up to 64, took from its reading to its last unprotect.
    """

    name = "page-fire"

    def __init__(self, uffd: int, address: int, memory_fd: int, memory_bytes: int, unit_pages: int = 1) -> None:
        self._uffd = uffd
        self._unit_pages = unit_pages
        self.granularity = Granularity.PAGE if unit_pages == 1 else Granularity.GRANULE
        self._address = address
        self._memory_bytes = memory_bytes
        self._known = KnownMemory(memory_fd, memory_bytes)
        self._fired: list[int] = []
        self._lock = threading.Lock()
        self._stop_reading, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._answer_fires, name="page-fires", daemon=True)
        self._removed = False
        self.fires = 0
        self.answers_ns: deque[int] = deque(maxlen=_ANSWERS_KEPT)

    def register(self) -> PageSet:
        userfaultfd.register(self._uffd, self._address, self._memory_bytes, userfaultfd.Mode.WP)
        self._thread.start()
        return self._known.new_granules(self._known.appeared())

    def protection(self, granules: PageSet, step_pages: int | None = None) -> Calls:
        return userfaultfd.protect_calls(self._uffd, self._address, granules.steps(step_pages))

    def adopt(self, granules: PageSet) -> PageSet:
        return self._known.adopt(granules)

    def collect_and_clear(self) -> Collected:
        appeared = self._known.appeared()
        with self._lock:
            dirty = self._take_fired()
            self.protection(dirty).issue()
        if appeared:
            granules = self._known.new_granules(appeared)
            self.protection(granules).issue()
            dirty |= self.adopt(granules)
        return self._known.classified(dirty)

    def written_so_far(self) -> PageSet:
        with self._lock:
            fired = list(self._fired)
        return self._pages_of(fired)

    def collect_last(self) -> Collected:
        with self._lock:
            dirty = self._take_fired()
        return self._known.classified(dirty | self._known.appeared())

    def remove(self) -> None:
        if self._removed:
            return
        self._removed = True
        # The guest keeps no copy of the descriptor: closing the last one lets every waiting vCPU write.
        os.close(self._stop)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._stop_reading)
        os.close(self._uffd)

    def _take_fired(self) -> PageSet:
        fired, self._fired = self._fired, []
        return self._pages_of(fired)

    def _pages_of(self, fired: list[int]) -> PageSet:
        return PageSet.of_pages(np.array(fired, np.int64)).rounded(self._unit_pages, pages_of(self._memory_bytes))

    def _answer_fires(self) -> None:
        poll = select.poll()
        poll.register(self._uffd, select.POLLIN)
        poll.register(self._stop_reading, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop_reading in ready:
                return
            began_ns = time.monotonic_ns()
            faults = userfaultfd.read_faults(self._uffd)
            units = ((faults["address"] - self._address) // (self._unit_pages * PAGE_BYTES)).astype(np.int64)
            pages = (units * self._unit_pages).tolist()
            with self._lock:
                self._fired += pages
                self.fires += len(pages)
                for page in pages:
                    self._unprotect(page)
            self.answers_ns.append(time.monotonic_ns() - began_ns)

    def _unprotect(self, page: int) -> None:
        try:
            address, size_bytes = self._address + page * PAGE_BYTES, self._unit_pages * PAGE_BYTES
            userfaultfd.write_protect(self._uffd, address, size_bytes, protect=False)
        except OSError:
            if not self._removed:
                raise
