"""`pagefire compare vsphere`: vSphere 6.7's way, vSphere 7's and ours on the same seeded guest, in turn, several times.

Two kinds of case. A resident guest over loopback, where the trace phase is looked at and the ablation made; and a sparse one, whose
bitmap is large for its contents, behind a shaped link, where sending that bitmap inside the stun shows. The profiles take turns
round after round, so that drift hits all alike. Every run has daemons and a guest of its own. Figures: compare_figures.py.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.linux.memfd import SHMEM_ENABLED, huge_pages_allowed
from pagefire.protocol.errors import Cancelled, FeatureMissing
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_duration, format_size, format_throughput
from pagefire.scripts.compare_figures import row_of
from pagefire.scripts.daemons import Pair
from pagefire.scripts.demo import LOOPBACK, pair_for, source_arguments
from pagefire.scripts.migrating import Migration
from pagefire.scripts.profiles import Profile, on_backing
from pagefire.scripts.shaped_link import ShapedLink

Json = dict[str, Any]

#: What the post measured on.
SCALED_FROM = {"vcpus": 72, "memory_bytes": 512 << 30}
_CALIBRATION_S = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """A guest, the profiles that migrate it, and the link: loopback, or shaped to `link_bps` bits a second.

    `rate_share` is the share of its unpaced rate, measured once before, that the guest shall do (None: as `config` says).
    """

    name: str
    config: GuestConfig
    profiles: tuple[str, ...]
    rate_share: float | None = None
    link_bps: int | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """How long a guest runs before it migrates and is watched afterwards, in seconds."""

    warmup_s: float = 2.0
    settle_s: float = 2.0


def require_backing(backing: str) -> None:
    """Raise FeatureMissing where a guest asks for 2 MiB pages and this host gives none; it is its owner's to change."""
    if backing == "thp" and not huge_pages_allowed():
        raise FeatureMissing(
            "the coarse granularity cannot be compared here",
            f"shared memory gets no 2 MiB pages; as root: echo advise > {SHMEM_ENABLED} "
            "(or compare without it: --backing 4k, where granularity stays 4K in every profile)",
        )


def run_compare(cases: Sequence[Case], times: Times, repetitions: int, console: Console) -> Json:
    """Run every case; gives {cases: [...]}, each with a row for each profile. Raises FeatureMissing before anything is started."""
    for case in cases:
        require_backing(case.config.backing)
        if case.link_bps is not None:
            ShapedLink.require_possible()
    return {
        "benchmark": "compare vsphere",
        "repetitions": repetitions,
        "scaled_from": SCALED_FROM,
        "host": {"cpus": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total, "kernel": os.uname().release},
        "cases": [_run_case(case, times, repetitions, console) for case in cases],
    }


def _run_case(case: Case, times: Times, repetitions: int, console: Console) -> Json:
    config, unpaced_per_s = case.config, None
    profiles, repeated = on_backing(case.profiles, config.backing)
    console.print(
        f"Guest {case.name}: {format_size(config.memory_bytes)}, {format_size(config.resident_bytes)} resident "
        f"({config.backing}), {config.vcpus} vCPUs, workload {config.workload}"
    )
    if case.rate_share is not None:
        unpaced_per_s = _unpaced_per_s(config, times.warmup_s)
        config = dataclasses.replace(config, rate=round(unpaced_per_s * case.rate_share))
    reports: dict[Profile, list[Json]] = {profile: [] for profile in profiles}
    with ShapedLink(case.link_bps) if case.link_bps is not None else nullcontext() as link:
        measured_bps = link.measure_bps() if link is not None else None
        if measured_bps is not None:
            console.print(f"  a plain TCP transfer through the link: {measured_bps / 1e9:.3g} Gbit/s")
        for _ in range(repetitions):
            for profile in profiles:
                reports[profile].append(report := _run(config, profile, times, link))
                console.print(f"  {_outcome(profile, report)}", soft_wrap=True)
    return {
        "name": case.name,
        "memory_bytes": config.memory_bytes,
        "resident_bytes": config.resident_bytes,
        "working_set_bytes": config.working_set_bytes,
        "vcpus": config.vcpus,
        "backing": config.backing,
        "workload": config.workload,
        "seed": config.seed,
        "rate_per_s": config.rate,
        "rate_share": case.rate_share,
        "rate_unpaced_per_s": unpaced_per_s,
        "link_bps": case.link_bps,
        "link_measured_bps": measured_bps,
        "repeated": repeated,
        "rows": [row_of(profile, done) for profile, done in reports.items()],
    }


def _run(config: GuestConfig, profile: Profile, times: Times, link: ShapedLink | None) -> Json:
    """Make one migration with a pair of daemons of its own."""
    quiet = Console(quiet=True)
    with pair_for(config, {}, link.place if link is not None else LOOPBACK) as pair:
        time.sleep(times.warmup_s)
        chosen = dataclasses.replace(profile.options(times.settle_s), to=pair.destination, insecure=link is not None)
        migration = Migration(pair.source_socket, config.name, dataclasses.asdict(chosen), quiet)
        report = migration.run()
    if migration.cancel_wanted:
        raise Cancelled("the comparison was interrupted", "", "")
    return report


def _unpaced_per_s(config: GuestConfig, warmup_s: float) -> float:
    """Measure what the guest commits a second when nothing paces or migrates it."""
    with Pair(source_arguments(dataclasses.replace(config, rate=None)), name=config.name) as pair:
        time.sleep(warmup_s)
        began_s, commits = time.monotonic(), request(pair.source_socket, "guest")["commits"]
        time.sleep(_CALIBRATION_S)
        done = request(pair.source_socket, "guest")["commits"] - commits
        return float(done) / (time.monotonic() - began_s)


def _outcome(profile: Profile, report: Json) -> str:
    return (
        f"{profile.name} ({profile.words}): stun {format_duration(report['stun_s'] or 0.0)}, "
        f"{format_duration(report['total_s'])} in all, {format_size(report['wire_bytes'])} sent, round 1 "
        f"{format_throughput(report['rounds'][0]['wire_bytes'] / report['rounds'][0]['duration_s'])}"
    )
