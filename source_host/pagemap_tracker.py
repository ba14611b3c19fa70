"""Tracking with PAGEMAP_SCAN: the kernel marks written pages by itself, one call collects and protects them again.

Facts (checked by probe). Holes count as written, so an unfiltered scan of a sparse guest installs page tables for all of it. A
scan filtered by PRESENT loses a page that was written and then unmapped. Only the mask WRITTEN alone, with nothing beside it,
reports such a page on every kernel. Consequence: known granules (known_memory.py) are scanned with that one mask, holes in them
included, and nothing else is scanned. Cost: a clean granule 0.5 us a scan; a gap one system call, whatever its size.

Granularity. Protected at 4 KiB, memory has 4 KiB entries from then on: UFFDIO_WRITEPROTECT splits what is mapped by 2 MiB. At
2 MiB, by PAGEMAP_SCAN, huge mappings stay and an installation costs a fortieth; but the first store to such a granule makes all of
its pages read written. So a granule that fired can be *broken down* (break_down.py says which are): one UFFDIO_WRITEPROTECT lays
4 KiB entries, in this round it is sent whole, and from the next on its dirty pages are exact. That call clears without reporting;
the granule is copied after it. One that stays whole has been protected again by the scan that found it.

What no tracker here sees: a page that the guest gives back (MADV_REMOVE) without having written it since the last collection. The
kernel keeps its protection, so it reads clean, and the destination keeps the contents that the guest has given up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection

import numpy as np

from pagefire.guest_workload.linux import pagemap, userfaultfd
from pagefire.guest_workload.linux.calls import Calls
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet, pages_of
from pagefire.source_host.break_down import PRELUDE_S, BreakDown, Everywhere
from pagefire.source_host.known_memory import KnownMemory
from pagefire.source_host.tracking import Collected, Granularity

_LOOK: pagemap.Masks = {
    "flags": pagemap.Flag.CHECK_WPASYNC, "require": pagemap.WRITTEN_ONLY, "give": pagemap.WRITTEN_ONLY,
}  # fmt: skip
_PROTECT: pagemap.Masks = {**_LOOK, "flags": pagemap.PROTECT}
#: Memory that is worth a thread in the last scan, and how many there are at most. Final scan of 1, 2 and 8 GiB on two CPUs with one
#: thread: 0.7, 1.2 and 4.4 ms; with two 0.7, 1.0 and 2.8 (medians of 12 migrations each, three times in turn). A half each: shares
#: that either takes one by one are no quicker (8 GiB in 4, 8 or 16 shares: 2.3, 2.2 and 3.0 ms instead of 2.1).
_THREAD_BYTES, _MOST_THREADS = 1 << 30, 8


class PagemapTracker:
    """The default tracker. Owns `uffd` (its last copy: closing it ends tracing) and a page map of the guest process."""

    name = "pagemap-scan"
    answers_ns: Collection[int] = ()

    def __init__(
        self,
        uffd: int,
        pid: int,
        address: int,
        memory_fd: int,
        memory_bytes: int,
        granularity: Granularity = Granularity.PAGE,
        break_down: BreakDown | None = None,
    ) -> None:
        self._uffd: int | None = uffd
        self._address = address
        self.granularity = granularity
        self._break_down = break_down or Everywhere()
        self._memory_bytes = memory_bytes
        self._pagemap_fd = pagemap.open_pagemap(pid)
        self._scanner = pagemap.Scanner(self._pagemap_fd)
        self._team = pagemap.ScanTeam(self._pagemap_fd, team_size(memory_bytes))
        self._known = KnownMemory(memory_fd, memory_bytes)
        #: Granules that are protected as a whole: a store anywhere in one makes all of it read written.
        self._coarse = PageSet.empty()
        self.fires = 0

    def register(self) -> PageSet:
        assert self._uffd is not None
        userfaultfd.register(self._uffd, self._address, self._memory_bytes, userfaultfd.Mode.WP)
        granules = self._known.new_granules(self._known.appeared())
        if probes := self._break_down.probes(granules) if self.granularity is not Granularity.PAGE else PageSet.empty():
            self._lay_pages(probes)
            time.sleep(PRELUDE_S)
            written = self._written(probes)
            self._break_down.judge(self._known.with_contents(written))
        return granules

    def protection(self, granules: PageSet, step_pages: int | None = None) -> Calls:
        assert self._uffd is not None
        steps = granules.steps(step_pages)
        if self.granularity is Granularity.PAGE:
            return userfaultfd.protect_calls(self._uffd, self._address, steps)
        return pagemap.protect_calls(self._pagemap_fd, self._address, steps)

    def adopt(self, granules: PageSet) -> PageSet:
        if self.granularity is not Granularity.PAGE:
            self._coarse |= granules
            self._lay_pages(self._break_down.at_once(granules))
        return self._known.adopt(granules)

    def collect_and_clear(self) -> Collected:
        appeared = self._known.appeared()
        dirty = self._written(self._known.granules, _PROTECT)
        fired = (dirty & self._coarse).rounded(GRANULE_PAGES, pages_of(self._memory_bytes))
        written = dirty - fired
        self.fires += written.pages + fired.pages // GRANULE_PAGES
        self._lay_pages(self._break_down.choose(fired, written))
        dirty |= fired
        if appeared:
            granules = self._known.new_granules(appeared)
            self.protection(granules).issue()
            dirty |= self.adopt(granules)
        return self._known.classified(dirty)

    def written_so_far(self) -> PageSet:
        return self._written(self._known.granules)

    def collect_last(self) -> Collected:
        # The guest stands still, and so its CPUs are free.
        granules, written = self._known.granules, PageSet.empty()
        if granules:
            shares = granules.batches(-(-granules.pages // self._team.members))
            written = self._pages(self._team.scan_ranges([self._addresses(share) for share in shares], **_LOOK))
        return self._known.classified(written | self._known.appeared())

    def remove(self) -> None:
        if self._uffd is not None:
            self._team.close()
            os.close(self._uffd)
            os.close(self._pagemap_fd)
            self._uffd = None

    def _lay_pages(self, granules: PageSet) -> None:
        """Protect granules page by page from now on."""
        assert self._uffd is not None
        if granules:
            userfaultfd.protect_calls(self._uffd, self._address, granules.steps(GRANULE_PAGES)).issue()
            self._coarse -= granules

    def _written(self, ranges: PageSet, masks: pagemap.Masks = _LOOK) -> PageSet:
        """Find the pages of some granules that were written (or are holes), and treat them as the masks say."""
        return self._pages(self._scanner.scan_ranges(*self._addresses(ranges), **masks)) if ranges else ranges

    def _addresses(self, ranges: PageSet) -> tuple[list[int], list[int]]:
        starts, stops = ranges.starts * PAGE_BYTES + self._address, ranges.stops * PAGE_BYTES + self._address
        return starts.tolist(), stops.tolist()

    def _pages(self, regions: pagemap.Regions) -> PageSet:
        pages = ((regions[:, :2] - np.uint64(self._address)) // np.uint64(PAGE_BYTES)).astype(np.int64)
        return PageSet.of_runs(pages[:, 0], pages[:, 1])


def team_size(memory_bytes: int) -> int:
    """Give how many threads are to make the last scan of so much memory."""
    return max(1, min(memory_bytes // _THREAD_BYTES, len(os.sched_getaffinity(0)), _MOST_THREADS))
