"""One outgoing migration: the script of its phases, and its one failure exit.

    negotiate -> trace install -> pre-copy rounds -> switchover: quiesce, final scan, checkpoint and bitmap, READY
    -> relinquish (the commit point), HANDOVER -> push and serve faults -> resident -> release

Until the commit point any failure ends with the guest running here at full speed and nothing at the destination. After it the guest
is the destination's, and departure.py brings its last pages there whatever happens to the link. The owner word in the guest's
control block says which, by the rules of protocol/ownership.py; the failure exit asks them and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, replace
from typing import Any

from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.memfd import data_among, data_extents
from pagefire.guest_workload.page_digests import page_digests
from pagefire.protocol.errors import Cancelled, GuestError, PagefireError
from pagefire.protocol.messages import DigestsCompared, PageDigests, Ready, Switchover
from pagefire.protocol.ownership import Act, Event, Ownership
from pagefire.protocol.pages import PageSet, pages_of
from pagefire.protocol.report import MigrationReport, Retuned
from pagefire.protocol.state import Side, Status
from pagefire.protocol.totals import Moved
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.tasks import beside, in_thread
from pagefire.source_host.accounting import Accounting, compression_of, moved_so_far, postcopy_of
from pagefire.source_host.auto_converge import AutoConverge
from pagefire.source_host.departure import Departure, OursAgain, forget_record, leave_record
from pagefire.source_host.guest_tracing import GuestTracing
from pagefire.source_host.last_pages import LastPages
from pagefire.source_host.link import Link
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.policy import BUILT_IN, judge_named
from pagefire.source_host.retuning import retuned
from pagefire.source_host.rounds import Emit, Progress, Rounds
from pagefire.source_host.switchover import Stun
from pagefire.source_host.tracker_choice import choose_tracker
from pagefire.source_host.tracking import NOTHING, Collected, Granularity

log = logging.getLogger("pagefire.source")

#: Digests that one message compares: if every second page differs, the answer still fits a frame.
_DIGEST_BATCH_PAGES = 1 << 16


class OutgoingMigration:
    """Moves one guest. `run` is called once; afterwards `status`, `report` and the guest's owner word tell how it ended."""

    def __init__(self, guest: GuestProcess, options: MigrationOptions, points: Points, emit: Emit) -> None:
        self.options = options
        self.status = Status.SETUP
        self.remaining = PageSet.empty()
        self.report = MigrationReport(mode=options.mode, destination=options.to)
        self._guest = guest
        self._points = points
        self._emit = emit
        self._judge = judge_named(options.policy)
        self.report.policy = options.policy or BUILT_IN
        self.throttling = AutoConverge(guest, options, self.report)
        self._accounting = Accounting(guest)
        self._link = Link(options, guest.config, guest.memory)
        self._tracing = GuestTracing(guest)
        self._rounds = Rounds(
            guest.memory, self._link, self._tracing, self.throttling, emit, self._watch,
            leaves_swapped=options.mode in ("hybrid", "postcopy"),
        )  # fmt: skip
        self._last_pages = LastPages(guest.memory, self._link, self._rounds, options.bitmap)
        self._ownership = Ownership(Side.SOURCE, guest.control)
        #: The part after the commit point.
        self.departure: Departure | None = None
        #: One after which the guest is this host's again: what it has sent counts.
        self._given_up: Departure | None = None
        self._stun = Stun()
        self._runs_there = False
        self._guest_died = asyncio.Event()

    @property
    def relinquished(self) -> bool:
        """Whether the guest is not this host's any more; readable when its process and memory here are gone."""
        return self.departure is not None

    @property
    def progress(self) -> Progress:
        """How far its rounds have come."""
        return self._rounds.progress

    @property
    def session(self) -> bytes:
        """The session's identity; empty before there is one."""
        return self._link.session[0]

    @property
    def stands_still(self) -> bool:
        """Whether the guest runs at neither host, or has just begun to run there."""
        return self.status is Status.DEVICE or (self.departure is not None and not self._runs_there)

    @property
    def dirty_pages_per_s(self) -> float:
        """Different pages that the guest writes a second, as it was last seen."""
        return self._rounds.dirty_pages_per_s

    def moved(self) -> Moved:
        """Give what has been sent so far."""
        return moved_so_far(self._link, self.departure or self._given_up, len(self.report.rounds))

    @property
    def pages_left(self) -> int:
        """Pages that only this host has, after the commit point."""
        return self.departure.pages_left if self.departure is not None else 0

    def interrupt(self) -> None:
        """The task that runs this is about to be cancelled: what a thread does for it need not be done to its end."""
        self._tracing.interrupt()

    def retune(self, changes: dict[str, Any]) -> None:
        """Change options in flight (retuning.py); raises UsageError, and PagefireError where it is too late."""
        # The options that matter after the commit point are the departure's own.
        holder = self.departure or self
        holder.options = retuned(holder.options, changes, stopped=self.status not in (Status.SETUP, Status.ACTIVE))
        at_s = self._accounting.since_request_s()
        self.report.retuned += [Retuned(at_s, name, value) for name, value in changes.items()]
        self._emit({"event": "retuned", "changes": changes})
        if self.options.mode != "precopy":
            self.throttling.lift()
        if "max_bandwidth_Bps" in changes:
            link = self.departure.link if self.departure is not None else self._link
            if link is not None:
                link.pace(changes["max_bandwidth_Bps"])
        if self.options.switch_now:
            self._rounds.stop()

    def guest_died(self) -> None:
        """The guest process ended: whatever the script waits for ends with an error."""
        self._guest_died.set()

    async def run(self) -> MigrationReport:
        """Go through the phases; gives the report, or raises the error that ended it (the guest is then safe on this host)."""
        try:
            await self._negotiate()
            pages = await self._begin_tracing()
            await self._precopy(pages)
            await self._switch_over(pages, await self._approach())
            departure = self._relinquish()
            await self._become_resident(departure)
            await self._conclude(departure)
        except (Exception, asyncio.CancelledError) as error:
            await self._fail(error)
        return self.report

    # -- setup ---------------------------------------------------------------------------------------------------------------

    async def _negotiate(self) -> None:
        """Open every connection; a shell of the guest is ready at the destination when this returns."""
        self._note("setup")
        await beside(self._link.open(), self._watch())
        self.report.clock = self._link.clock
        await in_thread(leave_record, self._guest, self._link.session, self.options)
        await self._points.reached("negotiated")

    async def _begin_tracing(self) -> PageSet:
        """Install tracing where rounds will need it; gives the pages that have contents."""
        guest = self._guest
        if self.options.mode in ("hybrid", "precopy"):
            choice = await in_thread(choose_tracker, self.options.tracker)
            self.report.tracker, self.report.tracker_reason = choice.name, choice.reason
            pages = await in_thread(self._tracing.begin, choice, self.options.trace_install)
        else:
            self.report.tracker, self.report.tracker_reason = "none", f"{self.options.mode} sends every page once"
            pages = await in_thread(data_extents, guest.memory.fd, 0, guest.memory.size_bytes)
        if (tracker := self._tracing.tracker) is not None:
            self._link.skip_unchanged(self.options.skip_unchanged, coarse=tracker.granularity is not Granularity.PAGE)
            self._link.send_deltas()
        self._accounting.traced(pages.size_bytes)
        if self.options.populate:
            await beside(self._link.populate(pages), self._watch())
        await self._points.reached("traced")
        return pages

    # -- pre-copy ------------------------------------------------------------------------------------------------------------

    async def _precopy(self, pages: PageSet) -> None:
        """Send rounds until what is left may be left: the last collection, which nobody has sent, stays unsent."""
        rounds = self._rounds
        if self._tracing.tracker is None:
            self.report.stop_reason = f"No pre-copy in mode {self.options.mode}: the guest is stopped at once"
            await in_thread(rounds.swapped.leave, Collected(pages, PageSet.empty()))
            return
        self._note("active")
        self.status = Status.ACTIVE
        began = time.monotonic()
        rounds.unsent = Collected(pages, PageSet.empty())
        while True:
            if self._tracing.rolling is not None and not self.report.rounds:
                done = await rounds.send_rolling(self._tracing.rolling, pages)
            else:
                if self.options.mode == "precopy":
                    rounds.leave_nothing_out()
                done = await rounds.send_unsent()
            self.report.rounds.append(done)
            self.throttling.round_ended(rounds.unsent.written)
            verdict = self._judge(self.report.rounds, self.options.limits, time.monotonic() - began)
            verdict = replace(verdict, reason=verdict.reason + self.throttling.words())
            told = {"verdict": verdict.reason, "stop": verdict.stop, "then": verdict.then}
            self._emit({"event": "round", **asdict(done), **told})
            log.info(
                "guest=%s round=%d pages=%d left=%d",
                self._guest.config.name,
                done.round,
                done.pages,
                done.dirty_pages_after,
            )
            await self._points.reached("round")
            if verdict.stop:
                break
        self.status = Status.PRE_SWITCHOVER
        self.report.stop_reason = verdict.reason
        if verdict.then == "cancel":
            slow = "" if self.options.auto_converge else "slow the guest with --auto-converge, "
            raise Cancelled(
                "the migration did not converge", verdict.reason, f"allow more time, {slow}or use --mode hybrid"
            )
        if verdict.then == "postcopy" and self.options.mode == "precopy":
            self.throttling.lift()
            self.options = replace(self.options, mode="hybrid")

    async def _approach(self) -> Collected:
        """Come close to the stun, where pages move after the resume; gives the last collection, which nobody has looked at."""
        if self.options.mode != "hybrid" or self._tracing.tracker is None:
            return NOTHING
        return await self._last_pages.approach(self._tracing.tracker, foretell=self.options.foretell)

    # -- the stun ------------------------------------------------------------------------------------------------------------

    async def _switch_over(self, pages: PageSet, late: Collected) -> None:
        """Stop the guest and bring the destination to where it could run it. Nothing in here that could be done before or after.

        Once the last scan is done the guest's process is not needed any more: its memory and registers are this daemon's too.
        """
        stun, control = self._stun, self._guest.control
        self._note("device")
        self.status = Status.DEVICE
        await self._points.reached("pausing")
        stun.pause_ns = control.request_pause()
        self._last_pages.take_in(late)
        await self._quiesce()
        stun.mark("parked")
        await self._points.reached("quiesced")
        at_once, later = self._divided(await self._final_scan(pages))
        last_round = self._rounds.begin(at_once) if at_once else None
        self.report.stun_pages = at_once.written.pages + at_once.holes.pages
        stun.mark("scanned")
        bitmaps = self._last_pages.coded(later)
        stun.swapped, stun.swap_bitmap_bytes = bitmaps.swapped, len(bitmaps.swap_coded)
        stun.mark("coded")
        registers = control.checkpoint_registers()
        stun.last_commits_ns = control.last_commits_ns()
        stun.commits = control.registers[:, 0].tolist()
        switchover = Switchover(
            registers_bytes=len(registers),
            bitmap_form=bitmaps.form,
            remaining_pages=bitmaps.named.pages + bitmaps.swapped.pages,
            commits=stun.commits,
            last_round=last_round.number if last_round else self._link.rounds_done,
            hot=at_once.written if later or self._last_pages.foretold else PageSet.empty(),
            stop_at=control.stop_at,
            swapped_bytes=len(bitmaps.swap_coded),
        )
        # The destination waits for the last round's marker before it is READY (the drain): the two need no order here, and a round
        # trip is saved. It may be at work before `send` returns, so the instant is taken before.
        stun.mark("sent")
        await self._link.say(switchover, registers + bitmaps.coded + bitmaps.swap_coded)
        # While the destination is at it.
        self.remaining = stun.remaining = self._last_pages.remaining(bitmaps, at_once.written)
        await self._points.reached("bitmap-sent")
        if last_round:
            timeout_s = self.options.switchover_timeout_s if later or self._last_pages.foretold else None
            done = await beside(
                self._link.end_round(last_round, timeout_s),
                self._rounds.follow(last_round, lambda: at_once.written.pages),
            )
            self.report.stun_pages -= done.unchanged_pages
        stun.ready = await self._link.control.expect(Ready, self.options.switchover_timeout_s)
        stun.mark("ready")
        if self.options.verify:
            await self._verify(pages | self._rounds.sent)
        await self._points.reached("ready")
        stun.mark("verified")
        stun.note_bitmap(
            pages_of(self._guest.memory.size_bytes),
            len(bitmaps.coded) + len(bitmaps.swap_coded),
            self._last_pages.foretold_bytes,
            self._last_pages.foretold_pages,
        )

    async def _quiesce(self) -> None:
        """Wait until every vCPU is parked. Sleeps on the futex in slices, so that a dead guest or a cancel is still noticed."""
        deadline = time.monotonic() + self.options.switchover_timeout_s
        while not self._guest.control.wait_parked(0.005):
            await asyncio.sleep(0)
            if self._guest_died.is_set():
                await self._watch()
            if time.monotonic() > deadline:
                raise GuestError(
                    f"the guest's vCPUs did not stop within {self.options.switchover_timeout_s:g} s",
                    f"{self._guest.control.parked} of {self._guest.control.vcpus} are parked",
                )

    async def _final_scan(self, pages: PageSet) -> Collected:
        """Find what the destination lacks now that nothing writes any more, and was not foretold: unsent, and this collection.

        On the loop, not in a thread: two changes of thread cost more than the scan of a small guest, and nothing else is due.
        """
        if self._tracing.tracker is not None:
            return self._last_pages.found_last(self._tracing.tracker.collect_last())
        # What had contents has them still, and only where there were none is asked again: the whole of 1 GiB is 13 ms of stun.
        memory = self._guest.memory
        holes = PageSet.span(0, pages_of(memory.size_bytes)) - pages
        return Collected(pages | await in_thread(data_among, memory.fd, holes), PageSet.empty())

    def _divided(self, left: Collected) -> tuple[Collected, Collected]:
        """Divide what the destination lacks into what goes during the stun and what may follow after the resume."""
        if self.options.mode in ("precopy", "stop-and-copy"):
            return left, NOTHING
        return self._last_pages.divided(left)

    async def _verify(self, pages: PageSet) -> None:
        """Compare digests of every page that the destination claims to have; raises when one differs, and the guest stays here."""
        comparable, differing = pages - self._stun.remaining, PageSet.empty()
        for batch in comparable.batches(_DIGEST_BATCH_PAGES, _DIGEST_BATCH_PAGES):
            digests = await in_thread(page_digests, self._guest.memory, batch)
            await self._link.control.send(PageDigests(batch), digests)
            differing |= (await self._link.control.expect(DigestsCompared, self.options.setup_timeout_s)).differing
        if comparable:
            self.report.verified.digest_match = not differing
        if differing:
            raise PagefireError(
                "the digests of both hosts differ", f"{differing.pages} pages, the first is {int(differing.starts[0])}"
            )

    # -- after the commit point ----------------------------------------------------------------------------------------------

    def _relinquish(self) -> Departure:
        self._guest.control.session = self._link.session[0]
        # The commit point. From this word on this host never runs the guest by itself, even if sending HANDOVER fails: whether it
        # arrived cannot be known. The one way back is the destination's own word that it has fenced the session (departure.py).
        assert self._ownership.on(Event.COMMIT) is Act.HAND_OVER
        self.departure = Departure(
            self._guest, self.options, self._link.session, self._points, self._emit, self.remaining, self._stun.swapped
        )
        self.report.owner = "destination"
        self.status = Status.POSTCOPY_ACTIVE
        self.progress.remaining_pages = self.remaining.pages
        self._stun.mark("handover")
        return self.departure

    async def _become_resident(self, departure: Departure) -> None:
        """Hand over, and move what remains until the destination says that it misses nothing.

        The guest process here is not watched any more: this daemon maps the memory itself, so its death loses nothing.
        """
        following = asyncio.create_task(self._follow(departure))
        try:
            self._stun.resumed = await departure.hand_over(self._link)
            self.throttling.lift()
            self._note("postcopy-active")
            self._accounting.resumed()
            self._emit({"event": "resumed", "remaining_pages": departure.pages_left})
            self._runs_there = True
            await self._points.reached("resumed")
            resident = await departure.move()
            await self._points.reached("resident")
        finally:
            following.cancel()
        self.progress.remaining_pages = 0
        self._accounting.resident(resident, self.report.clock)
        self.report.postcopy = postcopy_of(resident)

    async def _follow(self, departure: Departure) -> None:
        while True:
            self.progress.remaining_pages, self.status = departure.pages_left, departure.status
            if self._runs_there and departure.status is Status.POSTCOPY_ACTIVE:
                self._emit({"event": "moving", "remaining_pages": departure.pages_left})
            await asyncio.sleep(0.05)

    async def _conclude(self, departure: Departure) -> None:
        """Free the guest's memory here and put the report together."""
        assert self._ownership.on(Event.RESIDENT) is Act.FREE
        self.status = Status.COMPLETED
        self.report.outcome = "completed"
        self.report.recoveries, self.report.paused_s = departure.recoveries, departure.paused_s
        assert departure.link is not None
        self._accounting.finish(self.report, self._stun, departure.link, self._tracing)
        self.report.wire_bytes += departure.earlier_bytes
        self.report.compression = compression_of(departure)
        self.report.unchanged = self._link.unchanged()
        self.report.delta_cache = self._link.delta_cache()
        departure.link.close_pages()
        await self._link.forget_versions()
        self._tracing.end(guest_lives=False)
        await in_thread(self._guest.terminate)
        if (aftermath := await departure.release()) is not None:
            self._accounting.add_aftermath(self.report, self._stun, aftermath)
        self.report.error = departure.error
        log.info("guest=%s status=completed destination=%s", self._guest.config.name, departure.options.to)

    # -- the failure exit ----------------------------------------------------------------------------------------------------

    async def _fail(self, error: BaseException) -> None:
        """The one way out of a failure; asks the owner word who has the guest, and raises."""
        if self.status is Status.COMPLETED:
            raise error
        if isinstance(error, ProcessLookupError):
            # The tracker asked the kernel about a process that is no more, before anybody had told us.
            error = self._guest_ended()
        if isinstance(error, OursAgain) and self.departure is not None:
            await self.departure.close()
            self._given_up, self.departure = self.departure, None
            self.report.owner = "source"
        cancelled = isinstance(error, asyncio.CancelledError | Cancelled)
        self.status = Status.CANCELLED if cancelled else Status.FAILED
        self.report.outcome = self.status.value
        self.report.error = "cancelled" if isinstance(error, asyncio.CancelledError) else str(error)
        log.warning("guest=%s status=%s why=%s", self._guest.config.name, self.status.value, self.report.error)
        if self.departure is not None:
            # The guest is not ours: forced to end, or it has perished there. What is here of it is kept for a person.
            await self.departure.close()
            await in_thread(lambda: self._tracing.end(guest_lives=False))
            raise error
        # First of all the guest goes on; what is left of the attempt is cleared away behind it.
        if not self._guest_died.is_set():
            self._ownership.on(Event.CANCEL if cancelled else Event.FAILED)
            self.throttling.lift()
            self._guest.control.resume()
        await self._link.abort(error, self.status.value)
        await in_thread(lambda: self._tracing.end(guest_lives=not self._guest_died.is_set()))
        await forget_record(self._guest)
        if isinstance(error, asyncio.CancelledError):
            raise Cancelled("the migration was cancelled", "the guest runs on here") from error
        raise error

    # -- small things --------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await self._guest_died.wait()
        raise self._guest_ended()

    def _guest_ended(self) -> GuestError:
        return GuestError(f"the guest process {self._guest.pid} ended", "", "read its log")

    def _note(self, phase: str) -> None:
        self._accounting.phase(phase)
        self._emit({"event": "phase", "phase": phase})
