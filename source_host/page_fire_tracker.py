"""Tracking by page fires: each first write to a protected page stops its vCPU until this host has noted it.

The literal vMotion picture, and what is left below Linux 6.7. A thread reads the events, marks the page, unprotects it and so
lets the vCPU go on: 50-80 us a fire instead of half a microsecond.

One lock makes "mark and unprotect" and "take the marks and protect" exclude each other. Without it a collection could fall between
a mark and its unprotect: the page would be taken as dirty, protected while it still was, and then be unprotected by the late
handler, and every later store to it would be lost.

As in pagemap_tracker.py only granules that hold data are protected (protecting a hole installs a marker, so all of 64 GiB of holes
takes 128 MiB of page tables), and the file is asked what has appeared in the gaps between them.
"""

from __future__ import annotations

import os
import select
import threading

import numpy as np

from pagefire.guest_workload.linux import userfaultfd
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet, pages_of
from pagefire.source_host.extents import data_among
from pagefire.source_host.tracking import Collected


class PageFireTracker:
    """Owns `uffd`, opened without WP_ASYNC, and the thread that answers its events. `fires` counts them."""

    name = "page-fire"

    def __init__(self, uffd: int, address: int, memory_fd: int, memory_bytes: int) -> None:
        self._uffd = uffd
        self._address = address
        self._memory_fd = memory_fd
        self._memory_bytes = memory_bytes
        self._total_pages = pages_of(memory_bytes)
        self._known = PageSet.empty()
        self._fired: list[int] = []
        self._lock = threading.Lock()
        self._stop_reading, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._answer_fires, name="page-fires", daemon=True)
        self._removed = False
        self.fires = 0

    def install(self) -> PageSet:
        userfaultfd.register(self._uffd, self._address, self._memory_bytes, userfaultfd.Mode.WP)
        self._thread.start()
        return self._adopt(data_among(self._memory_fd, PageSet.span(0, self._total_pages)))

    def collect_and_clear(self) -> Collected:
        appeared = self._appeared()
        with self._lock:
            dirty = self._take_fired()
            self._protect(dirty)
        if appeared:
            dirty |= self._adopt(appeared)
        return self._classified(dirty)

    def collect_last(self) -> Collected:
        with self._lock:
            dirty = self._take_fired()
        return self._classified(dirty | self._appeared())

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

    def _adopt(self, appeared: PageSet) -> PageSet:
        """Protect the granules around new data; gives the data in them. Protected first, looked at afterwards."""
        granules = appeared.rounded(GRANULE_PAGES, self._total_pages) - self._known
        self._protect(granules)
        self._known |= granules
        return data_among(self._memory_fd, granules)

    def _protect(self, pages: PageSet) -> None:
        for start, count in zip(pages.starts.tolist(), pages.counts.tolist(), strict=True):
            self._set_protection(start, count, protect=True)

    def _take_fired(self) -> PageSet:
        fired, self._fired = self._fired, []
        return PageSet.of_pages(np.array(fired, np.int64))

    def _appeared(self) -> PageSet:
        """Find data in what was a gap."""
        return data_among(self._memory_fd, PageSet.span(0, self._total_pages) - self._known)

    def _classified(self, dirty: PageSet) -> Collected:
        there = data_among(self._memory_fd, dirty)
        return Collected(there, dirty - there)

    def _answer_fires(self) -> None:
        poll = select.poll()
        poll.register(self._uffd, select.POLLIN)
        poll.register(self._stop_reading, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop_reading in ready:
                return
            faults = userfaultfd.read_faults(self._uffd)
            pages = ((faults["address"] - self._address) // PAGE_BYTES).astype(np.int64).tolist()
            with self._lock:
                self._fired += pages
                self.fires += len(pages)
                for page in pages:
                    self._set_protection(page, 1, protect=False)

    def _set_protection(self, page: int, count: int, *, protect: bool) -> None:
        try:
            userfaultfd.write_protect(
                self._uffd, self._address + page * PAGE_BYTES, count * PAGE_BYTES, protect=protect
            )
        except OSError:
            if not self._removed:
                raise
