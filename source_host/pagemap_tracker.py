"""Tracking with PAGEMAP_SCAN: the kernel marks written pages by itself, one call collects and protects them again.

Facts (checked by probe). Holes count as written, so an unfiltered scan of a sparse guest installs page tables for all of it. A
scan filtered by PRESENT loses a page that was written and then unmapped. Only the mask WRITTEN alone, with nothing beside it,
reports such a page on every kernel. Consequence: memory is divided into *known* granules, which hold data, and gaps, which did not.
Known granules are scanned with that one mask, holes in them included; in the gaps the file itself is asked (SEEK_DATA) whether
data has appeared, and a granule in which it has becomes known, is protected, and is then read as wholly written. Cost: a clean
granule 0.5 us a scan; a gap one system call, whatever its size.

What no tracker here sees: a page that the guest gives back (MADV_REMOVE) without having written it since the last collection. The
kernel keeps its protection, so it reads clean, and the destination keeps the contents that the guest has given up.
"""

from __future__ import annotations

import os

import numpy as np

from pagefire.guest_workload.linux import pagemap, userfaultfd
from pagefire.guest_workload.linux.selftest import PROTECT, WRITTEN_ONLY
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet, pages_of
from pagefire.source_host.extents import data_among
from pagefire.source_host.tracking import Collected


class PagemapTracker:
    """The default tracker. Owns `uffd` (its last copy: closing it ends tracing) and a page map of the guest process."""

    name = "pagemap-scan"

    def __init__(self, uffd: int, pid: int, address: int, memory_fd: int, memory_bytes: int) -> None:
        self._uffd: int | None = uffd
        self._address = address
        self._memory_fd = memory_fd
        self._memory_bytes = memory_bytes
        self._total_pages = pages_of(memory_bytes)
        self._pagemap_fd = pagemap.open_pagemap(pid)
        self._scanner = pagemap.Scanner(self._pagemap_fd)
        self._known = PageSet.empty()
        self._solid = PageSet.empty()

    def install(self) -> PageSet:
        assert self._uffd is not None
        userfaultfd.register(self._uffd, self._address, self._memory_bytes, userfaultfd.Mode.WP)
        return self._adopt(data_among(self._memory_fd, PageSet.span(0, self._total_pages)))

    def collect_and_clear(self) -> Collected:
        appeared = self._appeared()
        dirty = self._written(self._known, PROTECT)
        if appeared:
            dirty |= self._adopt(appeared)
        return self._classified(dirty)

    def collect_last(self) -> Collected:
        return self._classified(self._written(self._known, pagemap.Flag.CHECK_WPASYNC) | self._appeared())

    def remove(self) -> None:
        if self._uffd is not None:
            os.close(self._uffd)
            os.close(self._pagemap_fd)
            self._uffd = None

    def _appeared(self) -> PageSet:
        """Find data in what was a gap."""
        return data_among(self._memory_fd, PageSet.span(0, self._total_pages) - self._known)

    def _classified(self, dirty: PageSet) -> Collected:
        # Only a granule that had holes can have reported one: elsewhere the file need not be asked.
        doubtful = dirty - self._solid
        holes = doubtful - data_among(self._memory_fd, doubtful) if doubtful else doubtful
        return Collected(dirty - holes, holes)

    def _adopt(self, appeared: PageSet) -> PageSet:
        """Make the granules around new data known; gives the data in them. Protected first, looked at afterwards."""
        granules = appeared.rounded(GRANULE_PAGES, self._total_pages) - self._known
        self._written(granules, PROTECT)
        extents = data_among(self._memory_fd, granules)
        self._known |= granules
        self._solid |= _whole_granules(extents)
        return extents

    def _written(self, ranges: PageSet, flags: pagemap.Flag) -> PageSet:
        """Find the pages of some granules that were written (or are holes), and treat them as the flags say."""
        starts, stops = [], []
        for start, stop in zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True):
            regions = self._scanner.scan(
                self._address + start * PAGE_BYTES, self._address + stop * PAGE_BYTES,
                flags=flags, require=WRITTEN_ONLY, give=WRITTEN_ONLY,
            )  # fmt: skip
            pages = ((regions[:, :2] - np.uint64(self._address)) // np.uint64(PAGE_BYTES)).astype(np.int64)
            starts.append(pages[:, 0])
            stops.append(pages[:, 1])
        if not starts:
            return PageSet.empty()
        return PageSet.of_runs(np.concatenate(starts), np.concatenate(stops))


def _whole_granules(extents: PageSet) -> PageSet:
    """Give the granules that have no hole: the part of each extent between its first and its last granule boundary."""
    starts = -(-extents.starts // GRANULE_PAGES) * GRANULE_PAGES
    return PageSet.of_runs(starts, extents.stops // GRANULE_PAGES * GRANULE_PAGES)
