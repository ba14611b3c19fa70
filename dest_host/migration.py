"""One incoming migration: the script of its phases, and its one failure exit.

    greet -> offer -> shell guest, armed -> rounds land -> switchover installed -> READY -> HANDOVER
    -> take over (the other half of the commit point) -> faults and pushes -> every page resident -> aftermath

Until HANDOVER any failure fences the session, ends the shell guest and tells the source, which runs on. After it this host owns the
guest: a lost link pauses post-copy with all state kept, and vCPUs that need no missing page run on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagefire.dest_host.fault_handler import FaultHandler
from pagefire.dest_host.intake import Intake, percentiles_us
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.page_receiver import PageReceiver
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.control_block import Owner
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.cpu_time import cpu_seconds
from pagefire.guest_workload.linux.memory_use import memory_use_bytes
from pagefire.guest_workload.page_digests import PAGE_DIGEST_BYTES, differing_pages
from pagefire.protocol import negotiation
from pagefire.protocol.bitmap import decode_bitmap
from pagefire.protocol.errors import GuestError, LinkLost, PagefireError, RemoteProtocolError
from pagefire.protocol.messages import (
    Accept,
    Aftermath,
    ClockProbe,
    ClockReading,
    DigestsCompared,
    Failure,
    Handover,
    Hello,
    Offer,
    PageDigests,
    Populate,
    Populated,
    Ready,
    Released,
    Resident,
    Resumed,
    RoundReceived,
    Switchover,
    Welcome,
)
from pagefire.protocol.pages import PageSet, pages_of
from pagefire.protocol.state import Role, Status
from pagefire.protocol.transport.clock import machine_identity
from pagefire.protocol.transport.frame_stream import FrameStream, describe_failure, refusal
from pagefire.protocol.transport.software import software_name
from pagefire.protocol.transport.tasks import beside, in_thread, uninterrupted

log = logging.getLogger("pagefire.dest")

#: How long the source may stay silent where an answer is due.
PATIENCE_S = 30.0
_BUCKET_NS = 10_000_000


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What this daemon's owner allows a guest that comes here."""

    runtime_dir: Path
    max_guest_memory_bytes: int
    guest_cpus: tuple[int, ...]
    user_workloads: tuple[str, ...]


class IncomingMigration:
    """One session. `guest` is set once the shell exists and stays here after a completed migration."""

    def __init__(
        self, control: FrameStream, hello: Hello, limits: HostLimits, name_taken: Callable[[str], bool]
    ) -> None:
        self.session = os.urandom(16)
        self.secret = os.urandom(16)
        self.status = Status.SETUP
        self.name = hello.name
        self.guest: GuestProcess | None = None
        self.error: str | None = None
        self._control = control
        self._hello = hello
        self._limits = limits
        self._name_taken = name_taken
        self._receivers: list[PageReceiver] = []
        self._streams = 0
        self._fault_stream: asyncio.Future[FrameStream] = asyncio.get_running_loop().create_future()
        self._broken = asyncio.Event()
        self._break_error: BaseException | None = None
        self._complete = asyncio.Event()
        self._round_ends: dict[int, int] = {}
        self._acknowledged = 0
        self._cpu_before_s = cpu_seconds()
        self._to_acknowledge: asyncio.Queue[int] = asyncio.Queue()

    @property
    def owns_guest(self) -> bool:
        return self.guest is not None and self.guest.control.owner is Owner.OWNER

    @property
    def missing_pages(self) -> int:
        """Pages that are still only at the source."""
        return self._ledger.missing if self.owns_guest else 0

    async def run(self) -> None:
        """Go through the phases; never raises but for cancellation. `status` and `error` tell how it ended."""
        try:
            offer = await self._agree()
            guest = await self._prepare(offer)
            await self._control.send(Accept(guest.pid, self._setup_s))
            switchover = await self._receive_rounds()
            await self._install(switchover)
            handover_ns = await self._await_handover()
            self._take_over(guest)
            await self._control.send(Resumed(handover_ns, guest.control.resumed_at_ns))
            await self._become_resident(guest)
            await self._finish(guest, offer, switchover)
        except asyncio.CancelledError as error:
            await self._fail(PagefireError("the destination is shutting down"), Status.CANCELLED)
            raise error
        except Exception as error:
            await self._fail(error, Status.FAILED)

    def join(self, role: Role, stream: FrameStream) -> None:
        """A further connection of this session has been greeted; takes the stream over. Raises RemoteProtocolError."""
        if self.guest is None or self.status is not Status.ACTIVE:
            raise RemoteProtocolError("the session takes no further connections now", self.status.value)
        if role is Role.FAULT:
            if self._fault_stream.done():
                raise RemoteProtocolError("a second fault connection")
            self._fault_stream.set_result(stream)
            return
        if len(self._receivers) >= self._streams:
            raise RemoteProtocolError("more page connections than were agreed on", f"{self._streams} agreed")
        loop = asyncio.get_running_loop()
        wire = stream.detach()
        receiver = PageReceiver(
            wire,
            stream.connection,
            Landing(wire, self.guest.memory, self._ledger),
            self._intake,
            on_round_end=lambda number: loop.call_soon_threadsafe(self._round_ended, number),
            on_end=lambda error: loop.call_soon_threadsafe(self._break, error),
        )
        self._receivers.append(receiver)
        receiver.start()

    # -- before the commit point -------------------------------------------------------------------------------------------

    async def _agree(self) -> Offer:
        version = negotiation.choose_version(self._hello)
        negotiation.check_capabilities(self._hello.capabilities, "source")
        await self._control.send(
            Welcome(
                version, list(negotiation.CAPABILITIES), self.session, self.secret, software_name(), machine_identity()
            )
        )
        while True:
            async with asyncio.timeout(PATIENCE_S):
                message = (await self._control.receive()).message
            match message:
                case ClockProbe(sent_ns):
                    await self._control.send(ClockReading(sent_ns, time.monotonic_ns()))
                case Offer():
                    negotiation.check_offer(message, self._limits.max_guest_memory_bytes)
                    if self._name_taken(message.name):
                        raise PagefireError(
                            f"a guest named {message.name} is already here", "", "give it another --name"
                        )
                    return message
                case Failure():
                    raise refusal(message)

    async def _prepare(self, offer: Offer) -> GuestProcess:
        """Start a shell of the guest, parked, with every page of its memory under our control."""
        began = time.monotonic()
        self.name, self._streams = offer.name, offer.streams
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
            cpus=self._limits.guest_cpus or None,
            user_workloads=self._limits.user_workloads,
        )
        path = self._limits.runtime_dir / f"in-{self.session.hex()[:8]}.guest"

        def start() -> GuestProcess:
            # Noted in the thread: a cancellation meanwhile waits for the thread's end, and `_fail` has to find what it started.
            self.guest = GuestProcess.spawn(path, config)
            return self.guest

        try:
            guest = await in_thread(start)
        except PagefireError:
            # Its last words are in the error; the file would be all that stays of this session.
            path.with_suffix(".log").unlink(missing_ok=True)
            raise
        asyncio.get_running_loop().add_reader(guest.pidfd, self._guest_died)
        unit_pages, total_pages = guest.memory.unit_pages, pages_of(offer.memory_bytes)
        features = userfaultfd.DEMAND_PAGING if unit_pages == 1 else userfaultfd.DEMAND_PAGING_HUGETLB
        self._uffd = await in_thread(guest.open_uffd, features, keep=True)
        self._publisher = Publisher(self._uffd, guest.address, offer.memory_bytes, unit_pages)
        self._publisher.arm()
        self._ledger = Ledger(total_pages, unit_pages)
        if unit_pages > 1:
            self._ledger.mark_filled(PageSet.span(0, total_pages))  # with zeros: see memfd.create
        self._intake = Intake(self._ledger, self._publisher, total_pages, unit_pages)
        self._faults = FaultHandler(
            self._uffd, guest.address, self._ledger, self._intake, self._publisher, on_error=self._break
        )
        self._setup_s = time.monotonic() - began
        self.status = Status.ACTIVE
        log.info("guest=%s phase=setup setup_s=%.3f pid=%d", offer.name, self._setup_s, guest.pid)
        return guest

    async def _receive_rounds(self) -> Switchover:
        """Let pages land and acknowledge rounds until the guest stands still at the source."""
        while True:
            arrival = await beside(self._control.receive(), self._acknowledge_rounds(), self._watch())
            match arrival.message:
                case Populate(pages):
                    await self._populate(pages)
                case Switchover() as switchover:
                    self._switchover_payload = await self._control.receive_payload(arrival.payload_bytes)
                    return switchover
                case Failure() as failure:
                    raise refusal(failure)

    async def _populate(self, pages: PageSet) -> None:
        """Take memory for pages that are announced; holes that have it count as filled, with zeros."""
        assert self.guest is not None
        self._intake.check_within(pages)
        if self.guest.memory.unit_pages == 1:
            for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
                await in_thread(self.guest.memory.populate, start, stop)
            self._ledger.mark_filled(pages)
        await self._control.send(Populated())

    async def _install(self, switchover: Switchover) -> None:
        """Make the guest ready to run here: its registers, and what is still missing of its memory."""
        assert self.guest is not None
        self.status = Status.DEVICE
        if switchover.last_round not in (self._acknowledged, self._acknowledged + 1) or not self._fault_stream.done():
            raise RemoteProtocolError("the source switches over before its pages have arrived")
        self._intake.check_within(switchover.hot)
        began = time.monotonic()
        registers = self._switchover_payload[: switchover.registers_bytes]
        if len(registers) != self.guest.control.registers.nbytes:
            raise RemoteProtocolError(
                "the checkpoint is of another number of vCPUs", f"{len(registers)} bytes of registers"
            )
        missing = self._missing(switchover, pages_of(self.guest.memory.size_bytes))
        if missing.pages != switchover.remaining_pages:
            raise RemoteProtocolError("the bitmap holds another number of pages than announced", f"{missing.pages}")
        if missing & switchover.hot:
            raise RemoteProtocolError("the bitmap names pages that the switchover calls present")
        decoded = time.monotonic()
        # The drain: a page of the last round that came later than this could land on one that was already refreshed.
        while self._acknowledged < switchover.last_round:
            await beside(self._acknowledge_round(), self._watch())
        drained = time.monotonic()
        loop = asyncio.get_running_loop()
        self.guest.control.install_registers(registers)
        self.guest.control.stop_at = switchover.stop_at
        self._intake.resume_begins(missing, lambda: loop.call_soon_threadsafe(self._complete.set))
        self._intake.publish_ready(switchover.hot)
        self._faults.start()
        await self._control.send(Ready(decoded - began, drained - decoded, time.monotonic() - drained))

    def _missing(self, switchover: Switchover, total_pages: int) -> PageSet:
        """Read the bitmaps of what is still at the source: the pages in its memory, and those that it has swapped out."""
        swap_bitmap_at = len(self._switchover_payload) - switchover.swapped_bytes
        bitmap = self._switchover_payload[switchover.registers_bytes : swap_bitmap_at]
        missing = decode_bitmap(switchover.bitmap_form, bitmap, total_pages)
        if not switchover.swapped_bytes:
            return missing
        swapped = decode_bitmap("compacted", self._switchover_payload[swap_bitmap_at:], total_pages)
        if missing & swapped:
            raise RemoteProtocolError("the swap bitmap names pages that the other bitmap names too")
        return missing | swapped

    async def _await_handover(self) -> int:
        """Answer digests if they are asked for; gives when HANDOVER came."""
        assert self.guest is not None
        while True:
            arrival = await beside(self._control.receive(), self._watch())
            match arrival.message:
                case Handover():
                    return time.monotonic_ns()
                case PageDigests(pages):
                    self._intake.check_within(pages)
                    digests = await self._control.receive_payload(arrival.payload_bytes)
                    if len(digests) != pages.pages * PAGE_DIGEST_BYTES:
                        raise RemoteProtocolError("the number of digests is not that of their pages")
                    differing = await in_thread(differing_pages, self.guest.memory, pages, digests)
                    await self._control.send(DigestsCompared(differing))
                case Failure() as failure:
                    raise refusal(failure)

    def _take_over(self, guest: GuestProcess) -> None:
        # The commit point, this side's half. HANDOVER says that the source has relinquished the guest and will not run it again;
        # `owner` is written here before a vCPU is unparked, so that whoever looks at the two control blocks never sees two owners.
        guest.control.owner = Owner.OWNER
        guest.control.resume()
        self.status = Status.POSTCOPY_ACTIVE

    # -- after the commit point --------------------------------------------------------------------------------------------

    async def _become_resident(self, guest: GuestProcess) -> None:
        """Serve faults and take pushed pages until none is missing, then let the guest run without us."""
        if self._ledger.missing:
            faults = self._fault_stream.result()
            landing = Landing(faults.wire, guest.memory, self._ledger)
            try:
                await beside(
                    self._completion(),
                    self._faults.fetch(faults),
                    self._faults.receive(faults, landing),
                    self._watch(),
                )
            except LinkLost as lost:
                await self._pause_postcopy(lost)
            finally:
                landing.close()
        self._publisher.disarm()
        self._faults.stop()
        os.close(self._uffd)
        await in_thread(guest.close_uffd)
        await self._control.send(
            Resident(
                time.monotonic_ns(),
                pushed_pages=self._intake.pushed_pages,
                faulted_pages=self._intake.faulted_pages,
                duplicate_pages=self._ledger.duplicates,
                minor_faults=self._faults.minor_faults,
                fault_us=percentiles_us(self._intake.waits_ns),
                blocktime_s=sum(self._intake.waits_ns) / 1e9,
            )
        )
        log.info("guest=%s phase=resident", self.name)

    async def _pause_postcopy(self, lost: LinkLost) -> None:
        """The link is gone and pages are missing: keep everything, serve what is here, wait."""
        self.status = Status.POSTCOPY_PAUSED
        self.error = f"{self._ledger.missing} pages are still at the source and the link is lost: {lost}"
        log.error("guest=%s status=postcopy-paused missing_pages=%d why=%s", self.name, self._ledger.missing, lost)
        await self._complete.wait()

    async def _finish(self, guest: GuestProcess, offer: Offer, switchover: Switchover) -> None:
        """Let the source free its copy, watch the guest for a while, tell how it fared."""
        self.status = Status.COMPLETED
        await self._control.expect(Released, PATIENCE_S)
        if small := await in_thread(guest.give_back_huge_mappings):
            log.warning("guest=%s granules_left_small=%d", self.name, small)
        cpu_dest_s, cpu_guest_s = cpu_seconds() - self._cpu_before_s, cpu_seconds(guest.pid)
        (own_bytes, tables_bytes), (_, guest_tables_bytes) = memory_use_bytes(), memory_use_bytes(guest.pid)
        await asyncio.sleep(offer.settle_s)
        control = guest.control
        until_ns = time.monotonic_ns() // _BUCKET_NS * _BUCKET_NS
        since_ns = control.resumed_at_ns // _BUCKET_NS * _BUCKET_NS
        buckets = control.buckets(since_ns, until_ns)
        first_commits_ns, commits_here = control.first_commits_ns(), control.commits()
        pause_s, problems, committed = 0.0, list[str](), -1
        if offer.check:
            pause_s, commits_here, problems, committed = await self._check(guest)
        await self._control.send(
            Aftermath(
                first_commits_ns=first_commits_ns.tolist(),
                buckets_since_ns=since_ns,
                buckets=buckets.tolist(),
                cpu_dest_s=cpu_dest_s,
                cpu_guest_s=cpu_guest_s,
                dest_own_bytes=own_bytes,
                dest_tables_bytes=tables_bytes,
                guest_tables_bytes=guest_tables_bytes,
                checked=offer.check,
                check_problems=problems,
                committed_in_memory=committed,
                commits_here=commits_here,
                check_pause_s=pause_s,
            )
        )
        log.info("guest=%s status=completed problems=%d", self.name, len(problems))
        self._close_connections()

    async def _check(self, guest: GuestProcess) -> tuple[float, int, list[str], int]:
        """Pause the guest and let its workload look for what should not be.

        Gives the pause in seconds, the commits that the vCPUs counted here, the problems, the commits that guest memory holds.
        """
        began = time.monotonic()
        guest.control.request_pause()
        try:
            await in_thread(guest.control.wait_parked, None)
            commits_here = guest.control.commits()
            found = await in_thread(guest.check)
        finally:
            guest.control.resume()
        return time.monotonic() - began, commits_here, list(found.problems), found.committed

    # -- the failure exit --------------------------------------------------------------------------------------------------

    async def _fail(self, error: BaseException, status: Status) -> None:
        """The one way out of a failure. The owner decides: not taken, then nothing stays here; taken, then the guest does."""
        self.error = str(error)
        log.error("guest=%s phase=%s failed why=%s", self.name, self.status.value, error)
        if not isinstance(error, PagefireError | OSError | TimeoutError | asyncio.CancelledError):
            log.exception("guest=%s unexpected", self.name, exc_info=error)
        if self.owns_guest:
            if self.status is not Status.COMPLETED:
                self.status = status
            self._close_connections()
            return
        self.status = status
        if self.guest is not None:
            # Fenced before the source hears of it: a HANDOVER that is already on its way finds nobody who would take it.
            self.guest.control.owner = Owner.FENCED
        try:
            async with asyncio.timeout(1.0):
                await self._control.send(describe_failure(error, status.value))
        except (PagefireError, TimeoutError):
            pass
        self._close_connections()
        if self.guest is not None:
            guest, self.guest = self.guest, None
            asyncio.get_running_loop().remove_reader(guest.pidfd)
            if hasattr(self, "_faults"):
                self._faults.stop()
                os.close(self._uffd)
            await in_thread(guest.terminate)

    def _close_connections(self) -> None:
        self._control.close()
        if self._fault_stream.done():
            self._fault_stream.result().close()
        # Each once: its pipes are closed with it, and the numbers may be somebody else's by the next call.
        while self._receivers:
            self._receivers.pop().abort()

    def close(self) -> None:
        """Free what a completed migration held; the guest stays."""
        self._close_connections()

    def _round_ended(self, number: int) -> None:
        """A page connection has brought the round's marker; the last of them acknowledges the round."""
        self._round_ends[number] = self._round_ends.get(number, 0) + 1
        if self._round_ends[number] == self._streams:
            del self._round_ends[number]
            self._to_acknowledge.put_nowait(number)

    async def _acknowledge_rounds(self) -> None:
        while True:
            await self._acknowledge_round()

    async def _acknowledge_round(self) -> None:
        """Wait until a round is here and say so. A Switchover may come meanwhile: a frame that was begun is sent to its end."""
        number = await self._to_acknowledge.get()
        self._acknowledged = number
        await uninterrupted(self._control.send(RoundReceived(number)))

    async def _completion(self) -> None:
        await self._complete.wait()

    async def _watch(self) -> None:
        await self._broken.wait()
        assert self._break_error is not None
        raise self._break_error

    def _guest_died(self) -> None:
        assert self.guest is not None
        asyncio.get_running_loop().remove_reader(self.guest.pidfd)
        self._break(GuestError(f"the guest process {self.guest.pid} at the destination ended", "", "read its log"))

    def _break(self, error: BaseException) -> None:
        """Something besides the control connection failed: whatever the script waits for now ends with this error."""
        self._break_error = self._break_error or error
        self._broken.set()
