"""Auto-converge: the vCPUs that write most are slowed while pre-copy goes on, until its rounds leave less than they send.

What a vCPU writes is counted in distinct pages. The control block counts commits, and a commit is one page store of one workload
and six of another, some of which always go to the same page; but no two vCPUs of a guest write one page (layout.py), so the dirty
bitmap, divided by their partitions, tells what each of them has added to it, exactly and at no cost to the guest. Within a round
the tracker is asked for it without clearing anything (0.3 ms per GiB). Commits count as well, as the pace at which a vCPU would
write anew what it has written. Under a hypervisor a ring or log of dirty pages for each vCPU would take the bitmap's place.

throttling.py decides; this sets the words in the control block, and renews them while a round is sent. A throttle that is not
renewed ends after LEASE_S, whatever has become of this daemon. The other way, a guest that notices the death of its host, would
leave it slow under a daemon that hangs or was stopped, and until its main thread has ended what it is at.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np

from pagefire.guest_workload.control_block import THROTTLE_PERIOD_NS, now_ns
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.report import MigrationReport, Throttle, ThrottledRound
from pagefire.protocol.transport.tasks import in_thread
from pagefire.source_host import convergence, throttling
from pagefire.source_host.guest_tracing import GuestTracing
from pagefire.source_host.link import Link, RoundBegun
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.throttling import Course, Floats, Reading

#: How long a throttle holds that nobody renews.
LEASE_S = 1.0
#: How often a round is looked at; less often, down to the other, where looking would take more than a twentieth of the time.
TICK_S, LONGEST_TICK_S = 0.1, 0.5
#: What a round has sent tells the speed of the link once it has gone on for so long: until then buffers are filled.
STEADY_S = 1.0
_NOT_NEEDED = {
    "hybrid": "hybrid needs none: what is left when rounds gain nothing moves after the resume",
    "postcopy": "postcopy has no rounds that could fail to converge",
    "stop-and-copy": "stop-and-copy has no rounds that could fail to converge",
}


class AutoConverge:
    """Slows one guest during one migration, where that is asked for and needed. Fills in `report.throttle`."""

    def __init__(self, guest: GuestProcess, options: MigrationOptions, report: MigrationReport) -> None:
        self._control = guest.control
        self._partition_pages = guest.config.layout().partition_bytes // PAGE_BYTES
        self._downtime_limit_s = options.downtime_limit_s
        self._deltas = options.delta_cache_bytes > 0
        self._rounds = report.rounds
        self._running = np.ones(self._control.vcpus)
        self._slept_before_ns = self._control.slept_ns()
        self._enabled = False
        if options.auto_converge:
            report.throttle = Throttle(reason=_NOT_NEEDED.get(options.mode, ""))
            self._enabled = not report.throttle.reason
        self._throttle = report.throttle
        self._lifted = False
        self._begin_round()

    @property
    def enabled(self) -> bool:
        """Whether the guest may be slowed, so that rounds are to be followed."""
        return self._enabled and not self._lifted

    @property
    def asked(self) -> Floats:
        """The share of its time that each vCPU is to sleep now."""
        return 1.0 - self._running

    def words(self) -> str:
        """Say how much the guest was slowed in the last round, to go behind a verdict on it; empty where it was not."""
        last = self._throttle.rounds[-1] if self._throttle is not None and self._throttle.rounds else None
        if last is None or not last.max:
            return ""
        return f"; slowed by auto-converge: the vCPUs slept {last.mean:.1%} of the round, one of them {last.max:.1%}"

    async def follow(self, begun: RoundBegun, pages: int, link: Link, tracing: GuestTracing) -> None:
        """Beside a round, until cancelled: look at what it has come to, adjust the throttles, and renew them."""
        first = begun.number == 1
        if not self.enabled:
            return
        if first:
            self._begin_round()
            if self._deltas:
                return  # Nobody is slowed in it: it may as well be told what is not worth sending yet.
        if tracing.tracker is None or (first and tracing.rolling is not None):
            return  # A rolling install uses the tracker itself.
        tick_s = TICK_S
        while self.enabled:
            self._set(self._running)
            await asyncio.sleep(tick_s)
            began_s = time.monotonic()
            written = await in_thread(tracing.tracker.written_so_far)
            tick_s = min(max(TICK_S, 19 * (time.monotonic() - began_s)), LONGEST_TICK_S)
            self._note(written)
            if (course := self._course(pages, link.sent_since(begun).done_pages)) is not None:
                decide = throttling.towards_end if first else throttling.during
                self._set(decide(course, self._running))

    def round_ended(self, written: PageSet) -> None:
        """Take in what the round left that is the last of the report, and set the throttles for the next one."""
        if not self.enabled:
            return
        assert self._throttle is not None
        done = self._rounds[-1]
        self._note(written)
        elapsed_s = self._readings[-1].elapsed_s
        # A sleep counts when it is over, so that one which began before the round may count for more than its share.
        shares = np.minimum((self._control.slept_ns() - self._round_slept_ns) / 1e9 / elapsed_s, 1.0)
        self._throttle.rounds.append(ThrottledRound(done.round, float(shares.mean()), float(shares.max())))
        if (course := self._course(done.pages + done.unchanged_pages)) is not None:
            self._set(throttling.after(course, self._running))
        self._begin_round()

    def lift(self) -> None:
        """Let the guest run at full speed, for good; at any time, and more than once."""
        self._lifted = True
        self._control.lift_throttle()
        self._running = np.ones_like(self._running)
        if self._enabled:
            assert self._throttle is not None
            self._throttle.slept_s = ((self._control.slept_ns() - self._slept_before_ns) / 1e9).tolist()

    def _begin_round(self) -> None:
        self._began_s = time.monotonic()
        self._round_commits = self._control.commits_by_vcpu()
        self._round_slept_ns = self._control.slept_ns()
        self._readings: list[Reading] = []

    def _note(self, written: PageSet) -> None:
        steps = written.steps(self._partition_pages)
        # Behind the last partition there may be some pages that nobody writes.
        vcpus = self._control.vcpus
        pages = np.bincount(steps.starts // self._partition_pages, steps.counts, vcpus)[:vcpus].astype(np.float64)
        commits = (self._control.commits_by_vcpu() - self._round_commits).astype(np.float64)
        self._readings.append(Reading(time.monotonic() - self._began_s, pages, commits))

    def _course(self, pages: int, done_pages: int = 0) -> Course | None:
        """Put together what is known, with what has been done of a round that goes on; None while the link's speed is not known.

        Pages are those that trackers count, written or not: what is found unchanged makes the link that much faster.
        """
        elapsed_s = self._readings[-1].elapsed_s
        link_pages_per_s = done_pages / elapsed_s if elapsed_s >= STEADY_S else 0.0
        if not link_pages_per_s and self._rounds:
            link_pages_per_s = convergence.pace_Bps(self._rounds) / PAGE_BYTES
        if not link_pages_per_s or (self._deltas and not self._rounds):
            # What differences will leave a first round does not tell.
            return None
        later_cost = 1.0
        if self._deltas and self._rounds[-1].settled_share < 1:
            if not done_pages:
                link_pages_per_s = pages / elapsed_s
            later_pages_per_s = convergence.settled_pace_Bps(self._rounds) / PAGE_BYTES
            later_cost = min(link_pages_per_s / max(later_pages_per_s, 1e-9), 1.0)
        return Course(pages, link_pages_per_s, link_pages_per_s * self._downtime_limit_s, self._readings, later_cost)

    def _set(self, running: Floats) -> None:
        if self._lifted:
            return
        self._running = running
        asleep_ns = np.minimum((1.0 - running) * THROTTLE_PERIOD_NS, THROTTLE_PERIOD_NS - 1).astype(np.uint64)
        self._control.throttle(asleep_ns, now_ns() + round(LEASE_S * 1e9))
