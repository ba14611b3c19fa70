"""Which 2 MiB granules are broken down to 4 KiB pages: all that fired, none, or those of regions where it pays.

A granule that is protected as a whole fires once for any store, and all of it is sent again. Broken down it fires once for each of
its pages, and those alone are sent. So a region that is written throughout is cheaper whole: one fire instead of 512, no page
table, and the same pages to send (2 GiB of huge pages, written at random at full speed, 30% of it: the guest kept 70% of its
commits at 4K, 75% at 2M, 96% where it was left whole). One that is written here and there is cheaper broken down, best before it
has ever fired: its first store has it sent again, 512 pages for one. Which of the two a region is can only be seen where it is laid
out in pages already: hence the probes, a granule of each region, and the look at them before the rest is protected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pagefire.protocol.pages import GRANULE_PAGES, PageSet

#: What is judged as one (32 MiB), and which of its granules is the probe, 20 us each: not the first, which is seldom like what
#: follows it.
REGION_GRANULES, PROBE_AT = 16, 3
#: From this share of its pages on, written between two collections, a granule stays whole: what is sent in vain is less than the
#: fires cost that it saves, on a link of 1 GB/s (4 us a page; 0.5 to 0.9 us a fire, 20 to 160 us a break-down).
DENSE_SHARE = 0.9
#: How long the probes are watched before anything else is protected, and what time between two collections that is judged for.
PRELUDE_S, ROUND_S = 0.1, 1.0
#: So many regions to either side of a sparse one are taken for like it, if they show nothing.
NEAR_REGIONS = 2
#: Less time between two collections tells nothing of density, and who collects so often is about to stop the guest.
LEAST_WINDOW_S = 0.02


class BreakDown(Protocol):
    """Decides about granules that are protected as a whole. Sets of granules hold all their pages."""

    def probes(self, granules: PageSet) -> PageSet:
        """Give those of some granules that are to be watched by pages for `PRELUDE_S` before anything else; none: no prelude."""

    def judge(self, written: PageSet) -> None:
        """Take in which pages of the probes were written in the prelude."""

    def at_once(self, granules: PageSet) -> PageSet:
        """Give those of some granules, protected this moment, to break down without waiting for a fire."""

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        """Give those of the granules `fired`, since the last call, to break down.

        `written` are the pages written meanwhile where that was done before.
        """


class Everywhere:
    """Breaks down whatever fires: vSphere 7's way."""

    def probes(self, granules: PageSet) -> PageSet:
        return PageSet.empty()

    def judge(self, written: PageSet) -> None:
        pass

    def at_once(self, granules: PageSet) -> PageSet:
        return PageSet.empty()

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        return fired


class Nowhere(Everywhere):
    """Breaks nothing down: hugetlb cannot be."""

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        return PageSet.empty()


class WhereSparse:
    """Leaves whole what fires in regions whose probe was written throughout since the last collection; breaks down the rest.

    A region whose probe nobody wrote is left whole at first, since most of those never fire, unless it lies near a sparse one:
    where little is written some probes are missed. When it fires after all, nothing speaks for leaving it so.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._judged_at_s = -LEAST_WINDOW_S
        self._probes = PageSet.empty()
        self._sparse: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def probes(self, granules: PageSet) -> PageSet:
        numbers = _numbers(granules)
        probes = _pages(numbers[numbers % REGION_GRANULES == PROBE_AT])
        self._probes |= probes
        return probes

    def judge(self, written: PageSet) -> None:
        regions, shares = self._shares(written)
        # Of pages that are written at random the share not written falls by the same factor in every equal time.
        sparse = shares < 1 - (1 - DENSE_SHARE) ** (PRELUDE_S / ROUND_S)
        near = (regions[sparse, np.newaxis] + np.arange(-NEAR_REGIONS, NEAR_REGIONS + 1)).ravel()
        self._sparse = near[~np.isin(near, regions[~sparse])]

    def at_once(self, granules: PageSet) -> PageSet:
        numbers = _numbers(granules)
        return self.probes(granules) | _pages(numbers[np.isin(numbers // REGION_GRANULES, self._sparse)])

    def choose(self, fired: PageSet, written: PageSet) -> PageSet:
        now_s = self._now()
        if now_s - self._judged_at_s < LEAST_WINDOW_S:
            return PageSet.empty()
        self._judged_at_s = now_s
        regions, shares = self._shares(written)
        dense = regions[shares >= DENSE_SHARE]
        numbers = _numbers(fired)
        return _pages(numbers[~np.isin(numbers // REGION_GRANULES, dense)])

    def _shares(self, written: PageSet) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Give the regions whose probe was written, and which share of it."""
        granules = (written & self._probes).page_numbers() // GRANULE_PAGES
        begins = np.flatnonzero(np.diff(granules, prepend=-1))
        return granules[begins] // REGION_GRANULES, np.diff(np.append(begins, granules.size)) / GRANULE_PAGES


def _numbers(granules: PageSet) -> npt.NDArray[np.int64]:
    return granules.steps(GRANULE_PAGES).starts // GRANULE_PAGES


def _pages(numbers: npt.NDArray[np.int64]) -> PageSet:
    return PageSet.of_runs(numbers * GRANULE_PAGES, (numbers + 1) * GRANULE_PAGES)
