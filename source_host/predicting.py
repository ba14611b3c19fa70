"""A migration that is begun, looked at, and cancelled: what its prediction is made of.

    negotiate -> trace install -> watch the guest -> send a sample -> cancel the session -> predict

It begins as a migration does, so that whatever would refuse that refuses this, and ends as one that is cancelled in its first
round: the guest was never stopped, is not traced any more, and nothing of it is at the destination.

*The watch* is one window, looked at again and again without clearing what was written (`DirtyTracker.written_so_far`), at times
that grow by a half. Collections at growing intervals would tell the same, but protect again what each has found: a guest at full
speed then pays for every look with fires, and the longest time seen is that of the last collection alone, not of the whole watch.

*The sample* is real pages, because a probe that only fills a pipe does not tell what a round takes: memory that the destination has
to take first, encryption, compression and checksums decide. First some that are not counted, until threads, buffers and the
path's own control have found their pace; then those that are; then rounds of nothing, which tell what every round takes; and then
pages that were sent and have been written since, scattered as the guest writes them, as later rounds send them. What the guest
wrote meanwhile tells how much slower it is while a host sends.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from dataclasses import dataclass, field, replace

from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.memfd import data_among, data_extents
from pagefire.guest_workload.page_digests import page_digests
from pagefire.protocol.errors import Cancelled, GuestError
from pagefire.protocol.messages import Failure
from pagefire.protocol.pages import GRANULE_PAGES, PageSet, pages_of
from pagefire.protocol.prediction import DirtyPoint, PathSample, Prediction
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.tasks import beside, in_thread
from pagefire.source_host.departure import forget_record, leave_record
from pagefire.source_host.dirty_curve import DirtyCurve
from pagefire.source_host.guest_tracing import GuestTracing
from pagefire.source_host.link import Link
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.prediction import Observed, predict
from pagefire.source_host.rounds import Emit
from pagefire.source_host.sampling import Sample
from pagefire.source_host.swapped_pages import SwappedPages
from pagefire.source_host.tracker_choice import choose_tracker
from pagefire.source_host.tracking import Collected, DirtyTracker

log = logging.getLogger("pagefire.source")

#: The first look at the watch, and by what factor the next one is later.
FIRST_LOOK_S, LOOK_FACTOR = 0.01, 1.5
#: Huge pages that fire are broken down when they are collected: that is done before the watch begins.
PRELUDE_S = 0.2
#: What is sent before anything counts, of the pages a quarter at most; what counts; and pages that were written again.
WARM_UP_S, WARM_UP_SHARE, SAMPLE_S, AGAIN_S = 0.1, 0.25, 0.3, 0.15
#: Fewer rewritten pages than this tell nothing of a speed.
LEAST_AGAIN_PAGES = 512
EMPTY_ROUNDS = 3
#: How many pages are digested to see what `--verify` would take. Both hosts do it, one after the other.
_DIGESTED_PAGES, _DIGESTING_HOSTS = 4096, 2
#: In how many parts it is told where in memory the guest writes.
_PARTS = 64


@dataclass(slots=True)
class _Seen:
    """What was seen of the guest, by the names of `Observed`; without tracing, only how long it takes to find its pages."""

    scan_s: float
    dirty: list[DirtyPoint] = field(default_factory=list)
    touched_by: tuple[float, ...] = ()
    runs_a_page: float = 0.0
    slowdown: float = 1.0


class Predicting:
    """Predicts one migration of a guest that runs here. `run` is called once."""

    def __init__(
        self, guest: GuestProcess, options: MigrationOptions, watch_s: float, points: Points, emit: Emit
    ) -> None:
        self.options = options
        self._guest = guest
        self._watch_s = watch_s
        self._points = points
        self._emit = emit
        self._link = Link(options, guest.config, guest.memory)
        self._tracing = GuestTracing(guest)
        self._guest_died = asyncio.Event()
        self._began_s = time.monotonic()

    def interrupt(self) -> None:
        """The task that runs this is about to be cancelled: what a thread does for it need not be done to its end."""
        self._tracing.interrupt()

    def guest_died(self) -> None:
        """The guest process ended: whatever is waited for ends with an error."""
        self._guest_died.set()

    async def run(self) -> Prediction:
        """Give the prediction, or raise what refused or ended it; the guest then runs here as before, and nowhere else."""
        self._began_s = time.monotonic()
        try:
            observed = await self._observe()
        except BaseException as error:
            await self._end(error)
            if isinstance(error, asyncio.CancelledError):
                raise Cancelled("the prediction was cancelled", "the guest runs on here") from error
            if isinstance(error, ProcessLookupError):
                # The tracker asked the kernel about a process that is no more, before anybody had told us.
                raise self._guest_ended() from error
            raise
        await self._end(Cancelled("the migration was not meant", "the source has seen what it wanted to see"))
        told = predict(observed, self.options)
        told.tracker = self._tracing.tracker.name if self._tracing.tracker is not None else "none"
        told.guest, told.predicting_s = self._guest.config.name, time.monotonic() - self._began_s
        log.info("guest=%s predicted total_s=%.3f outcome=%s", self._guest.config.name, told.total_s, told.outcome)
        return told

    async def _end(self, error: BaseException) -> None:
        """Leave the destination and the guest as they were."""
        await self._link.abort(
            error, "cancelled" if isinstance(error, Cancelled | asyncio.CancelledError) else "failed"
        )
        await in_thread(lambda: self._tracing.end(guest_lives=not self._guest_died.is_set()))
        await forget_record(self._guest)

    # -- what is seen --------------------------------------------------------------------------------------------------------

    async def _observe(self) -> Observed:
        self._phase("setup")
        await beside(self._link.open(), self._watch())
        await in_thread(leave_record, self._guest, self._link.session, self.options)
        await self._points.reached("predict-negotiated")
        pages, scan_s = await self._begin_tracing()
        if self.options.populate:
            await beside(self._link.populate(pages), self._watch())
        setup_s = time.monotonic() - self._began_s - self._install_s_to_come()
        swapped = SwappedPages(self._guest.memory, enabled=self.options.mode in ("hybrid", "postcopy"))
        here = (await in_thread(swapped.leave, Collected(pages, PageSet.empty()))).written
        await self._points.reached("predict-traced")
        seen = _Seen(scan_s)
        if self._tracing.tracker is not None:
            await self._see_writes(self._tracing.tracker, pages, seen)
        first, again, empty_round_s = await self._send_samples(here, seen)
        return Observed(
            resident_pages=pages.pages,
            swapped_pages=swapped.pages.pages,
            vcpus=self._guest.config.vcpus,
            setup_s=setup_s,
            first=first,
            again=again,
            empty_round_s=empty_round_s,
            dirty=tuple(seen.dirty),
            slowdown=seen.slowdown,
            touched_by=seen.touched_by,
            runs_a_page=seen.runs_a_page,
            scan_s=seen.scan_s,
            digest_page_s=await in_thread(self._digest_page_s, pages) if self.options.verify else 0.0,
        )

    async def _begin_tracing(self) -> tuple[PageSet, float]:
        """Install tracing where the migration would have rounds; gives the pages with contents, and what asking for more took.

        A rolling install goes with the first round. Here it is a loose one, or nothing would be seen of the guest.
        """
        memory = self._guest.memory
        if self.options.mode not in ("hybrid", "precopy"):
            pages = await in_thread(data_extents, memory.fd, 0, memory.size_bytes)
            began_s = time.monotonic()
            await in_thread(data_among, memory.fd, PageSet.span(0, pages_of(memory.size_bytes)) - pages)
            return pages, time.monotonic() - began_s
        how = self.options.trace_install
        choice = await in_thread(choose_tracker, self.options.tracker)
        loosely = replace(how, policy="loose", tracer="host") if how.policy == "rolling" else how
        return await in_thread(self._tracing.begin, choice, loosely), 0.0

    def _install_s_to_come(self) -> float:
        """Give what of the setup the migration would do later."""
        installed = self._tracing.installed
        if installed is None or self.options.install != "rolling":
            return 0.0
        return (installed.ended_ns - installed.began_ns) / 1e9

    async def _see_writes(self, tracker: DirtyTracker, resident: PageSet, seen: _Seen) -> None:
        """Watch what the guest writes, for as long as was asked."""
        self._phase("watching")
        looks_s: list[float] = []
        total_pages = pages_of(self._guest.memory.size_bytes)

        def look(began_s: float) -> PageSet:
            asked_s = time.monotonic()
            written = tracker.written_so_far() & resident
            seen_s = time.monotonic()
            looks_s.append(seen_s - asked_s)
            touched = written.rounded(GRANULE_PAGES, total_pages) & resident
            # A page counts up to the moment at which the scan comes to it: on average, the middle.
            seen.dirty.append(DirtyPoint((asked_s + seen_s) / 2 - began_s, written.pages, touched.pages))
            return touched

        async def watch() -> PageSet:
            for _ in range(2):
                await asyncio.sleep(PRELUDE_S / 2)
                await in_thread(tracker.collect_and_clear)
            began_s, due_s = time.monotonic(), min(FIRST_LOOK_S, self._watch_s)
            while True:
                await asyncio.sleep(began_s + due_s - time.monotonic())
                touched = await in_thread(look, began_s)
                last = seen.dirty[-1]
                self._emit({"event": "looked", "after_s": last.after_s, "of_s": self._watch_s, "pages": last.pages})
                if due_s >= self._watch_s:
                    return touched
                # No look so late that the last one follows at once.
                due_s = due_s * LOOK_FACTOR if due_s * LOOK_FACTOR**1.5 < self._watch_s else self._watch_s

        touched = await beside(watch(), self._watch(), self._hear())
        seen.scan_s = statistics.median(looks_s)
        seen.touched_by = await in_thread(_shares_within, touched, resident)
        await self._points.reached("predict-watched")

    # -- what the path carries -----------------------------------------------------------------------------------------------

    async def _send_samples(self, pages: PageSet, seen: _Seen) -> tuple[PathSample, PathSample | None, float]:
        """Send some of the guest; gives samples of first and of rewritten pages, and an empty round's time."""
        self._phase("sampling")
        tracker, streams = self._tracing.tracker, len(self._link.streams)
        if tracker is not None:
            await in_thread(tracker.collect_and_clear)
        began_s = time.monotonic()
        warm_up = Sample(pages, streams, WARM_UP_S, WARM_UP_SHARE)
        await self._send(warm_up)
        sample = Sample(pages - warm_up.sent, streams, SAMPLE_S)
        first = await self._send(sample)
        await self._points.reached("predict-sampled")
        dirty = PageSet.empty()
        if tracker is not None:
            busy_s = time.monotonic() - began_s
            dirty = (await in_thread(tracker.collect_and_clear)).written & pages
            written = DirtyCurve([one.after_s for one in seen.dirty], [one.pages for one in seen.dirty], pages.pages)
            seen.slowdown = written.slowdown(busy_s, dirty.pages)
            seen.runs_a_page = len(dirty) / max(dirty.pages, 1)
        empty_s = [(await self._send(PageSet.empty())).duration_s for _ in range(EMPTY_ROUNDS)]
        # Divided evenly: the streams take turns only in rounds that are longer than this one.
        most_pages = round(first.pages_per_s * AGAIN_S)
        rewritten = (dirty & (warm_up.sent | sample.sent)).part(0, most_pages)
        again = await self._send(rewritten) if rewritten.pages >= LEAST_AGAIN_PAGES else None
        return first, again, statistics.median(empty_s)

    async def _send(self, pages: Sample | PageSet) -> PathSample:
        """Send pages, or none, as a round; gives what became of it."""
        link = self._link
        if isinstance(pages, Sample):
            begun = link.begin_shared_round(pages, PageSet.empty())
        else:
            begun = link.begin_round(Collected(pages, PageSet.empty()))
        done = await beside(link.end_round(begun), self._watch())
        if done.pages:
            self._emit(
                {"event": "sampled", "pages": done.pages, "wire_bytes": done.wire_bytes, "duration_s": done.duration_s}
            )
        return PathSample(done.pages, done.zero_pages, done.payload_bytes, done.wire_bytes, done.duration_s)

    def _digest_page_s(self, pages: PageSet) -> float:
        some = pages.part(0, _DIGESTED_PAGES)
        began_s = time.monotonic()
        page_digests(self._guest.memory, some)
        return _DIGESTING_HOSTS * (time.monotonic() - began_s) / max(some.pages, 1)

    # -- small things --------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await self._guest_died.wait()
        raise self._guest_ended()

    async def _hear(self) -> None:
        """The destination has nothing to say while nothing is sent: whatever comes is why it ends the session."""
        await self._link.control.expect(Failure)

    def _guest_ended(self) -> GuestError:
        return GuestError(f"the guest process {self._guest.pid} ended", "", "read its log")

    def _phase(self, name: str) -> None:
        self._emit({"event": "phase", "phase": name})


def _shares_within(touched: PageSet, all_pages: PageSet) -> tuple[float, ...]:
    """Give which share of the touched pages lies within the first 0, 1, ... `_PARTS` equal parts of all."""
    if not touched:
        return ()
    ends = [all_pages.part(0, round(all_pages.pages * part / _PARTS)) for part in range(_PARTS + 1)]
    return tuple((touched & end).pages / touched.pages for end in ends)
