"""The part of a report that says what clients of the guest felt: how long they waited, before, in and after the migration.

For a workload that serves clients, a database; times are in seconds, on the source's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Latencies:
    """How long clients waited for the transactions that ended within a window, in seconds; `transactions`: how many these were."""

    transactions: int
    p50: float
    p99: float
    max: float


@dataclass(slots=True)
class LatencyBucket:
    """The transactions that ended in the 10 ms that begin at t_s (0 is the migrate request): the middle and the longest wait."""

    t_s: float
    transactions: int
    p50_s: float
    max_s: float


@dataclass(slots=True)
class Database:
    """What the clients of a database felt; None where the workload has no clients. No bucket without a transaction is listed.

    A client of each vCPU asks when its transaction is due (`guest.rate`, or the workload's own pace), or else when it has the
    answer to its last one, and waits until it is committed. One that is more than 10 ms late when the vCPU comes to it is as if it
    were asked for then, but for the stun. before: the second before the migrate request. precopy: from there to the pause request.
    through: from there until every page is at the destination and each vCPU has committed there: the stun and post-copy. after:
    from there until the destination stops looking. waited: of each vCPU's first transaction at the destination alone, whose client
    asked before or in the stun. latencies_every: at the destination each so many-th transaction was told of, and counts for all.
    A vCPU keeps its newest 65,536: of a longer pre-copy the rest is in no window (and `transactions` says how many are).

    counted: what the workload's check counted in the guest's memory and registers, by name; `integrity_errors`, `orders_lost` and
    `orders_repeated` among them where there is a database. Empty where it was not checked.
    """

    before: Latencies | None = None
    precopy: Latencies | None = None
    through: Latencies | None = None
    after: Latencies | None = None
    waited: Latencies | None = None
    latencies_every: int = 1
    counted: dict[str, int] = field(default_factory=dict)
    latencies: list[LatencyBucket] = field(default_factory=list)
