"""From readings to the report: pure functions of what both hosts counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagefire.protocol.messages import Aftermath
from pagefire.protocol.report import Clock, GuestRate, PhaseBegin, TimelineBucket, VcpuStun
from pagefire.source_host.switchover import Stun

BUCKET_NS = 10_000_000
#: How long before the migration the guest's own baseline is taken.
BASELINE_NS = 1_000_000_000
GAP_BASELINE_NS = 5_000_000_000

Counts = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Instants:
    """When each phase began, in ns on the source's clock."""

    requested_ns: int
    traced_ns: int
    paused_ns: int
    resumed_ns: int
    resident_ns: int

    def phases(self) -> list[PhaseBegin]:
        """Give when each phase began; one that took no time is left out."""
        begins = (
            ("setup", self.requested_ns),
            ("active", self.traced_ns),
            ("device", self.paused_ns),
            ("postcopy-active", self.resumed_ns),
            ("completed", self.resident_ns),
        )
        return [
            PhaseBegin(phase, (at_ns - self.requested_ns) / 1e9)
            for index, (phase, at_ns) in enumerate(begins)
            if index == len(begins) - 1 or at_ns < begins[index + 1][1]
        ]

    def phase(self, at_ns: int) -> str:
        """Name the phase that an instant falls in."""
        at_s, name = (at_ns - self.requested_ns) / 1e9, "none"
        for begin in self.phases():
            if begin.at_s <= at_s:
                name = begin.phase
        return name


@dataclass(frozen=True, slots=True)
class Commits:
    """Commits per 10 ms over the whole migration, both hosts laid over each other. `since_ns` is the first bucket's beginning."""

    since_ns: int
    counts: Counts

    def between(self, from_ns: int, to_ns: int) -> Counts:
        """Give the whole buckets within an interval."""
        first = max(-(-(from_ns - self.since_ns) // BUCKET_NS), 0)
        return self.counts[first : max((to_ns - self.since_ns) // BUCKET_NS, first)]

    def rate_per_s(self, from_ns: int, to_ns: int) -> float | None:
        """Give the commits per second of an interval; None when no whole bucket lies in it."""
        counts = self.between(from_ns, to_ns)
        return float(counts.sum()) / (counts.size * BUCKET_NS / 1e9) if counts.size else None


def merge(since_ns: int, here: Counts, aftermath: Aftermath, clock: Clock) -> Commits:
    """Lay the destination's buckets over the source's; a measured clock offset moves them by whole buckets."""
    there_since_ns = aftermath.buckets_since_ns - round(clock.offset_s * 1e9)
    shift = round((there_since_ns - since_ns) / BUCKET_NS)
    counts = np.zeros(max(here.size, shift + len(aftermath.buckets)), np.uint64)
    counts[: here.size] = here
    there = np.array(aftermath.buckets, np.uint64)
    if shift < 0:
        there, shift = there[-shift:], 0
    counts[shift : shift + there.size] += there
    return Commits(since_ns, counts)


def timeline(commits: Commits, instants: Instants) -> list[TimelineBucket]:
    """Give the report's timeline: one entry a bucket, time 0 at the request."""
    return [
        TimelineBucket(
            round((commits.since_ns + index * BUCKET_NS - instants.requested_ns) / 1e9, 6),
            count,
            instants.phase(commits.since_ns + index * BUCKET_NS),
        )
        for index, count in enumerate(commits.counts.tolist())
    ]


def guest_rates(commits: Commits, instants: Instants) -> GuestRate:
    """Give the guest's throughput before, during pre-copy and after full residency."""
    end_ns = commits.since_ns + commits.counts.size * BUCKET_NS
    return GuestRate(
        before_per_s=commits.rate_per_s(instants.requested_ns - BASELINE_NS, instants.requested_ns),
        during_per_s=commits.rate_per_s(instants.traced_ns, instants.paused_ns),
        after_per_s=commits.rate_per_s(instants.resident_ns, end_ns),
    )


def stall_s(commits: Commits, instants: Instants) -> float | None:
    """Sum the 10 ms buckets from the pause to full residency that have less than half the baseline's commits."""
    before = commits.between(instants.requested_ns - BASELINE_NS, instants.requested_ns)
    if not before.size or not before.sum():
        return None
    after = commits.between(instants.paused_ns, max(instants.resident_ns, instants.paused_ns + 2 * BUCKET_NS))
    return float((after < before.mean() / 2).sum()) * BUCKET_NS / 1e9


def stun_at_s(stun: Stun, instants: Instants) -> float | None:
    """Give when the guest's last commit at the source was, in seconds since the request; None when it had never committed."""
    last_ns = int(stun.last_commits_ns.max(initial=0))
    return (last_ns - instants.requested_ns) / 1e9 if last_ns else None


def stuns(
    stun: Stun, aftermath: Aftermath, clock: Clock, baseline_gap_ns: int
) -> tuple[float | None, VcpuStun | None, float | None]:
    """Give the guest's blackout, each vCPU's own gap, and the time until every vCPU had committed again (all in seconds).

    None where the guest did not commit on either side of the stun: a vCPU that has finished or waits for its turn commits nothing.
    """
    last = stun.last_commits_ns.astype(np.float64)
    first = np.array(aftermath.first_commits_ns, np.float64)
    if last.size != first.size or not ((last > 0) & (first > 0)).any():
        return None, None, None
    offset_ns = clock.offset_s * 1e9
    both = (last > 0) & (first > 0)
    blackout_s = (first[first > 0].min() - offset_ns - last[last > 0].max()) / 1e9
    gaps_s = (first[both] - offset_ns - last[both]) / 1e9
    own = VcpuStun(
        p50=float(np.percentile(gaps_s, 50)),
        p99=float(np.percentile(gaps_s, 99)),
        max=float(gaps_s.max()),
        baseline_max=baseline_gap_ns / 1e9 if baseline_gap_ns else None,
    )
    running_s = float(first.max() - offset_ns - stun.pause_ns) / 1e9 if (first > 0).all() else None
    return float(blackout_s), own, running_s
