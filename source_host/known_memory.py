"""What a tracker knows of a guest's memory: which granules hold data, so that holes cost nothing.

Memory is divided into *known* granules, which hold data and are traced, and gaps, which did not when they were last looked at.
Protecting a hole installs a marker (all of 64 GiB of holes take 128 MiB of page tables), so gaps are left alone and the file itself
is asked (SEEK_DATA) whether data has appeared there. A granule in which it has becomes known: it is protected first and looked at
afterwards, and what is then found in it counts as written. Reading a hole through a mapping would allocate it; asking does not.
"""

from __future__ import annotations

from pagefire.guest_workload.linux.memfd import data_among
from pagefire.protocol.pages import GRANULE_PAGES, PageSet, pages_of
from pagefire.source_host.tracking import Collected


class KnownMemory:
    """The known granules of one guest; used by one thread at a time."""

    def __init__(self, memory_fd: int, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.granules = PageSet.empty()
        self._fd = memory_fd
        self._total_pages = pages_of(memory_bytes)
        self._solid = PageSet.empty()

    def appeared(self) -> PageSet:
        """Find the pages with contents that lie in no known granule."""
        return data_among(self._fd, PageSet.span(0, self._total_pages) - self.granules)

    def new_granules(self, appeared: PageSet) -> PageSet:
        """Give the granules around such pages, to be protected and adopted."""
        return appeared.rounded(GRANULE_PAGES, self._total_pages) - self.granules

    def adopt(self, granules: PageSet) -> PageSet:
        """Take granules that have just been protected for known; gives the pages in them that have contents."""
        extents = data_among(self._fd, granules)
        self.granules |= granules
        self._solid |= _whole_granules(extents)
        return extents

    def classified(self, dirty: PageSet) -> Collected:
        """Tell what was written from what is a hole and only reads as written."""
        # Only a granule that had holes can have reported one: elsewhere the file need not be asked.
        doubtful = dirty - self._solid
        holes = doubtful - self.with_contents(doubtful)
        return Collected(dirty - holes, holes)

    def with_contents(self, pages: PageSet) -> PageSet:
        """Leave out of some pages those that are holes."""
        return data_among(self._fd, pages)


def _whole_granules(extents: PageSet) -> PageSet:
    """Give the granules that have no hole: the part of each extent between its first and its last granule boundary."""
    starts = -(-extents.starts // GRANULE_PAGES) * GRANULE_PAGES
    return PageSet.of_runs(starts, extents.stops // GRANULE_PAGES * GRANULE_PAGES)
