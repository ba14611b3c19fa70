"""One incoming migration: the script of its phases, and its one failure exit.

    greet -> offer -> shell guest, armed -> rounds land -> switchover installed -> READY -> HANDOVER
    -> take over (the other half of the commit point) -> faults and pushes -> every page resident -> aftermath

Until HANDOVER any failure fences the session, ends the shell guest and tells the source, which runs on. After it this host owns the
guest: a lost link pauses post-copy with all state kept (postcopy.py), and where a daemon dies its successor adopts the guest and
goes on there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict
from typing import Any

from pagefire.dest_host import aftermath, checkpoint
from pagefire.dest_host.demand_paging import ARRIVAL, DemandPaging
from pagefire.dest_host.house import House
from pagefire.dest_host.journal import LastWord
from pagefire.dest_host.last_word import LAST_WORD_S, say_last_word
from pagefire.dest_host.link import Link
from pagefire.dest_host.postcopy import LINK_ERRORS, Postcopy, Taking
from pagefire.dest_host.session import Session
from pagefire.guest_workload import keepsake
from pagefire.guest_workload.control_block import RunState
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.cpu_time import cpu_seconds
from pagefire.guest_workload.page_digests import PAGE_DIGEST_BYTES, differing_pages
from pagefire.protocol import negotiation
from pagefire.protocol.errors import Cancelled, GuestError, LinkLost, PagefireError, RemoteProtocolError
from pagefire.protocol.messages import (
    Accept,
    ClockProbe,
    ClockReading,
    DigestsCompared,
    Failure,
    Foretold,
    Handover,
    Hello,
    Offer,
    PageDigests,
    Populate,
    Populated,
    Ready,
    Switchover,
    Welcome,
)
from pagefire.protocol.ownership import Act, Event, Owner, Ownership
from pagefire.protocol.pages import PageSet, pages_of
from pagefire.protocol.state import Phase, Role, Side, Status
from pagefire.protocol.totals import Served
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.clock import machine_identity
from pagefire.protocol.transport.frame_stream import FrameStream, describe_failure, refusal
from pagefire.protocol.transport.software import software_name
from pagefire.protocol.transport.tasks import beside, in_thread

log = logging.getLogger("pagefire.dest")

#: How long the source may stay silent where an answer is due.
PATIENCE_S = 30.0
#: How long a guest waits whose name is taken: who cancels and tries anew may be here before the word that the first has ended.
_NAME_PATIENCE_S = 1.0


class IncomingMigration:
    """One session. `guest` is set from the shell on, until it has arrived or is gone."""

    def __init__(self, session: Session, name: str, house: House) -> None:
        """Use `asked_for` or `adopted`."""
        self.session = session
        self.name = name
        self.guest: GuestProcess | None = None
        self._house = house
        self._link: Link | None = None
        self._hello: Hello | None = None
        self._offer: Offer | None = None
        self._status = Status.SETUP
        self._error: str | None = None
        self._paging: DemandPaging | None = None
        self._postcopy: Postcopy | None = None
        self._cpu_before_s = cpu_seconds()
        self._loop = asyncio.get_running_loop()
        self._break_in_thread = lambda error: self._loop.call_soon_threadsafe(self._break, error)

    @classmethod
    def asked_for(cls, control: FrameStream, hello: Hello, house: House) -> IncomingMigration:
        """A source has called, with `hello`."""
        migration = cls(Session.fresh(), hello.name, house)
        migration._link, migration._hello = Link(control, hello.silence_s), hello
        return migration

    @classmethod
    async def adopted(cls, guest: GuestProcess, house: House) -> IncomingMigration:
        """Take up what a daemon that is gone had begun, of a guest whose `ARRIVAL` is kept and which is this host's own.

        Raises GuestError.
        """
        found = await in_thread(keepsake.find, guest, ARRIVAL)
        assert found is not None
        record, (ledger_fd,) = found
        session, offer = Session.of_record(record)
        migration = cls(session, offer.name, house)
        migration.guest, migration._offer = guest, offer
        migration._paging = await in_thread(DemandPaging.adopt, guest, ledger_fd, migration._break_in_thread)
        return migration

    @property
    def status(self) -> Status:
        return self._postcopy.status if self._postcopy is not None else self._status

    @property
    def error(self) -> str | None:
        """Why it failed, or is paused."""
        return self._error or (self._postcopy.error if self._postcopy is not None else None)

    @property
    def owns_guest(self) -> bool:
        return self.guest is not None and self.guest.control.owner is Owner.OWNER

    @property
    def missing_pages(self) -> int:
        """Pages that are still only at the source."""
        return self._postcopy.missing_pages if self._postcopy is not None and self.owns_guest else 0

    def served(self) -> Served:
        """Give the faults that were served so far."""
        if self._paging is None:
            return Served()
        return Served(len(self._paging.intake.waits_ns), self._paging.faults.minor_faults)

    def note(self, event: str, **fields: Any) -> None:
        """Note an event of this migration in the daemon's logbook."""
        self._house.logbook.note("destination", self.name, self.session.identity, {"event": event, **fields})

    @property
    def waiting_pages(self) -> int:
        """Pages that vCPUs wait for."""
        return self._postcopy.waiting_pages if self._postcopy is not None and self.owns_guest else 0

    @property
    def is_over_but_for_the_source(self) -> bool:
        """Whether the guest is whole here, and only a source that is out of reach has not heard of it."""
        return self.status is Status.COMPLETED and self._postcopy is not None and self._postcopy.link is None

    async def run(self) -> None:
        """Go through the phases; never raises but for cancellation. `status` and `error` tell how it ended."""
        try:
            taking = Taking()
            if self._hello is not None:
                self.note("phase", phase="setup")
                offer = await self._agree(self._hello)
                guest = await self._prepare(offer)
                await self._control.send(Accept(guest.pid, self._setup_s))
                await self._house.points.reached("dest-accepted")
                await self._install(await self._receive_rounds())
                taking.handover_received_ns = await self._await_handover()
                await self._house.points.reached("dest-handover")
            await self._take_over(taking)
            await self._become_resident()
        except asyncio.CancelledError as error:
            await self._fail(PagefireError("the destination is shutting down"), Status.CANCELLED)
            raise error
        except Exception as error:
            cancelled = isinstance(error, PagefireError) and error.exit_code == Cancelled.exit_code
            await self._fail(error, Status.CANCELLED if cancelled else Status.FAILED)

    def join(self, role: Role, stream: FrameStream) -> None:
        """A further connection of this session has been greeted; takes the stream over. Raises RemoteProtocolError."""
        if self._postcopy is not None:
            self._postcopy.join(role, stream)
        elif self._link is not None:
            self._link.join(role, stream)

    def take_up(self, control: FrameStream, peer_silence_s: float) -> bool:
        """The source asks what became of the session; its connection has been greeted. False: the guest was not taken.

        Then the session is being fenced, whatever is still on its way on the old connection, and the journal answers.
        """
        if self._postcopy is not None:
            self._postcopy.take_up(control, peer_silence_s)
            return True
        self._break(LinkLost("the source asks what became of the session"))
        return False

    # -- before the commit point -------------------------------------------------------------------------------------------

    @property
    def _control(self) -> FrameStream:
        assert self._link is not None
        return self._link.control

    @property
    def _ownership(self) -> Ownership:
        assert self.guest is not None
        return Ownership(Side.DESTINATION, self.guest.control)

    async def _agree(self, hello: Hello) -> Offer:
        version = negotiation.choose_version(hello)
        negotiation.check_capabilities(hello.capabilities, "source")
        await self._control.send(
            Welcome(
                version, list(negotiation.CAPABILITIES), self.session.identity, self.session.secret,
                software_name(), machine_identity(), self._house.limits.silence_s,
            )
        )  # fmt: skip
        while True:
            async with asyncio.timeout(PATIENCE_S):
                message = (await self._control.receive()).message
            match message:
                case ClockProbe(sent_ns):
                    await self._control.send(ClockReading(sent_ns, time.monotonic_ns()))
                case Offer():
                    negotiation.check_offer(message, self._house.limits.max_guest_memory_bytes)
                    if not await self._name_is_free(message.name):
                        raise PagefireError(
                            f"a guest named {message.name} is already here", "", "give it another --name"
                        )
                    return message
                case Failure():
                    raise refusal(message)

    async def _name_is_free(self, name: str) -> bool:
        """Tell whether a guest of that name may come. A session that its source has given up may not have heard of it yet."""
        deadline_s = time.monotonic() + _NAME_PATIENCE_S
        while self._house.name_taken(name):
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(0.01)
        return True

    async def _prepare(self, offer: Offer) -> GuestProcess:
        """Start a shell of the guest, parked, with every page of its memory under our control."""
        began = time.monotonic()
        self.name, self._offer, limits = offer.name, offer, self._house.limits
        config = GuestConfig(
            name=offer.name,
            memory_bytes=offer.memory_bytes,
            resident_bytes=offer.resident_bytes,
            working_set_bytes=offer.working_set_bytes,
            vcpus=offer.vcpus,
            workload=offer.workload,
            seed=offer.seed,
            rate=offer.rate,
            backing=offer.backing,
            shell=True,
            cpus=limits.guest_cpus or None,
            user_workloads=limits.user_workloads,
        )
        path = runtime_directory.guest_path(limits.runtime_dir, limits.stem, self.session.identity.hex()[:8])

        def start() -> GuestProcess:
            # Noted in the thread: a cancellation meanwhile waits for the thread's end, and `_fail` has to find what it started.
            self.guest = GuestProcess.spawn(path, config)
            self._paging = DemandPaging.begin(self.guest, self.session.record(offer), self._break_in_thread)
            return self.guest

        try:
            guest = await in_thread(start)
        except PagefireError:
            # Its last words are in the error; the file would be all that stays of this session.
            path.with_suffix(".log").unlink(missing_ok=True)
            raise
        asyncio.get_running_loop().add_reader(guest.pidfd, self._guest_died)
        assert self._link is not None
        assert self._paging is not None
        self._link.admit(offer.streams, guest.memory, self._paging, limits.silence_s)
        self._setup_s = time.monotonic() - began
        self._status = Status.ACTIVE
        self.note("phase", phase="active")
        log.info("guest=%s phase=setup setup_s=%.3f pid=%d", offer.name, self._setup_s, guest.pid)
        return guest

    async def _receive_rounds(self) -> Switchover:
        """Let pages land and acknowledge rounds until the guest stands still at the source."""
        assert self._link is not None
        while True:
            arrival = await beside(self._control.receive(), self._link.acknowledge_rounds(), self._link.watch())
            match arrival.message:
                case Populate(pages):
                    await self._populate(pages)
                case Foretold() as foretold:
                    await self._foretell(foretold, await self._control.receive_payload(arrival.payload_bytes))
                case Switchover() as switchover:
                    self._switchover_payload = await self._control.receive_payload(arrival.payload_bytes)
                    return switchover
                case Failure() as failure:
                    raise refusal(failure)

    async def _populate(self, pages: PageSet) -> None:
        """Take memory for pages that are announced; holes that have it count as filled, with zeros."""
        assert self.guest is not None
        assert self._paging is not None
        self._paging.intake.check_within(pages)
        if self.guest.memory.unit_pages == 1:
            for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
                await in_thread(self.guest.memory.populate, start, stop)
            self._paging.ledger.mark_filled(pages)
        await self._control.send(Populated())

    async def _foretell(self, foretold: Foretold, coded: bytes) -> None:
        """Note what will be missing, while the guest still runs at the source."""
        guest, paging = self.guest, self._paging
        assert guest is not None
        assert paging is not None

        def note() -> None:
            paging.intake.foretell(checkpoint.foretold_pages(foretold, coded, pages_of(guest.memory.size_bytes)))

        await in_thread(note)

    async def _install(self, switchover: Switchover) -> None:
        """Make the guest ready to run here: its registers, and what is still missing of its memory."""
        link, paging, guest = self._link, self._paging, self.guest
        assert link is not None
        assert paging is not None
        assert guest is not None
        self._status = Status.DEVICE
        self.note("phase", phase="device")
        await self._house.points.reached("dest-switchover")
        if switchover.last_round not in (link.acknowledged, link.acknowledged + 1) or not link.has_fault_connection:
            raise RemoteProtocolError("the source switches over before its pages have arrived")
        paging.intake.check_within(switchover.hot)
        began = time.monotonic()
        registers, missing = checkpoint.read(
            switchover, self._switchover_payload, guest.control.vcpus, pages_of(guest.memory.size_bytes)
        )
        decoded = time.monotonic()
        # The drain: a page of the last round that came later than this could land on one that was already refreshed.
        while link.acknowledged < switchover.last_round:
            await beside(link.acknowledge_round(), link.watch(), link.only_silence())
        drained = time.monotonic()
        guest.control.install_registers(registers)
        guest.control.stop_at = switchover.stop_at
        paging.intake.resume_begins(missing, self._completed, switchover.hot)
        paging.intake.publish_ready(switchover.hot)
        paging.faults.start()
        # From READY on the source may hand over: whoever finds this guest without a daemon has to answer for the session.
        guest.control.session = self.session.identity
        await self._house.points.reached("dest-installed")
        await self._control.send(Ready(decoded - began, drained - decoded, time.monotonic() - drained))
        paging.begin_haste()

    async def _await_handover(self) -> int:
        """Answer digests if they are asked for; gives when HANDOVER came."""
        assert self.guest is not None
        assert self._link is not None
        assert self._paging is not None
        while True:
            arrival = await beside(self._control.receive(), self._link.watch())
            match arrival.message:
                case Handover():
                    if not self.guest.alive:
                        raise GuestError(f"the guest process {self.guest.pid} ended before it was taken")
                    return time.monotonic_ns()
                case PageDigests(pages):
                    self._paging.intake.check_within(pages)
                    digests = await self._control.receive_payload(arrival.payload_bytes)
                    if len(digests) != pages.pages * PAGE_DIGEST_BYTES:
                        raise RemoteProtocolError("the number of digests is not that of their pages")
                    differing = await in_thread(differing_pages, self.guest.memory, pages, digests)
                    await self._control.send(DigestsCompared(differing))
                case Failure() as failure:
                    raise refusal(failure)

    async def _take_over(self, taking: Taking) -> None:
        """Own the guest and let it run: after HANDOVER, or where a daemon that is gone had taken it."""
        guest, paging, offer, points = self.guest, self._paging, self._offer, self._house.points
        assert guest is not None
        assert paging is not None
        assert offer is not None
        # The commit point, this side's half. HANDOVER says that the source has relinquished the guest and will not run it again;
        # OWNER is written before a vCPU is unparked, so that whoever looks at the two control blocks never sees two owners.
        if self._hello is not None:
            assert self._ownership.on(Event.HANDOVER) is Act.RUN
            await points.reached("dest-owner")
            guest.control.resume()
        else:
            assert self._ownership.on(Event.RESTARTED) is Act.RUN
            if guest.control.run_state is RunState.PAUSE:
                guest.control.resume()
            paging.intake.resume_goes_on(self._completed)
            paging.faults.start()
            await in_thread(paging.wake_all)
            asyncio.get_running_loop().add_reader(guest.pidfd, self._guest_died)
        taking.resumed_ns = guest.control.resumed_at_ns
        self._postcopy = Postcopy(self.session, guest, offer, paging, self._ownership, taking, self._house)
        self.note("phase", phase="postcopy-active", missing_pages=paging.ledger.missing)

    # -- after the commit point --------------------------------------------------------------------------------------------

    def _completed(self) -> None:
        """Hear, in any thread, that no page is missing."""
        assert self._postcopy is not None
        self._loop.call_soon_threadsafe(self._postcopy.completed)

    async def _become_resident(self) -> None:
        """Stay until no page is missing, tell the source, see how the guest fares, and give it to the daemon."""
        postcopy, guest, offer = self._postcopy, self.guest, self._offer
        assert postcopy is not None
        assert guest is not None
        assert offer is not None
        self._link = await postcopy.run(self._link)
        if small := await in_thread(guest.give_back_huge_mappings):
            log.warning("guest=%s granules_left_small=%d", self.name, small)
        told = await aftermath.watch(guest, offer, self._cpu_before_s) if self._link is not None else None
        self._let_go()
        self._house.arrived(guest)
        if told is not None:
            try:
                await self._control.send(told)
            except LINK_ERRORS as lost:
                log.warning("guest=%s the source did not hear how it fared: %s", self.name, lost)
            log.info("guest=%s status=completed problems=%d", self.name, len(told.check_problems))
        self._close_link()
        assert self._paging is not None
        self._paging.close()

    # -- the failure exit --------------------------------------------------------------------------------------------------

    async def _fail(self, error: BaseException, status: Status) -> None:
        """The one way out of a failure. The owner decides: not taken, then nothing stays here; taken, then the guest does."""
        self._error = str(error)
        log.error("guest=%s phase=%s failed why=%s", self.name, self.status.value, error)
        if not isinstance(error, PagefireError | OSError | TimeoutError | asyncio.CancelledError):
            log.exception("guest=%s unexpected", self.name, exc_info=error)
        if self._postcopy is not None:
            self._link = self._postcopy.link
        guest, completed = self.guest, self.status is Status.COMPLETED
        self._status, self._postcopy = (Status.COMPLETED if completed else status), None
        phase = self._control.connection.phase if self._link is not None else None
        if guest is not None and self.owns_guest:
            # A guest that dies shows it in whatever was asked of it, some moments before its process has ended.
            if not await in_thread(guest.ends_within, 0 if status is Status.CANCELLED else LAST_WORD_S):
                self._close_link()
                return
            if not completed:
                await self._last_word(LastWord(self.session.secret, "perished", why=self._error))
        elif guest is not None and phase in (Phase.READY, Phase.COMMITTED):
            # COMMITTED: HANDOVER has come, and was not taken.
            self._ownership.on(Event.FAILED)
            told = asdict(describe_failure(error, status.value))
            await self._last_word(LastWord(self.session.secret, "fenced", **told))
        else:
            if guest is not None:
                self._ownership.on(Event.FAILED)
            await self._say(describe_failure(error, status.value))
        self._close_link()
        if guest is not None:
            self._let_go()
            if self._paging is not None:
                self._paging.close()
            await in_thread(guest.terminate)

    async def _last_word(self, last: LastWord) -> None:
        """Write down how the session ended, say it, and forget it again when the source has noted it."""
        journal = self._house.journal
        await in_thread(journal.write, self.session.identity, last)
        await self._house.points.reached("dest-last-word")
        if self._link is not None and await say_last_word(self._control, last):
            journal.forget(self.session.identity)

    async def _say(self, failure: Failure) -> None:
        try:
            async with asyncio.timeout(LAST_WORD_S):
                await self._control.send(failure)
        except (PagefireError, TimeoutError):
            pass

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()

    def _let_go(self) -> None:
        """The guest is somebody else's from now on, or nobody's."""
        assert self.guest is not None
        asyncio.get_running_loop().remove_reader(self.guest.pidfd)
        self.guest = None

    def _guest_died(self) -> None:
        assert self.guest is not None
        asyncio.get_running_loop().remove_reader(self.guest.pidfd)
        self._break(GuestError(f"the guest process {self.guest.pid} at the destination ended", "", "read its log"))

    def _break(self, error: BaseException) -> None:
        """Something besides the control connection failed: whatever the script waits for now ends with this error."""
        if self._postcopy is not None:
            self._postcopy.failed(error)
        elif self._link is not None:
            self._link.break_off(error)
