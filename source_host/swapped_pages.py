"""The guest's pages that this host has swapped out: left out of pre-copy, told in a bitmap of their own, moved last.

To read them in for a round would cost the host its memory and the link a place, for pages that the guest has not touched for long.
They are found without reading them: the file says which pages have contents (SEEK_DATA), mincore(2) which of those are in memory.
Not by the page map, whose "swapped" means an entry that is not present: it calls clean pages so, and shows a written one that was
swapped out as nothing (both checked).

A swapped page that the guest writes is in memory again, and dirty: from then on it is a page like others. One that it only reads
stays in the set, which costs nothing but its place in the order. Looked for before each round and never in the stun.
"""

from __future__ import annotations

from pathlib import Path

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.pages import PageSet
from pagefire.source_host.tracking import Collected

_SWAPS = Path("/proc/swaps")
_VMSTAT = Path("/proc/vmstat")


class SwappedPages:
    """Which pages of one guest stay where they are until the end; for one thread at a time."""

    def __init__(self, memory: Mapping, *, enabled: bool) -> None:
        """Look at a guest's memory; `enabled` is False where every page has to go before the resume."""
        self._memory = memory
        # What lies on hugetlb is never swapped out (and mincore(2) calls absent what only this process has not mapped).
        self._enabled = enabled and memory.unit_pages == 1 and has_swap()
        #: Pages that no round has sent because they were swapped out.
        self.pages = PageSet.empty()

    def leave(self, collected: Collected) -> Collected:
        """Give what of a collection is to be sent in a round; what is swapped out stays, what was and has been written does not."""
        if not self._enabled:
            return collected
        sent = self._memory.in_memory(collected.written)
        self.pages = (self.pages - sent - collected.holes) | (collected.written - sent)
        return Collected(sent, collected.holes)

    def give_back(self) -> PageSet:
        """Leave nothing out any more; gives what has been left out so far."""
        self._enabled = False
        given_back, self.pages = self.pages, PageSet.empty()
        return given_back


def has_swap() -> bool:
    """Ask whether this host has any swap space on."""
    try:
        return len(_SWAPS.read_text(encoding="ascii").splitlines()) > 1
    except OSError:
        return False


def swapped_in_pages() -> int | None:
    """Count the pages that this host has read in from swap since it started, for whomever; None where the kernel does not tell."""
    for line in _VMSTAT.read_text(encoding="ascii").splitlines():
        if line.startswith("pswpin "):
            return int(line.split()[1])
    return None
