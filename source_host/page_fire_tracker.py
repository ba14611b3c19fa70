"""Tracking by page fires: each first write to a protected page stops its vCPU until this host has noted it.

The literal vMotion picture, and what is left below Linux 6.7. A thread reads the events, marks the page, unprotects it and so
lets the vCPU go on: 50-80 us a fire instead of half a microsecond.

One lock makes "mark and unprotect" and "take the marks and protect" exclude each other. Without it a collection could fall between
a mark and its unprotect: the page would be taken as dirty, protected while it still was, and then be unprotected by the late
handler, and every later store to it would be lost.
"""

from __future__ import annotations

import os
import select
import threading

import numpy as np

from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.memfd import data_extents
from pagefire.protocol.pages import PAGE_BYTES, PageSet, pages_of
from pagefire.source_host.tracking import Collected


class PageFireTracker:
    """Owns `uffd`, opened without WP_ASYNC, and the thread that answers its events. `fires` counts them."""

    name = "page-fire"

    def __init__(self, uffd: int, address: int, memory_fd: int, memory_bytes: int) -> None:
        self._uffd = uffd
        self._address = address
        self._memory_fd = memory_fd
        self._memory_bytes = memory_bytes
        self._fired: list[int] = []
        self._lock = threading.Lock()
        self._stop_reading, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._answer_fires, name="page-fires", daemon=True)
        self._removed = False
        self.fires = 0

    def install(self) -> PageSet:
        userfaultfd.register(self._uffd, self._address, self._memory_bytes, userfaultfd.Mode.WP)
        self._thread.start()
        userfaultfd.write_protect(self._uffd, self._address, self._memory_bytes, protect=True)
        return data_extents(self._memory_fd, 0, self._memory_bytes)

    def collect_and_clear(self) -> Collected:
        with self._lock:
            fired, self._fired = self._fired, []
            dirty = PageSet.of_pages(np.array(fired, np.int64))
            for start, count in zip(dirty.starts.tolist(), dirty.counts.tolist(), strict=True):
                self._set_protection(start, count, protect=True)
        return Collected(dirty & PageSet.span(0, pages_of(self._memory_bytes)), PageSet.empty())

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
