"""Which 2 MiB granules are broken down to 4 KiB pages when they have fired: all, none, or those of regions where it pays.

A granule that is protected as a whole fires once for any store, and all of it is sent again. Broken down it fires once for each of
its pages, and those alone are sent. So a region that is written throughout is cheaper whole: one fire instead of 512, no page
table, and the same pages to send. One that is written here and there is cheaper broken down. Which of the two a region is can only
be seen where it is broken down already: hence the probes, some granules of each region that are laid out in pages from the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pagefire.protocol.pages import GRANULE_PAGES, PageSet

#: What is judged as one: 64 MiB.
REGION_GRANULES = 32
#: One granule of so many is a probe, 20 us each; not the first, which is seldom like what follows it.
PROBE_EVERY, PROBE_AT = 16, 3
#: From this share of its pages on, written between two collections, a granule stays whole: what is sent in vain is less than the
#: fires cost that it saves, on a link of 1 GB/s (4 us a page; 0.5 to 0.9 us a fire, 20 to 160 us a break-down).
DENSE_SHARE = 0.9
#: Less time between two collections tells nothing of density, and who collects so often is about to stop the guest.
LEAST_WINDOW_S = 0.02


class BreakDown(Protocol):
    """Decides about granules that are protected as a whole. Sets of granules hold all their pages."""

    def probes(self, granules: PageSet) -> PageSet:
        """Give those of some granules, protected this moment, to break down before anything is known of them."""

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        """Give those of the granules `fired`, since the last call, to break down.

        `written` are the pages written meanwhile where that was done before.
        """


class Everywhere:
    """Breaks down whatever fires: vSphere 7's way."""

    def probes(self, granules: PageSet) -> PageSet:
        return PageSet.empty()

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        return fired


class Nowhere:
    """Breaks nothing down: hugetlb cannot be."""

    def probes(self, granules: PageSet) -> PageSet:
        return PageSet.empty()

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        return PageSet.empty()


class WhereSparse:
    """Leaves whole what fires in regions whose probes were written throughout since the last collection; breaks down the rest.

    A region whose probes nobody wrote tells nothing, so nothing speaks for leaving it whole.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._judged_at_s = -LEAST_WINDOW_S
        self._probes = PageSet.empty()

    def probes(self, granules: PageSet) -> PageSet:
        numbers = granules.steps(GRANULE_PAGES).starts // GRANULE_PAGES
        chosen = numbers[numbers % PROBE_EVERY == PROBE_AT]
        probes = PageSet.of_runs(chosen * GRANULE_PAGES, (chosen + 1) * GRANULE_PAGES) & granules
        self._probes |= probes
        return probes

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        now_s = self._now()
        if now_s - self._judged_at_s < LEAST_WINDOW_S:
            return PageSet.empty()
        self._judged_at_s = now_s
        dense = self._dense_regions(written) * REGION_GRANULES * GRANULE_PAGES
        return fired - PageSet.of_runs(dense, dense + REGION_GRANULES * GRANULE_PAGES)

    def _dense_regions(self, written: PageSet) -> npt.NDArray[np.int64]:
        """Find the regions whose probes were written throughout, so far as they were written at all."""
        granules = (written & self._probes).page_numbers() // GRANULE_PAGES
        if not granules.size:
            return granules
        pages = _lengths(granules)
        regions = granules[np.cumsum(pages) - 1] // REGION_GRANULES
        probes = _lengths(regions)
        last = np.cumsum(probes)
        written_pages = np.diff(np.cumsum(pages)[last - 1], prepend=0)
        return regions[last - 1][written_pages >= DENSE_SHARE * GRANULE_PAGES * probes]


def _lengths(ascending: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give the length of each run of equal numbers."""
    begins = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))
    return np.diff(np.append(begins, ascending.size))
