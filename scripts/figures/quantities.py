"""What may be drawn of a migration: each quantity's name, unit, what it counts, and where it stands in a line of results.jsonl.

A quantity that a run did not measure is None and is left out of a median, never zero; `converged` alone is there for every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagefire.protocol.errors import PagefireError
from pagefire.scripts.compare_figures import dip_of

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Quantity:
    """`read` gives it in `unit`; `counts` says what it is, in a sentence without a full stop."""

    name: str
    title: str
    unit: str
    counts: str
    read: Callable[[Json], float | None]

    @property
    def label(self) -> str:
        """Name it with its unit, as an axis does."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


def _at(path: str, factor: float = 1.0, *, arrived: bool = True) -> Callable[[Json], float | None]:
    """Read a field of the report by its path; `arrived`: of completed migrations only, because others have none that means it."""

    def read(line: Json) -> float | None:
        value: Any = line["report"]
        if value is None or (arrived and line["outcome"] != "completed"):
            return None
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return float(value) * factor if value is not None else None

    return read


def _converged(line: Json) -> float:
    return 100.0 if line["outcome"] == "completed" else 0.0


def _cpu_s(line: Json) -> float | None:
    cpu = (line["report"] or {}).get("cpu")
    return cpu["source_s"] + cpu["dest_s"] if cpu is not None and line["outcome"] == "completed" else None


def _kept(line: Json) -> float | None:
    rate = (line["report"] or {}).get("guest_rate")
    if rate is None or not rate["before_per_s"] or rate["during_per_s"] is None:
        return None
    return float(rate["during_per_s"]) / float(rate["before_per_s"]) * 100


def _lost(line: Json) -> float | None:
    if line["outcome"] != "completed":
        return None
    try:
        return dip_of(line["report"]).lost * 100
    except PagefireError:  # it was not traced, or committed nothing before
        return None


def _throttled(line: Json) -> float | None:
    throttle = (line["report"] or {}).get("throttle")
    return max((one["mean"] for one in throttle["rounds"]), default=0.0) * 100 if throttle is not None else None


def _retransmits(line: Json) -> float | None:
    connections = (line["report"] or {}).get("tcp")
    return float(sum(one["retransmits"] for one in connections)) if connections else None


def _rounds(line: Json) -> float | None:
    return float(len(line["report"]["rounds"])) if line["report"] is not None else None


def _settled_ms(line: Json) -> float | None:
    return line["fault"]["settled_s"] * 1e3 if line["fault"] is not None else None


_MIB = 1 / (1 << 20)
_ALL = (
    Quantity(
        "stun",
        "stun",
        "ms",
        "the guest's blackout: from the last commit of any vCPU at the source to the first of any at the destination",
        _at("stun_s", 1e3),
    ),
    Quantity(
        "observer-stun",
        "stun, from outside",
        "ms",
        "the same blackout, seen by a process that reads the commit counters of both ends",
        _at("observer_stun_s", 1e3),
    ),
    Quantity(
        "downtime",
        "downtime",
        "ms",
        "from the pause request at the source until the destination lets its vCPUs run",
        _at("downtime_s", 1e3),
    ),
    Quantity(
        "all-running",
        "until all vCPUs run",
        "ms",
        "from the pause request to the first commit of the last vCPU",
        _at("all_running_s", 1e3),
    ),
    Quantity(
        "stall",
        "stall",
        "ms",
        "10 ms buckets with less than half of the commits of before, summed, from the pause to full residency",
        _at("stall_s", 1e3),
    ),
    Quantity("total", "total time", "s", "from the request to the last page at the destination", _at("total_s")),
    Quantity("precopy", "pre-copy", "s", "from the first round until the pause", _at("precopy_s")),
    Quantity(
        "resident-after",
        "until all pages are there",
        "s",
        "from the resume until the last page is at the destination",
        _at("resident_after_s"),
    ),
    Quantity(
        "sent",
        "sent",
        "MiB",
        "everything that the source sent for the migration, frames included, TCP/IP headers not",
        _at("wire_bytes", _MIB),
    ),
    Quantity(
        "throughput",
        "throughput of the rounds",
        "MB/s",
        "bytes on the wire of the pre-copy rounds over their time",
        _at("throughput_Bps", 1e-6),
    ),
    Quantity(
        "dirty-rate",
        "dirty pages",
        "1/s",
        "pages written during the last pre-copy round over its time",
        _at("dirty_pages_per_s", arrived=False),
    ),
    Quantity("rounds", "pre-copy rounds", "", "rounds that were sent", _rounds),
    Quantity(
        "fault-p50",
        "fault latency, median",
        "us",
        "page fault to page published, by the destination's clock: half of the faults took no longer",
        _at("postcopy.fault_us.p50"),
    ),
    Quantity(
        "fault-p99",
        "fault latency, p99",
        "us",
        "page fault to page published: 99 of 100 faults took no longer",
        _at("postcopy.fault_us.p99"),
    ),
    Quantity(
        "fault-max",
        "fault latency, largest",
        "us",
        "page fault to page published: the slowest fault",
        _at("postcopy.fault_us.max"),
    ),
    Quantity("faulted", "pages fetched by faults", "", "pages that a vCPU waited for", _at("postcopy.faulted_pages")),
    Quantity(
        "blocktime", "blocktime", "ms", "the time all vCPUs together waited for pages", _at("postcopy.blocktime_s", 1e3)
    ),
    Quantity(
        "kept",
        "commits kept during pre-copy",
        "%",
        "the guest's commits per second during pre-copy over those of the second before",
        _kept,
    ),
    Quantity(
        "lost",
        "commits lost to tracing",
        "%",
        "from the install of tracing to a second after it, against the second before the request; below 0 the guest was faster",
        _lost,
    ),
    Quantity(
        "install",
        "trace install",
        "ms",
        "from the first call to the last; of a rolling install the first round",
        _at("trace_install.install_s", 1e3),
    ),
    Quantity(
        "install-gap",
        "longest gap of the install",
        "ms",
        "the longest time during the install in which no vCPU committed",
        _at("trace_install.guest_gap_s", 1e3),
    ),
    Quantity(
        "bitmap", "bitmap at switchover", "KiB", "the bitmap as it was sent", _at("bitmap.compacted_bytes", 1 / 1024)
    ),
    Quantity(
        "ratio",
        "compression ratio",
        "",
        "contents of the pages that went compressed over what became of them",
        _at("compression.ratio"),
    ),
    Quantity("cpu", "CPU time of both daemons", "s", "user and system, from the request to full residency", _cpu_s),
    Quantity(
        "throttled",
        "throttle, largest of a round",
        "%",
        "the mean share of a round that vCPUs slept for auto-converge, in the round in which it was largest",
        _throttled,
    ),
    Quantity(
        "converged",
        "converged",
        "% of runs",
        "migrations that completed; the others were cancelled at their limit, or failed",
        _converged,
    ),
    Quantity(
        "retransmits",
        "retransmits",
        "",
        "segments that TCP sent again, all connections of the source together",
        _retransmits,
    ),
    Quantity(
        "link-rtt",
        "round trip of the link",
        "ms",
        "the median of echoes by UDP, measured before the migration",
        _at("link.measured.rtt_s", 1e3),
    ),
    Quantity(
        "link-goodput",
        "goodput of one TCP connection",
        "MB/s",
        "what one connection carried over the link before the migration, slow start included",
        _at("link.measured.tcp_goodput_bps", 1e-6 / 8),
    ),
    Quantity(
        "settled",
        "until one host has the guest for good",
        "ms",
        "from the fault until both hosts agree, the start of a new daemon included",
        _settled_ms,
    ),
)
QUANTITIES = {one.name: one for one in _ALL}
