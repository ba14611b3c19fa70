"""What a dirty tracker is.

A tracker tells which pages the guest wrote since the last time it was asked. Order is everything: a page is cleared and protected
first and read afterwards, so that a store between the two makes it dirty again (0 wrong copies in 2,700 stops; the other order
loses writes). Whoever reads a page that `collect_and_clear` gave may therefore read a torn page, never a forgotten one.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from pagefire.guest_workload.linux.calls import Calls
from pagefire.protocol.pages import PageSet


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection found: `written` pages have contents; `holes` read as written but hold nothing (they are zero)."""

    written: PageSet
    holes: PageSet

    def __bool__(self) -> bool:
        return bool(self.written or self.holes)

    def __or__(self, later: Collected) -> Collected:
        """Add a later collection; a page is what it was in the later one."""
        return Collected((self.written - later.holes) | later.written, (self.holes - later.written) | later.holes)


class Granularity(enum.Enum):
    """What is protected at once: 4 KiB pages, or 2 MiB granules, broken down to pages where they fire, or (auto) where it pays.

    On hugetlb granules stay what they are: the kernel does not divide them.
    """

    PAGE = "4K"
    GRANULE = "2M"
    AUTO = "auto"


NOTHING = Collected(PageSet.empty(), PageSet.empty())


class DirtyTracker(Protocol):
    """Tracks one guest's writes between `register` and `remove`; used by one thread at a time.

    Who makes the calls of `protection`, when, and while which vCPUs run, is the install policy's business (trace_install.py).
    """

    name: str
    granularity: Granularity
    #: First stores to something protected, as far as they have been collected.
    fires: int

    @property
    def answers_ns(self) -> Collection[int]:
        """How long this host took to answer each batch of fires, in ns; empty where the kernel notes them by itself."""

    def register(self) -> PageSet:
        """Begin: watch guest memory; gives the granules that hold data, all of which are still to be protected.

        May take some time to look at how the guest writes (Granularity.AUTO: a tenth of a second).
        """

    def protection(self, granules: PageSet, step_pages: int | None = None) -> Calls:
        """List the system calls that protect some granules, each `step_pages` at most (None: a run of granules a call)."""

    def adopt(self, granules: PageSet) -> PageSet:
        """Note that granules have just been protected; gives the pages in them that have contents, to be sent afterwards."""

    def collect_and_clear(self) -> Collected:
        """Give the pages written since the last call (or since they were protected) and protect them again."""

    def written_so_far(self) -> PageSet:
        """Give the pages written since the last collection, and change nothing: the next one gives them too.

        For counting: what has appeared where nothing was known to be is missing.
        """

    def collect_last(self) -> Collected:
        """Give the same while the guest stands still for good: nothing is protected again, which is most of the cost."""

    def remove(self) -> None:
        """End tracking, at any time and more than once; the guest then writes at full speed."""
