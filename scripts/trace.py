"""`pagefire trace`: what tracing costs a guest, without a migration, for every combination that is asked for.

One guest for each number of vCPUs, share touched and backing; the ways to install tracing take turns on it, round after round, so
that drift hits all alike. A guest that ran untraced, between two trials, is the baseline of each (see source_host/trace_trial.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.fire_cost import fire_cost_s
from pagefire.protocol.ownership import Owner
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.report import TraceInstall
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.trace_crossing import crossing_words, crossings, share_of, varied
from pagefire.source_host.pagemap_tracker import PagemapTracker
from pagefire.source_host.trace_install import InstallOptions
from pagefire.source_host.trace_trial import TraceTrial, TrialTimes, run_trial
from pagefire.source_host.tracker_choice import TrackerChoice, choose_tracker
from pagefire.source_host.tracking import Granularity

Json = dict[str, Any]

_TABLE_COLUMNS = 136
#: How long a guest runs before its first trial.
WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A guest that trials are made on: `config` as it is at full rate; `rate_share` of that is what it shall do (None: all)."""

    config: GuestConfig
    touched: float
    rate_share: float | None


def run_trace(
    shapes: Sequence[Shape],
    ways: Sequence[InstallOptions],
    tracker: str,
    times: TrialTimes,
    repetitions: int,
    link_bps: float,
    console: Console,
) -> Json:
    """Make all trials; gives {rows: [...], crossings: [...]}, a row a combination with the median of its repetitions.

    `link_bps`, in bits per second, is what pages to send again are counted at, and how fast a rolling install goes. Nothing is
    sent.
    """
    choice = choose_tracker(tracker)
    # A synchronous fire costs what this host's thread takes to answer it, which is not measured apart.
    fire_s = fire_cost_s() if choice.name == PagemapTracker.name else None
    rows = []
    for index, shape in enumerate(shapes):
        console.print(
            f"Guest {index + 1}/{len(shapes)}: {format_size(shape.config.resident_bytes)} resident ({shape.config.backing}), "
            f"{shape.config.vcpus} vCPUs, {shape.touched:.0%} touched, workload {shape.config.workload}, "
            f"{_pace_words(shape.rate_share)}"
        )
        rows += _rows_of_guest(shape, ways, choice, times, repetitions, fire_s, link_bps, console)
    return {
        "benchmark": "trace",
        "tracker": choice.name,
        "repetitions": repetitions,
        "fire_s": fire_s,
        "rows": rows,
        "crossings": crossings(rows),
    }


def _rows_of_guest(
    shape: Shape,
    ways: Sequence[InstallOptions],
    choice: TrackerChoice,
    times: TrialTimes,
    repetitions: int,
    fire_s: float | None,
    link_bps: float,
    console: Console,
) -> list[Json]:
    trials: dict[InstallOptions, list[TraceTrial]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="pagefire-") as directory:
        guest = GuestProcess.spawn(Path(directory) / "guest0.guest", shape.config)
        try:
            guest.control.owner = Owner.OWNER
            guest.control.resume()
            time.sleep(WARM_UP_S)
            full_rate_per_s = _pace(guest, shape.rate_share)
            running = _running(shape.config)
            for _ in range(repetitions):
                for way in ways:
                    trials[way].append(trial := run_trial(guest, choice, way, times, running, link_bps))
                    console.print(f"  {_outcome(trial)}", soft_wrap=True)
        finally:
            guest.terminate()
    return [_row(shape, way, done, full_rate_per_s, fire_s, link_bps) for way, done in trials.items()]


def _running(config: GuestConfig) -> int:
    """Count the vCPUs that can run at a time."""
    return min(config.vcpus, len(config.cpus or os.sched_getaffinity(0)))


def _pace(guest: GuestProcess, share: float | None) -> float:
    """Measure what the guest does unpaced, and set it to a share of that; gives the former."""
    control = guest.control
    began_s, commits = time.monotonic(), control.commits()
    time.sleep(WARM_UP_S)
    rate_per_s = (control.commits() - commits) / (time.monotonic() - began_s)
    if share is not None and rate_per_s:
        control.interval_ns = max(1, round(1e9 * control.vcpus / (rate_per_s * share)))
        time.sleep(WARM_UP_S)
    return rate_per_s


def _row(
    shape: Shape,
    way: InstallOptions,
    trials: Sequence[TraceTrial],
    full_rate_per_s: float,
    fire_s: float | None,
    link_bps: float,
) -> Json:
    """Put the medians of one combination's trials together; the key figures' extremes stand beside them."""
    config = shape.config
    installs = [trial.install for trial in trials]
    claimed = [one.claimed_vcpu_gap_s for one in installs if one.claimed_vcpu_gap_s is not None]
    gaps_s = [one.guest_gap_s or 0.0 for one in installs]
    kept = [trial.rate_install_per_s / trial.rate_before_per_s for trial in trials]
    per_fire_s = [trial.lost_s / trial.fires for trial in trials if trial.fires]
    shootdowns = [trial.tlb_shootdowns for trial in trials if trial.tlb_shootdowns is not None]

    def median(figure: str) -> float:
        return float(statistics.median(getattr(trial, figure) for trial in trials))

    return {
        "install": way.policy,
        "tracer": way.done_by,
        "granularity": installs[0].granularity,
        "backing": config.backing,
        "touched": shape.touched,
        "vcpus": config.vcpus,
        "step": installs[0].step_bytes,
        "memory_bytes": config.memory_bytes,
        "resident_bytes": config.resident_bytes,
        "workload": config.workload,
        "rate_share": shape.rate_share,
        "most_loss": way.most_loss,
        "repetitions": len(trials),
        "calls": installs[0].calls,
        "install_s": statistics.median(one.install_s for one in installs),
        "any_vcpu_gap_s": statistics.median(gaps_s),
        "any_vcpu_gap_min_s": min(gaps_s),
        "any_vcpu_gap_max_s": max(gaps_s),
        "any_vcpu_gap_before_s": median("gap_before_s"),
        "vcpu_gap_s": {
            "p50": statistics.median(one.vcpu_gap_s.p50 for one in installs if one.vcpu_gap_s),
            "max": statistics.median(one.vcpu_gap_s.max for one in installs if one.vcpu_gap_s),
        },
        "claimed_vcpu_gap_s": statistics.median(claimed) if claimed else None,
        "guest_rate_unpaced_per_s": full_rate_per_s,
        "guest_rate_before_per_s": median("rate_before_per_s"),
        "guest_rate_install_per_s": median("rate_install_per_s"),
        "guest_rate_traced_per_s": median("rate_traced_per_s"),
        "guest_rate_after_per_s": median("rate_after_per_s"),
        "install_rate_kept": statistics.median(kept),
        "install_rate_kept_min": min(kept),
        "traced_rate_kept": statistics.median(trial.rate_traced_per_s / trial.rate_before_per_s for trial in trials),
        "after_rate_kept": statistics.median(trial.rate_after_per_s / trial.rate_before_per_s for trial in trials),
        "fires": median("fires"),
        "fires_cost_s": median("fires") * fire_s if fire_s is not None else None,
        "lost_s": median("lost_s"),
        "lost_per_fire_s": statistics.median(per_fire_s) if per_fire_s else None,
        "answer_us": dataclasses.asdict(installs[0].answer_us) if installs[0].answer_us is not None else None,
        "scan_s": median("scan_s"),
        "dirty_pages": median("dirty_pages"),
        "collected_pages": median("collected_pages"),
        "host_s": median("host_s"),
        "tracing_s": (
            tracing_s := _tracing_s(way, median("host_s"), median("fires"), installs, fire_s, _running(config))
        ),
        "link_bps": link_bps,
        "resend_s": (resend_s := median("collected_pages") * PAGE_BYTES * 8 / link_bps),
        "total_s": tracing_s + resend_s if tracing_s is not None else None,
        "remove_s": median("remove_s"),
        "granules_left_small": max(trial.granules_left_small for trial in trials),
        "tlb_shootdowns": statistics.median(shootdowns) if shootdowns else None,
    }


def _tracing_s(
    way: InstallOptions,
    host_s: float,
    fires: float,
    installs: Sequence[TraceInstall],
    fire_s: float | None,
    running_vcpus: int,
) -> float | None:
    """Add up the CPU time that tracing took: this host's, the fires', and that of the vCPUs that made the calls."""
    if fire_s is None:
        return None
    # A claimed vCPU, or in a stop-based install as many at a time as there are CPUs for them.
    tracers = {"vcpu": running_vcpus if way.policy == "stop" else 1}.get(way.done_by, 0)
    return host_s + fires * fire_s + tracers * statistics.median(one.install_s for one in installs)


def ways_to_install(
    policies: Sequence[str],
    tracers: Sequence[str],
    granularities: Sequence[str],
    steps: Sequence[int | None],
    most_loss: float | None,
) -> list[InstallOptions]:
    """Take every combination, each that is the same in effect once: a stop-based install has no choice of tracer."""
    ways: dict[InstallOptions, None] = {}
    for policy, tracer, granularity, step in itertools.product(policies, tracers, granularities, steps):
        way = InstallOptions(policy, tracer, Granularity(granularity), step, most_loss)
        ways.setdefault(dataclasses.replace(way, tracer=way.done_by), None)
    return list(ways)


def shapes_of(
    base: GuestConfig,
    vcpus: Sequence[int],
    touched: Sequence[float],
    backings: Sequence[str],
    rate_shares: Sequence[float | None],
) -> Iterator[Shape]:
    """Take every combination of guests."""
    for count, share, backing, rate_share in itertools.product(vcpus, touched, backings, rate_shares):
        working_set_bytes = max(round(base.resident_bytes * share), 1)
        config = dataclasses.replace(base, vcpus=count, working_set_bytes=working_set_bytes, backing=backing)
        config.layout()
        yield Shape(config, share, rate_share)


def _pace_words(rate_share: float | None) -> str:
    return f"{rate_share:.3g} of its full rate" if rate_share is not None else "full rate"


def way_words(policy: str, tracer: str, granularity: str, step_bytes: int | None) -> str:
    """Name a way to install in a few words."""
    by = f" by {tracer}" if policy == "loose" else ""
    return f"{policy}{by}, {granularity}, {format_size(step_bytes) if step_bytes else 'all'}"


def _outcome(trial: TraceTrial) -> str:
    way = trial.install
    return (
        f"{way_words(way.policy, way.tracer, way.granularity, way.step_bytes)}: installed in {format_duration(way.install_s)}, "
        f"no vCPU committed for {format_duration(way.guest_gap_s or 0.0)}, "
        f"rate kept {trial.rate_install_per_s / trial.rate_before_per_s:.0%}, then {format_count(trial.fires)} fires"
    )


def print_trace(result: Json, console: Console) -> None:
    """Print the rows as a table; a narrower console is widened, because cut figures are no figures."""
    console.width = max(console.width, _TABLE_COLUMNS)
    table = Table(title=f"Tracing by {result['tracker']}, medians of {result['repetitions']}", title_justify="left")
    for head in ("guest", "way"):
        table.add_column(head, no_wrap=True)
    for head in ("install", "no vCPU", "kept", "traced", "lost", "fires", "cost", "scan"):
        table.add_column(head, justify="right", no_wrap=True)
    paced = varied(result["rows"]) == "rate_share"
    for row in result["rows"]:
        table.add_row(
            f"{row['vcpus']} vCPUs, {row['touched']:.0%}, {row['backing']}"
            + (f", rate {share_of(row, 'rate_share'):.3g}" if paced else ""),
            way_words(row["install"], row["tracer"], row["granularity"], row["step"]),
            format_duration(row["install_s"]),
            format_duration(row["any_vcpu_gap_s"]),
            f"{row['install_rate_kept']:.0%}",
            f"{row['traced_rate_kept']:.0%}",
            format_duration(max(row["lost_s"], 0.0)),
            format_count(row["fires"]),
            format_duration(row["fires_cost_s"]) if row["fires_cost_s"] is not None else "-",
            format_duration(row["scan_s"]),
        )
    console.print(table)
    for one in result["crossings"]:
        console.print(
            f"{way_words(one['install'], one['tracer'], 'granularity', one['step'])}: {crossing_words(one)}.",
            soft_wrap=True,
        )
    console.print(
        "no vCPU: the longest time without any commit during the install. kept, traced: commits per second during it, and "
        "while dirty pages were collected, against the second before. lost: vCPU time that the latter cost; cost: the fires "
        "times what one costs "
        f"({format_duration(result['fire_s']) if result['fire_s'] is not None else 'not measured'}).",
        style="dim",
    )
