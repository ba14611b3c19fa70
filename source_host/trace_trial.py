"""One trial of tracing, without a migration: what installing, firing, collecting and removing cost a running guest.

The windows follow one another: before (nothing is traced), install, traced (the dirty pages are collected every period, as rounds
would), after. A window's rate is the commits that all vCPUs counted in it over its length.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pagefire.guest_workload.control_block import BUCKET_NS, now_ns
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PageSet
from pagefire.protocol.report import TraceInstall
from pagefire.source_host.trace_install import Installed, InstallOptions, Rolling, cost_of_install, install
from pagefire.source_host.tracker_choice import TrackerChoice, make_tracker
from pagefire.source_host.tracking import DirtyTracker

#: From the removal of tracing to the window after it.
SETTLE_S = 0.3
_INTERRUPTS = Path("/proc/interrupts")


@dataclass(frozen=True, slots=True)
class TrialTimes:
    """How long each window lasts, and how far the collections lie apart; seconds."""

    before_s: float
    traced_s: float
    after_s: float
    period_s: float


@dataclass(frozen=True, slots=True)
class TraceTrial:
    """What one trial measured.

    Rates are commits per second of the whole guest in the four windows. `gap_before_s` is the longest time without a commit of any
    vCPU before anything was traced. `fires` are first stores to something protected, as they were collected in the traced window;
    `lost_s` is the vCPU time that the guest lost in it, against `rate_before_per_s` (below 0: it gained). `scan_s` is the median of
    the collections, `dirty_pages` that of what they found, `collected_pages` the sum, which a migration would send again. `host_s`:
    CPU time of this process from the install to the last collection. `remove_s`: ending it, huge mappings given back. The window
    after it begins `SETTLE_S` later: the first store to each page that was still protected costs a fault once more.
    `tlb_shootdowns` counts the CPUs' interrupts of that kind during the install, of all processes; None where the kernel does not
    tell.
    """

    install: TraceInstall
    gap_before_s: float
    rate_before_per_s: float
    rate_install_per_s: float
    rate_traced_per_s: float
    rate_after_per_s: float
    fires: int
    lost_s: float
    scan_s: float
    dirty_pages: int
    collected_pages: int
    host_s: float
    remove_s: float
    granules_left_small: int
    tlb_shootdowns: int | None


class _Window:
    """Counts the guest's commits from its making to `rate_per_s`."""

    def __init__(self, guest: GuestProcess) -> None:
        self._control = guest.control
        self.began_ns, self._commits = now_ns(), guest.control.commits()

    def rate_per_s(self) -> float:
        """Give commits per second since the beginning."""
        commits, ended_ns = self._control.commits(), now_ns()
        return (commits - self._commits) / max(ended_ns - self.began_ns, 1) * 1e9


def run_trial(
    guest: GuestProcess,
    choice: TrackerChoice,
    options: InstallOptions,
    times: TrialTimes,
    running_vcpus: int,
    link_bps: float,
) -> TraceTrial:
    """Measure one way of tracing on a guest that runs; it is as it was afterwards. `running_vcpus` can be busy at a time.

    A rolling install goes as fast as pages would on a link of `link_bps` bits per second; nothing is sent.

    Blocks for the sum of the windows and more. Raises FeatureMissing, GuestError.
    """
    before = _Window(guest)
    time.sleep(times.before_s)
    rate_before_per_s = before.rate_per_s()
    if not rate_before_per_s:
        raise PagefireError(
            f"the guest committed nothing in the {times.before_s:g} s before the trial",
            "what tracing costs is told by its commits",
            "give it another workload, or a longer --before",
        )
    gap_before_ns = guest.control.longest_guest_gap_ns(before.began_ns + BUCKET_NS, now_ns())
    tracker = make_tracker(guest, choice, options.granularity)
    try:
        granules = tracker.register()
        shootdowns = tlb_shootdowns()
        cpu_s = time.process_time()
        installed = _install(tracker, guest, options, granules, link_bps)
        rate_install_per_s = installed.commits / max(installed.ended_ns - installed.began_ns, 1) * 1e9
        shot = tlb_shootdowns()
        scans_s, dirty, traced = [], [], _Window(guest)
        deadline = time.monotonic() + times.traced_s
        while time.monotonic() < deadline:
            time.sleep(times.period_s)
            began = time.perf_counter()
            collected = tracker.collect_and_clear()
            scans_s.append(time.perf_counter() - began)
            dirty.append(collected.written.pages)
        host_s = time.process_time() - cpu_s
        rate_traced_per_s = traced.rate_per_s()
        lost_s = (1 - rate_traced_per_s / rate_before_per_s) * (now_ns() - traced.began_ns) / 1e9 * running_vcpus
        fires = tracker.fires
        cost = cost_of_install(guest.control, installed, tracker)
    finally:
        began = time.perf_counter()
        tracker.remove()
        left = guest.give_back_huge_mappings()
        remove_s = time.perf_counter() - began
    time.sleep(SETTLE_S)
    after = _Window(guest)
    time.sleep(times.after_s)
    return TraceTrial(
        install=cost,
        gap_before_s=gap_before_ns / 1e9,
        rate_before_per_s=rate_before_per_s,
        rate_install_per_s=rate_install_per_s,
        rate_traced_per_s=rate_traced_per_s,
        rate_after_per_s=after.rate_per_s(),
        fires=fires,
        lost_s=lost_s,
        scan_s=float(np.median(scans_s)),
        dirty_pages=int(np.median(dirty)),
        collected_pages=sum(dirty),
        host_s=host_s,
        remove_s=remove_s,
        granules_left_small=left,
        tlb_shootdowns=shot - shootdowns if shot is not None and shootdowns is not None else None,
    )


def _install(
    tracker: DirtyTracker, guest: GuestProcess, options: InstallOptions, granules: PageSet, link_bps: float
) -> Installed:
    if options.policy != "rolling":
        installed = install(tracker, guest, options, granules)
        tracker.adopt(granules)
        return installed
    rolling, commits = Rolling(tracker, options, granules), guest.control.commits()
    for pages in rolling.chunks():
        time.sleep(pages.size_bytes * 8 / link_bps)
    return replace(rolling.installed, commits=guest.control.commits() - commits, ended_ns=time.monotonic_ns())


def tlb_shootdowns() -> int | None:
    """Count the TLB shootdown interrupts of all CPUs since the machine started; None where the kernel does not tell."""
    for line in _INTERRUPTS.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "TLB":
            return sum(int(word) for word in rest.split() if word.isdigit())
    return None
