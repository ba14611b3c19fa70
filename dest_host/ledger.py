"""What the destination knows of each page: one byte a page, in memory that is touched only where pages are.

    FILLED     the memfd has contents for it (from any round)
    MISSING    the switchover's bitmap named it: what is here is absent or stale
    CLAIMED    somebody has begun to fill it after the resume
    RECEIVED   it is full; it may be published
    REQUESTED  a fetch for it is under way
    PUBLISHED  it has been shown to the guest; a hint that saves asking the kernel again, nothing is decided by it

Claimed and received are two bits, not one: published on a single bit a page can be seen half-filled (23,641 wrong reads in 291
iterations of the probe; with two, none). A page is claimed by exactly one filler, under the lock; only that filler marks it
received, and only then is it published. The bytes lie in memory that outlives the daemon, and all else follows from them.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux.sparse import sparse_zeros
from pagefire.protocol.pages import PAGE_BYTES, PageSet

FILLED, MISSING, CLAIMED, RECEIVED, REQUESTED, PUBLISHED = 1, 2, 4, 8, 16, 32
#: From so many runs on, with fewer pages each than this, one gather of page numbers costs less than a step a run.
_MANY_RUNS, _SHORT_RUN_PAGES = 16, 64


class Ledger:
    """The pages of one guest; every method is safe in any thread."""

    def __init__(self, total_pages: int, unit_pages: int = 1, states: npt.NDArray[np.uint8] | None = None) -> None:
        """Know nothing of any page. They are shown by units of `unit_pages`, each only as a whole: its last page decides.

        `states` is memory for it, zeros; or what another ledger knew, and then `adopt` follows.
        """
        self._unit_pages = unit_pages
        self.states: npt.NDArray[np.uint8] = sparse_zeros(total_pages) if states is None else states
        self._named = PageSet.empty()
        #: What of `_named` the switchover took back of what was foretold, and what it added; the algebra is left for later.
        self._taken_back, self._added = PageSet.empty(), PageSet.empty()
        self._lock = threading.Lock()
        #: Pages named by the bitmap and not yet received and published.
        self.missing = 0
        #: Pages that came after the resume although they were already claimed.
        self.duplicates = 0

    def filled(self, start: int, stop: int) -> bool:
        """Tell whether every page of the run has contents here."""
        return bool((self.states[start:stop] & FILLED).all())

    def mark_filled(self, pages: PageSet) -> None:
        with self._lock:
            self._add(pages, FILLED)

    def filled_among(self, pages: PageSet) -> PageSet:
        where = pages.index()
        return _chosen(pages, (self.states[where] & FILLED) != 0)

    def foretell(self, pages: PageSet) -> None:
        """Note what the switchover's bitmap will name, as it stands; once, before `set_missing`. Pages may be landing meanwhile."""
        with self._lock:
            self._add(pages, MISSING)
        self._named, self.missing = pages, pages.pages

    def set_missing(self, pages: PageSet, present: PageSet | None = None) -> None:
        """Take over the switchover's bitmap; once, while the guest is parked.

        `pages` are missing beside those that were foretold, of which those that are `present` after all are not. Costs what these
        two cost, however much was foretold.
        """
        present = present or PageSet.empty()
        there = present.index()
        foretold = int(np.count_nonzero(self.states[there] & MISSING))
        self.states[there] &= np.uint8(0xFF ^ MISSING)
        known = int(np.count_nonzero(self.states[pages.index()] & MISSING))
        self._add(pages, MISSING)
        self._taken_back, self._added = present, pages
        self.missing += pages.pages - known - foretold

    def _missing_at_the_resume(self) -> PageSet:
        """Give the pages that the bitmap named, when all of it is known."""
        if self._taken_back or self._added:
            self._named = (self._named - self._taken_back) | self._added
            self._taken_back = self._added = PageSet.empty()
        return self._named

    def adopt(self, extents: PageSet) -> None:
        """Find out what the bytes say that a daemon left which is gone; they are zero outside of `extents`, pages of theirs."""
        found = []
        for start, stop in zip(extents.starts.tolist(), extents.stops.tolist(), strict=True):
            part = self.states[start * PAGE_BYTES : stop * PAGE_BYTES]
            found.append(np.flatnonzero(part & MISSING) + start * PAGE_BYTES)
        self._named = PageSet.of_pages(np.concatenate(found)) if found else PageSet.empty()
        self.missing = self.forget_unfinished().pages

    def forget_unfinished(self) -> PageSet:
        """The link is gone, and nobody fills or asks for a page any more: gives what is still missing, as if nobody ever had.

        A page that was claimed and not received may be half-filled: it has to come again, whole.
        """
        with self._lock:
            named = self._missing_at_the_resume()
            missing = _chosen(named, (self.states[named.index()] & RECEIVED) == 0)
            if missing:
                self.states[missing.index()] &= np.uint8(0xFF ^ (CLAIMED | REQUESTED))
        return missing

    def received(self) -> tuple[int, int]:
        """Count the pages that came after the resume: those that a fault had asked for, and the others."""
        states = self.states[self._missing_at_the_resume().index()]
        states = states[(states & RECEIVED) != 0]
        asked_for = int(np.count_nonzero(states & REQUESTED))
        return asked_for, states.size - asked_for

    def detach(self) -> None:
        """The memory of the states is about to go: whoever looks afterwards finds an empty array and no page."""
        self.states = np.empty(0, np.uint8)
        self._named = self._taken_back = self._added = PageSet.empty()

    def claim(self, pages: PageSet) -> PageSet:
        """Test and set: gives those pages that nobody had claimed and that the bitmap named; they are the caller's to fill."""
        where = pages.index()
        with self._lock:
            fresh = _chosen(pages, (self.states[where] & (MISSING | CLAIMED)) == MISSING)
            self.states[where if fresh is pages else fresh.index()] |= CLAIMED
            self.duplicates += pages.pages - fresh.pages
        return fresh

    def claim_page(self, page: int) -> bool:
        """Test and set for a single page, as `claim` does for many: a vCPU waits for it."""
        with self._lock:
            fresh = int(self.states[page]) & (MISSING | CLAIMED) == MISSING
            if fresh:
                self.states[page] |= CLAIMED
            else:
                self.duplicates += 1
        return fresh

    def page_received(self, page: int) -> None:
        """The caller has filled a page that it had claimed."""
        with self._lock:
            self.states[page] |= FILLED | RECEIVED

    def mark_received(self, pages: PageSet) -> None:
        """The caller has filled pages that it had claimed."""
        with self._lock:
            self.states[pages.index()] |= RECEIVED

    def count_published(self, pages: int) -> bool:
        """The caller has published so many pages that it had received; tells, once, that none is missing any more."""
        with self._lock:
            self.missing -= pages
            return bool(pages) and not self.missing

    def _add(self, pages: PageSet, bits: int) -> None:
        """Set bits of all pages, once for all where the runs are many and short."""
        if len(pages) > _MANY_RUNS and pages.pages < _SHORT_RUN_PAGES * len(pages):
            self.states[pages.page_numbers()] |= np.uint8(bits)
            return
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
            self.states[start:stop] |= np.uint8(bits)

    def request(self, page: int) -> list[int]:
        """Note that a page's unit is to be fetched; gives its pages but for those requested, claimed or not missing."""
        first = page // self._unit_pages * self._unit_pages
        with self._lock:
            unit = self.states[first : first + self._unit_pages]
            wanted = unit & (MISSING | CLAIMED | REQUESTED) == MISSING
            unit[wanted] |= REQUESTED
        return [first + offset for offset in np.flatnonzero(wanted).tolist()]

    def is_zero(self, page: int) -> bool:
        """Tell whether a page is zero without contents here: a hole that the bitmap did not name, or one that came as zero."""
        state = int(self.states[page])
        return not state & FILLED and (not state & MISSING or bool(state & RECEIVED))

    def unpublished(self, pages: PageSet) -> PageSet:
        """Give those of `pages`, which are whole units, that may be published and were not yet."""
        states = self.states[pages.index()]
        return _chosen(pages, self._whole(publishable(states) & ((states & PUBLISHED) == 0)))

    def mark_published(self, start: int, stop: int) -> None:
        with self._lock:
            self.states[start:stop] |= PUBLISHED

    def mark_all_published(self, pages: PageSet) -> None:
        """Do for every run of a set what `mark_published` does for one."""
        with self._lock:
            self._add(pages, PUBLISHED)

    def publishable_around(self, page: int, window_pages: int) -> tuple[int, int]:
        """Give the run around `page`, inside its aligned window, of pages that may be published and were not yet.

        Empty when the page may not be published itself; it is in the run even when it was published already: somebody waits for it.
        """
        window_pages = max(window_pages, self._unit_pages)
        first = page // window_pages * window_pages
        states = self.states[first : first + window_pages]
        ready = self._whole(publishable(states))
        here = page - first
        if not ready[here]:
            return page, page
        ready &= (states & PUBLISHED) == 0
        unit = here // self._unit_pages * self._unit_pages
        ready[unit : unit + self._unit_pages] = True
        blocked = np.flatnonzero(~ready)
        after = int(np.searchsorted(blocked, here))
        start = int(blocked[after - 1]) + 1 if after else 0
        stop = int(blocked[after]) if after < blocked.size else states.size
        return first + start, first + stop

    def _whole(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Leave of a mask over whole units those that are set throughout."""
        if self._unit_pages == 1:
            return mask
        return np.repeat(mask.reshape(-1, self._unit_pages).all(axis=1), self._unit_pages)


def _chosen(pages: PageSet, mask: npt.NDArray[np.bool_]) -> PageSet:
    """Give the pages for which the mask is set; the set itself when it is for all."""
    return pages if mask.all() else PageSet.of_pages(pages.page_numbers()[mask])


def publishable(states: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell for each page whether its contents are here and current: filled, and received if the bitmap named it."""
    kept = states & np.uint8(FILLED | MISSING | RECEIVED)
    ready: npt.NDArray[np.bool_] = (kept == FILLED) | (kept == FILLED | MISSING | RECEIVED)
    return ready
