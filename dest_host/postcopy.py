"""After the resume: the guest runs here and misses pages, until it misses none, whatever happens to the link.

A link that breaks pauses post-copy with everything kept. vCPUs that need no missing page run on, the others wait; faults on pages
that are here are served all the time. The source connects anew and asks (`take_up`); it is told which pages are missing, and the
two go on from there. What was half-way in comes again: claimed is not received.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pagefire.dest_host.demand_paging import DemandPaging
from pagefire.dest_host.house import House
from pagefire.dest_host.intake import percentiles_us
from pagefire.dest_host.journal import LastWord
from pagefire.dest_host.link import Link
from pagefire.dest_host.session import Session
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.bitmap import encode_bitmap
from pagefire.protocol.errors import LinkLost, RemoteProtocolError
from pagefire.protocol.messages import Offer, Released, Resident, Resumed, Taken
from pagefire.protocol.ownership import Act, Event, Ownership
from pagefire.protocol.pages import pages_of
from pagefire.protocol.state import Role, Status
from pagefire.protocol.transport.frame_stream import FrameStream
from pagefire.protocol.transport.tasks import beside, in_thread

log = logging.getLogger("pagefire.dest")

#: What ends a link and not the migration.
LINK_ERRORS = (LinkLost, RemoteProtocolError, OSError)
#: How long the source may take to say that it has freed its copy, its link lost or not, before the guest is on its own here.
RELEASE_S = 30.0
#: How long the vCPUs have the machine to themselves, at most, from the resume on. Measured: see scripts/bench/README.md.
HEAD_START_S = 0.001
_JOURNAL_RETRY_S = 1.0


@dataclass(slots=True)
class Taking:
    """When the guest was taken, by this host's clock in ns; zeros where a daemon that is gone knew."""

    handover_received_ns: int = 0
    resumed_ns: int = 0


class Postcopy:
    """The guest's pages arrive, over one link or several, until none is missing and the source knows it."""

    def __init__(
        self,
        session: Session,
        guest: GuestProcess,
        offer: Offer,
        paging: DemandPaging,
        ownership: Ownership,
        taking: Taking,
        house: House,
    ) -> None:
        self.status = Status.POSTCOPY_ACTIVE
        #: Why it is paused.
        self.error: str | None = None
        #: How often the source has come back.
        self.recoveries = 0
        #: The link there is.
        self.link: Link | None = None
        self._session, self._guest, self._offer, self._paging = session, guest, offer, paging
        self._ownership, self._taking, self._house = ownership, taking, house
        self._next: asyncio.Queue[Link] = asyncio.Queue()
        self._complete = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def completed(self) -> None:
        """No page is missing any more; called in any thread's stead on the loop."""
        self._complete.set()

    def failed(self, error: BaseException) -> None:
        """The guest died, or its faults cannot be served: `run` ends with this error."""
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()

    @property
    def missing_pages(self) -> int:
        return self._paging.ledger.missing

    @property
    def waiting_pages(self) -> int:
        """Pages that vCPUs wait for at this moment."""
        return len(self._paging.intake.waited_for())

    def take_up(self, control: FrameStream, peer_silence_s: float) -> None:
        """The source has connected anew, and has been greeted: whatever was left of the old link is given up for it."""
        if self.link is not None:
            self.link.break_off(LinkLost("the source has connected anew"))
        self._next.put_nowait(Link(control, peer_silence_s))

    def join(self, role: Role, stream: FrameStream) -> None:
        """A further connection has been greeted; takes the stream over. Raises RemoteProtocolError."""
        if self.link is None:
            raise RemoteProtocolError("the session takes no further connections now", self.status.value)
        self.link.join(role, stream)

    async def run(self, link: Link | None) -> Link | None:
        """Take pages on `link`, and on those that follow it, until none is missing; then tell the source.

        Raises what `failed` was given; `link` is then the one that there was, open.
        """
        self.link = link
        if link is not None:
            await self._tell_resumed(link)
        if not self.missing_pages:
            self._complete.set()
        while not self._complete.is_set():
            await self._on_some_link(self._take_pages)
        await self._house.points.reached("dest-last-page")
        # The guest before all else: until then it waits for this daemon at each page that it was not shown.
        await self._paging.release()
        handler, ledger, intake = self._paging.faults, self._paging.ledger, self._paging.intake
        faulted, pushed = ledger.received()
        told = Resident(
            time.monotonic_ns(),
            pushed_pages=pushed,
            faulted_pages=faulted,
            duplicate_pages=ledger.duplicates,
            minor_faults=handler.minor_faults,
            fault_us=percentiles_us(intake.waits_ns),
            blocktime_s=sum(intake.waits_ns) / 1e9,
        )
        # Written down first: a source that asks must hear it, whatever becomes of this daemon.
        last = LastWord(self._session.secret, "resident")
        await self._write_down(last)
        await self._paging.end()
        counts = {"pushed_pages": pushed, "faulted_pages": faulted, "duplicate_pages": ledger.duplicates}
        self._note("resident", **counts, minor_faults=handler.minor_faults)
        log.info("guest=%s phase=resident", self._offer.name)
        self.status = Status.COMPLETED
        return await self._tell(told)

    async def _tell_resumed(self, link: Link) -> None:
        """Say that the guest runs, which lets the source push, when each vCPU does: taking in what it pushes needs their CPUs.

        A vCPU that misses a page is sent it without that. Where vCPUs have to take turns there is no head start: the sooner all
        pages are here, the sooner none of them waits for this daemon at pages that it was not shown.
        """
        control = self._guest.control
        if control.vcpus <= len(os.sched_getaffinity(0)):
            await in_thread(control.wait_started, HEAD_START_S)
        try:
            await link.control.send(Resumed(self._taking.handover_received_ns, self._taking.resumed_ns))
        except LINK_ERRORS as lost:
            link.break_off(lost)

    async def _write_down(self, last: LastWord) -> None:
        """Write the last word, however long it takes: the guest runs meanwhile, and the source keeps its copy."""
        while True:
            try:
                return await in_thread(self._house.journal.write, self._session.identity, last)
            except OSError as error:
                log.error("guest=%s the journal cannot be written: %s; trying again", self._offer.name, error)
                await asyncio.sleep(_JOURNAL_RETRY_S)

    async def _tell(self, told: Resident) -> Link | None:
        """Say Resident until the source has heard it: it frees its copy then, and says so."""
        deadline = time.monotonic() + RELEASE_S
        released = False

        async def tell(link: Link) -> None:
            nonlocal released
            await link.control.send(told)
            await self._house.points.reached("dest-resident")
            # Not beside `watch`: the source closes its page connections when it hears this.
            await link.control.expect(Released, RELEASE_S)
            self._house.journal.forget(self._session.identity)
            released = True

        while not released and (left_s := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._on_some_link(tell)
            except TimeoutError:
                break
        if not released and self.link is not None:
            self.link.close()
            self.link = None
        return self.link

    async def _on_some_link(self, work: Callable[[Link], Coroutine[Any, Any, None]]) -> None:
        """Do something on the link there is, or on the next one that the source opens; a link that breaks meanwhile is closed."""
        try:
            if self.link is None:
                self.link = await beside(self._next.get(), self._failure())
                await self._answer(self.link)
            await beside(work(self.link), self._failure())
        except LINK_ERRORS as lost:
            await self._pause(lost)

    async def _answer(self, link: Link) -> None:
        """The source asks: the guest is here, and these pages are missing."""
        assert self._ownership.on(Event.ASKED) is Act.SAY_TAKEN
        self.status = Status.POSTCOPY_RECOVER
        missing = self._paging.ledger.forget_unfinished()
        link.admit(self._offer.streams, self._guest.memory, self._paging, self._house.limits.silence_s)
        bitmap = encode_bitmap("compacted", missing, pages_of(self._guest.memory.size_bytes))
        await link.control.send(
            Taken(missing.pages, self._taking.handover_received_ns, self._taking.resumed_ns), bitmap
        )
        self.recoveries += 1
        self._note("recovered", remaining_pages=missing.pages)
        log.info("guest=%s status=postcopy-recover missing_pages=%d", self._offer.name, missing.pages)

    async def _take_pages(self, link: Link) -> None:
        """Let pages come, pushed and fetched, until none is missing; raises LinkLost."""
        await beside(link.can_fetch(), link.watch(), link.only_silence())
        self.status, self.error = Status.POSTCOPY_ACTIVE, None
        self._paging.begin_haste()
        await beside(self._completion(), link.watch(), link.only_silence())

    async def _pause(self, lost: BaseException) -> None:
        """The link is gone: keep everything, serve what is here, wait for the source."""
        self._ownership.on(Event.LOST)
        self._paging.end_haste()
        if self.link is not None:
            self.link.close()
            self.link = None
        if self.status is Status.COMPLETED:
            return
        self.status = Status.POSTCOPY_PAUSED
        self.error = f"{self.missing_pages} pages are still at the source and the link is lost: {lost}"
        self._note("paused", error=str(lost), remaining_pages=self.missing_pages)
        log.error(
            "guest=%s status=postcopy-paused missing_pages=%d waiting_pages=%d why=%s",
            self._offer.name, self.missing_pages, self.waiting_pages, lost,
        )  # fmt: skip

    def _note(self, event: str, **fields: Any) -> None:
        self._house.logbook.note("destination", self._offer.name, self._session.identity, {"event": event, **fields})

    async def _completion(self) -> None:
        await self._complete.wait()

    async def _failure(self) -> None:
        await asyncio.shield(self._failed)
