"""All that stands between arriving pages and one guest: its userfaultfd, the ledger, the intake, the publisher, the fault handler.

Begun with the shell, adopted by a daemon that finds the guest without one, ended when no page is missing. What must outlive a
daemon lies in the guest's process: the userfaultfd's copy there keeps waiting vCPUs waiting, and the ledger is shared memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pagefire.dest_host.fault_handler import FaultHandler
from pagefire.dest_host.intake import Intake
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload import keepsake
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.guest_workload.linux.priority_boost import PriorityBoost
from pagefire.protocol.pages import PAGE_BYTES, PageSet, pages_of
from pagefire.protocol.transport.tasks import in_thread

#: The keepsake of a guest whose pages are still arriving: the session's record, and the ledger.
ARRIVAL = "arrival"


class DemandPaging:
    """Owns the userfaultfd until `end`, the ledger's memory until `close`; what it is made of is used directly."""

    def __init__(
        self,
        guest: GuestProcess,
        uffd: int,
        states: memfd.Mapping,
        on_error: Callable[[BaseException], object],
    ) -> None:
        """Take a descriptor and the ledger's memory; use `begin` or `adopt`."""
        self._guest = guest
        self._uffd = uffd
        self._states = states
        self._boost = PriorityBoost()
        total_pages, unit_pages = pages_of(guest.memory.size_bytes), guest.memory.unit_pages
        self.publisher = Publisher(uffd, guest.address, guest.memory.size_bytes, unit_pages)
        self.ledger = Ledger(total_pages, unit_pages, states.array[:total_pages])
        self.intake = Intake(self.ledger, self.publisher, total_pages, unit_pages)
        self.faults = FaultHandler(uffd, guest.address, self.ledger, self.intake, on_error)

    @classmethod
    def begin(
        cls, guest: GuestProcess, record: keepsake.Record, on_error: Callable[[BaseException], object]
    ) -> DemandPaging:
        """Have every page of a parked shell under our control. Blocks; raises FeatureMissing, GuestError, OSError."""
        total_pages, unit_pages = pages_of(guest.memory.size_bytes), guest.memory.unit_pages
        features = userfaultfd.DEMAND_PAGING if unit_pages == 1 else userfaultfd.DEMAND_PAGING_HUGETLB
        states = memfd.Mapping(memfd.create("pagefire-ledger", pages_of(total_pages) * PAGE_BYTES))
        try:
            keepsake.leave(guest, ARRIVAL, record, [states.fd])
            uffd = guest.open_uffd(features, keep=True)
        except BaseException:
            states.close()
            raise
        paging = cls(guest, uffd, states, on_error)
        paging.publisher.arm()
        if unit_pages > 1:
            paging.ledger.mark_filled(PageSet.span(0, total_pages))  # with zeros: see memfd.create
        return paging

    @classmethod
    def adopt(cls, guest: GuestProcess, ledger_fd: int, on_error: Callable[[BaseException], object]) -> DemandPaging:
        """Take up what a daemon that is gone had begun, of a guest that was handed over. Blocks; raises GuestError, OSError.

        What vCPUs wait for is not known: the events are gone with whoever read them. `wake_all`, once the handler serves, makes
        each of them fault again.
        """
        (uffd,) = guest.kept_fds("uffd")
        states = memfd.Mapping(ledger_fd)
        paging = cls(guest, uffd, states, on_error)
        paging.ledger.adopt(memfd.data_extents(states.fd))
        return paging

    def wake_all(self) -> None:
        """Let every vCPU that waits for a page fault again."""
        userfaultfd.wake(self._uffd, self._guest.address, self._guest.memory.size_bytes)

    def begin_haste(self) -> None:
        """The guest runs, or is about to, and pages come: this daemon goes before others, until `release` or `end_haste`."""
        self._boost.begin(self.ledger.missing * PAGE_BYTES)

    def end_haste(self) -> None:
        """No pages come any more. More than once does nothing."""
        self._boost.end()

    async def release(self) -> None:
        """No page is missing: the kernel serves the guest's faults by itself from now on. Raises GuestError, OSError."""
        if self.publisher.armed:
            await in_thread(self.publisher.disarm)
        self.end_haste()

    async def end(self) -> None:
        """After `release`: nobody needs any of this any more. What still comes is dropped. Raises GuestError, OSError."""
        self._close_uffd()
        await in_thread(self._guest.close_uffd)
        await in_thread(keepsake.drop, self._guest, ARRIVAL)

    def close(self) -> None:
        """Let go, when no thread uses any of it any more; the guest's own copies stay. More than once does nothing."""
        self.end_haste()
        self._close_uffd()
        self.ledger.detach()
        self._states.close()

    def _close_uffd(self) -> None:
        if self._uffd >= 0:
            self.faults.stop()
            os.close(self._uffd)
            self._uffd = -1
