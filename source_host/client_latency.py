"""What clients of the guest felt of a migration: how long they waited for their transactions, at both hosts, and through the stun.

Pure functions of the times that the vCPUs noted. A client who asked before or in the stun has its answer from the destination, and
neither host alone knows how long that took: the source knows when it asked (when its vCPU's next transaction was due, or when the
last one had ended), the destination when it was committed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.protocol.client_report import Database, Latencies, LatencyBucket
from pagefire.protocol.messages import Aftermath
from pagefire.protocol.report import Clock
from pagefire.source_host.measurement import BUCKET_NS, Instants

#: [n, 2]: when each transaction ended, in ns on the source's clock, and how many ns its client had waited by then.
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClientsHere:
    """What the source knows, of each vCPU: the second before the migration, and since. `interval_ns` 0: they are not paced."""

    before: list[Times]
    since: list[Times]
    interval_ns: int

    def asked_ns(self, vcpu: int) -> int | None:
        """Tell when a vCPU's client asked for what was not done here any more; None where none of its transactions is known."""
        known = next((times[vcpu] for times in (self.since, self.before) if len(times[vcpu])), None)
        if known is None:
            return None
        ended_ns, took_ns = known[-1].tolist()
        # A client who was answered late, and whose next turn has come meanwhile, asks at once: by the count of turns it did before.
        return int(ended_ns - took_ns + self.interval_ns) if self.interval_ns else int(ended_ns)


def times_of(control: ControlBlock, since_ns: int, until_ns: int) -> list[Times]:
    """Read the transactions of each vCPU that ended within a window."""
    return [control.times_ns(vcpu, since_ns, until_ns).astype(np.int64) for vcpu in range(control.vcpus)]


def database(here: ClientsHere, aftermath: Aftermath, clock: Clock, instants: Instants) -> Database | None:
    """Put together what both hosts know; None where nobody has timed a transaction and the check counted nothing."""
    offset_ns = round(clock.offset_s * 1e9)
    waited = _waited(here, aftermath, offset_ns)
    there = _there(aftermath, offset_ns)
    before, since = _joined(here.before), _joined(here.since)
    counted = dict(zip(aftermath.check_names, aftermath.check_counts, strict=False))
    if not counted and not any(len(times) for times in (before, since, there, waited)):
        return None
    every = _joined([before, since, waited, there])
    whole_ns = max(instants.resident_ns, instants.resumed_ns, int(waited[:, 0].max(initial=0)) + 1)
    return Database(
        before=_latencies(before),
        precopy=_latencies(_between(every, instants.requested_ns, instants.paused_ns)),
        through=_latencies(_between(every, instants.paused_ns, whole_ns)),
        after=_latencies(there[there[:, 0] >= whole_ns]),
        waited=_latencies(waited),
        latencies_every=aftermath.latencies_every,
        counted=counted,
        latencies=_buckets(every, instants),
    )


def _waited(here: ClientsHere, aftermath: Aftermath, offset_ns: int) -> Times:
    """Give each vCPU's first transaction at the destination, with all that its client waited for it."""
    found = []
    for vcpu, first_ns in enumerate(aftermath.first_commits_ns[: len(here.since)]):
        asked_ns = here.asked_ns(vcpu)
        if first_ns and asked_ns is not None:
            ended_ns = first_ns - offset_ns
            found.append((ended_ns, max(0, ended_ns - asked_ns)))
    return np.array(found, np.int64).reshape(-1, 2)


def _there(aftermath: Aftermath, offset_ns: int) -> Times:
    """Give the other transactions at the destination."""
    pairs = np.frombuffer(aftermath.latencies[: len(aftermath.latencies) // 8 * 8], "<u4").reshape(-1, 2)
    times: Times = pairs.astype(np.int64) * 1000
    times[:, 0] += aftermath.buckets_since_ns - offset_ns
    return times


def _joined(parts: list[Times]) -> Times:
    """Put transactions in the order of their ends."""
    every = np.concatenate(parts) if parts else np.empty((0, 2), np.int64)
    ordered: Times = every[np.argsort(every[:, 0], kind="stable")]
    return ordered


def _between(times: Times, from_ns: int, to_ns: int) -> Times:
    found: Times = times[(times[:, 0] >= from_ns) & (times[:, 0] < to_ns)]
    return found


def _latencies(times: Times) -> Latencies | None:
    if not len(times):
        return None
    took_s = times[:, 1] / 1e9
    p50, p99 = np.percentile(took_s, (50, 99)).tolist()
    return Latencies(len(times), p50, p99, float(took_s.max()))


def _buckets(times: Times, instants: Instants) -> list[LatencyBucket]:
    """Give the middle and the longest wait of each 10 ms in which a transaction ended; `times` are in order."""
    if not len(times):
        return []
    numbers, first_at = np.unique(times[:, 0] // BUCKET_NS, return_index=True)
    parts = np.split(times[:, 1] / 1e9, first_at[1:])
    return [
        LatencyBucket(
            t_s=round((number * BUCKET_NS - instants.requested_ns) / 1e9, 6),
            transactions=len(part),
            p50_s=float(np.median(part)),
            max_s=float(part.max()),
        )
        for number, part in zip(numbers.tolist(), parts, strict=True)
    ]
