"""Install policies: who makes the system calls that protect guest memory, when, and which vCPUs run meanwhile.

stop-based   Every vCPU is quiesced, the calls are divided among their threads, all are let go again: vSphere 6.7's way. The guest
             stands still for the whole of it.
loose        One tracer makes all calls while the vCPUs run on: vSphere 7's way. The tracer is a claimed vCPU, as there, which
             leaves its workload until it is done, or a thread of this daemon. Each CPU's translations are flushed when the kernel
             gets to them.
             A thread of this daemon can be considerate: what costs a guest is not the calls but its fires afterwards, half a
             microsecond each, and a guest that is protected within 50 ms has them all at once (4 GiB, 10% of it written, guest at
             half its full rate: it kept 43-54% of its commits meanwhile, and 96% where next to nothing was written). So where the
             guest has fallen behind by more than `most_loss` of its commits the tracer waits for it, up to a limit (then: 97%).
rolling      Nothing ahead: each chunk is protected just before its first page is sent. What the guest writes before a chunk's turn
             costs it no fire and nobody a second copy.

All of them make the same calls, which the tracker lists (`DirtyTracker.protection`), and keep its order: protect, then look.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.control_block import BUCKET_NS, ControlBlock, now_ns
from pagefire.guest_workload.errand import prepared
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.calls import Calls
from pagefire.protocol.errors import Cancelled, GuestError
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from pagefire.protocol.report import Percentiles, TraceInstall
from pagefire.source_host.tracking import DirtyTracker, Granularity

#: The vCPU that a loose install claims.
CLAIMED_VCPU = 0
#: The least that a rolling install takes at a time (32 MiB, some 20 ms of a link of 2 GB/s), in however many calls. By 2 MiB, what
#: is noted of each chunk held the page streams up: round 1 went at 0.57 GB/s, by 32 MiB at 1.5, all at once at 1.8 to 2.0, as after
#: a loose install (1 GiB oltp, medians of five alternating runs).
CHUNK_PAGES = 16 * GRANULE_PAGES
#: A considerate install: what it compares a guest with, how long it waits at a time, and in all for each GiB.
_BASELINE_NS = 1_000_000_000
_WAIT_S = 0.0005
_MOST_WAIT_S = 0.15


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """How tracing is installed. `step_pages` bounds one system call (None: a run of granules).

    `tracer` (vcpu or host) says who does a loose install; a stop-based one is the vCPUs', a rolling one the page streams'.
    `most_loss` is the share of its commits that a guest may lose before a loose install by this host waits for it; None: any.
    """

    policy: str
    tracer: str
    granularity: Granularity
    step_pages: int | None
    most_loss: float | None = None
    quiesce_timeout_s: float = 10.0

    @property
    def done_by(self) -> str:
        """Name who makes the calls."""
        return {"stop": "vcpu", "rolling": "host"}.get(self.policy, self.tracer)


@dataclass(frozen=True, slots=True)
class Installed:
    """An installation that is done: how, with how many system calls, between which instants of the guest's clock (0: none yet).

    `commits` were made by the guest between the two; of a rolling one they are not counted.
    """

    options: InstallOptions
    calls: int
    commits: int
    began_ns: int
    ended_ns: int


def install(
    tracker: DirtyTracker,
    guest: GuestProcess,
    options: InstallOptions,
    granules: PageSet,
    interrupted: Callable[[], bool] = lambda: False,
) -> Installed:
    """Protect all of `granules`, stop-based or loose; the caller adopts them. Raises OSError, GuestError, and the guest runs on.

    A host that makes the calls, which may take seconds, stops with Cancelled between two of them once `interrupted` says so.
    """
    calls = tracker.protection(granules, options.step_pages)
    if options.done_by == "host" or not len(calls):
        pace: Callable[[], None] = lambda: None  # noqa: E731
        if options.most_loss is not None:
            pace = _Pace(guest, options.most_loss, granules)

        def after_each() -> None:
            if interrupted():
                raise Cancelled("the trace install was interrupted")
            pace()

        return _measured(guest, options, calls, lambda: calls.issue(after_each))
    with prepared(guest, calls) as errand:
        if options.policy == "loose":
            return _measured(guest, options, calls, lambda: errand.do(CLAIMED_VCPU))
        return _measured(
            guest, options, calls, lambda: _stopped(guest, options.quiesce_timeout_s, lambda: errand.do(None))
        )


def _measured(guest: GuestProcess, options: InstallOptions, calls: Calls, do: Callable[[], None]) -> Installed:
    began_ns, commits = time.monotonic_ns(), guest.control.commits()
    do()
    return Installed(options, len(calls), guest.control.commits() - commits, began_ns, time.monotonic_ns())


class _Pace:
    """Waits for a guest that falls behind what it did in the second before; to be called again and again."""

    def __init__(self, guest: GuestProcess, most_loss: float, granules: PageSet) -> None:
        self._control = guest.control
        self._left_s = _MOST_WAIT_S * granules.size_bytes / (1 << 30)
        self._began_ns, self._commits = now_ns(), guest.control.commits()
        before = guest.control.buckets(self._began_ns - _BASELINE_NS, self._began_ns - BUCKET_NS)
        # The oldest bucket may have begun before the guest did, and the newest is still filling: a median is of whole ones.
        self._least_per_ns = float(np.median(before)) / BUCKET_NS * (1 - most_loss)

    def __call__(self) -> None:
        while self._left_s > 0 and self._behind():
            began_ns = now_ns()
            time.sleep(_WAIT_S)
            self._left_s -= (now_ns() - began_ns) / 1e9

    def _behind(self) -> bool:
        # A transaction that is under way on each vCPU is none that was lost.
        commits = self._control.commits() - self._commits + self._control.vcpus
        return commits < self._least_per_ns * (now_ns() - self._began_ns)


def cost_of_install(control: ControlBlock, installed: Installed, tracker: DirtyTracker) -> TraceInstall:
    """Read what an installation cost the guest, a bucket (10 ms) or more after its end: a gap is told when it has ended."""
    options = installed.options
    report = TraceInstall(
        policy=options.policy,
        tracer=options.done_by,
        granularity=tracker.granularity.value,
        step_bytes=options.step_pages * PAGE_BYTES if options.step_pages else None,
        calls=installed.calls,
        install_s=(installed.ended_ns - installed.began_ns) / 1e9,
        fires=tracker.fires,
        answer_us=_percentiles(np.array(tracker.answers_ns) / 1e3) if tracker.answers_ns else None,
    )
    window = installed.began_ns, installed.ended_ns + BUCKET_NS
    gaps_s = control.longest_gaps_ns(*window) / 1e9
    report.guest_gap_s = control.longest_guest_gap_ns(*window) / 1e9
    report.vcpu_gap_s = _percentiles(gaps_s)
    if options.policy == "loose" and options.tracer == "vcpu":
        report.claimed_vcpu_gap_s = float(gaps_s[CLAIMED_VCPU])
    return report


def _percentiles(values: npt.NDArray[np.float64]) -> Percentiles:
    return Percentiles(*(float(value) for value in np.percentile(values, (50, 99, 100))))


def _stopped(guest: GuestProcess, timeout_s: float, do: Callable[[], None]) -> None:
    """Do something while every vCPU is parked."""
    guest.control.request_pause()
    try:
        if not guest.control.wait_parked(timeout_s):
            raise GuestError(
                f"the guest's vCPUs did not stop within {timeout_s:g} s for a stop-based install",
                f"{guest.control.parked} of {guest.control.vcpus} are parked",
                "use --install loose",
            )
        do()
    finally:
        guest.control.resume()


class Rolling:
    """A rolling install: chunk after chunk is protected by whoever is about to send it."""

    def __init__(self, tracker: DirtyTracker, options: InstallOptions, granules: PageSet) -> None:
        self._tracker = tracker
        self._options = options
        ranges = granules.steps(None if options.step_pages is None else max(options.step_pages, CHUNK_PAGES))
        self._chunks = iter(zip(ranges.starts.tolist(), (ranges.starts + ranges.counts).tolist(), strict=True))
        self._lock = threading.Lock()
        self._calls, self._began_ns, self._ended_ns = 0, 0, 0
        #: What has been given out to be sent.
        self.sent = PageSet.empty()
        #: Chooses what of a chunk is to be sent now.
        self.choose: Callable[[PageSet], PageSet] = lambda pages: pages

    @property
    def installed(self) -> Installed:
        """Tell how far it has come."""
        return Installed(self._options, self._calls, 0, self._began_ns, self._ended_ns)

    def chunks(self) -> Iterator[PageSet]:
        """Give chunk after chunk, just protected, to be sent at once; threads share them, each with its own iterator."""
        while (pages := self._next()) is not None:
            yield pages

    def _next(self) -> PageSet | None:
        # The lock makes protecting and looking one step for the tracker, which is one thread's at a time.
        with self._lock:
            chunk = next(self._chunks, None)
            if chunk is None:
                return None
            self._began_ns = self._began_ns or time.monotonic_ns()
            granules = PageSet.span(*chunk)
            calls = self._tracker.protection(granules, self._options.step_pages)
            calls.issue()
            pages = self.choose(self._tracker.adopt(granules))
            self.sent |= pages
            self._calls += len(calls)
            self._ended_ns = time.monotonic_ns()
            return pages
