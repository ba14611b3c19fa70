"""The command line's options, each defined once for every command that takes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import psutil
import typer

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.registry import BUILT_IN, refuse_unknown
from pagefire.protocol.errors import UsageError
from pagefire.protocol.negotiation import MODES
from pagefire.protocol.units import (
    format_size,
    parse_cpu_list,
    parse_duration,
    parse_rate,
    parse_size,
    parse_working_set,
)
from pagefire.source_host.options import MigrationOptions

Memory = Annotated[
    str, typer.Option("--memory", help="Guest memory: 512M, 4GiB, 6TiB (sparse).", rich_help_panel="Guest")
]
Resident = Annotated[
    str | None,
    typer.Option(
        "--resident", help="How much of it has contents: size or percentage [default: all].", rich_help_panel="Guest"
    ),
]
Vcpus = Annotated[int, typer.Option("--vcpus", help="1 to 256 vCPU threads.", rich_help_panel="Guest")]
WorkloadName = Annotated[
    str,
    typer.Option(
        "--workload",
        help="idle, sequential, random, hotspot, phased, adversary, oltp, or your own as MODULE:CLASS.",
        rich_help_panel="Guest",
    ),
]
Name = Annotated[str, typer.Option("--name", help="The guest's name.", rich_help_panel="Guest")]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate",
        help="Transactions (oltp) or page stores (others) per second of the whole guest: 2000/s, 50k/s [default: full speed].",
        rich_help_panel="Guest",
    ),
]
WorkingSet = Annotated[
    str, typer.Option("--working-set", help="What the workload writes: size or percentage.", rich_help_panel="Guest")
]
Seed = Annotated[
    int, typer.Option("--seed", help="Seed of the workload and of the memory's contents.", rich_help_panel="Guest")
]
StopAt = Annotated[
    int,
    typer.Option(
        "--stop-at",
        help="Each vCPU stops after so many transactions since birth: for replays; 0 never.",
        rich_help_panel="Guest",
    ),
]
RuntimeDir = Annotated[
    Path | None,
    typer.Option("--runtime-dir", help="Where the control sockets lie [default: $XDG_RUNTIME_DIR/pagefire]."),
]
CpusGuest = Annotated[
    str | None, typer.Option("--cpus-guest", help="Pin the guest to these CPUs: 0,2-3.", rich_help_panel="Pinning")
]
CpusSource = Annotated[
    str | None, typer.Option("--cpus-source", help="Pin the source daemon.", rich_help_panel="Pinning")
]
CpusDest = Annotated[
    str | None, typer.Option("--cpus-dest", help="Pin the destination daemon.", rich_help_panel="Pinning")
]
UserWorkloads = Annotated[
    list[str] | None,
    typer.Option("--allow-workload", help="A workload of your own that guests may run here: MODULE:CLASS. Repeatable."),
]
Mode = Annotated[
    str, typer.Option("--mode", help="hybrid, precopy, postcopy or stop-and-copy.", rich_help_panel="Migration")
]
DowntimeLimit = Annotated[
    str,
    typer.Option(
        "--downtime-limit",
        help="precopy: the longest stun. hybrid: the longest time to move what remains after the resume.",
        rich_help_panel="Migration",
    ),
]
MaxRounds = Annotated[int, typer.Option("--max-rounds", help="Pre-copy rounds at most.", rich_help_panel="Migration")]
MaxTime = Annotated[str, typer.Option("--max-time", help="Pre-copy time at most.", rich_help_panel="Migration")]
OnLimit = Annotated[
    str | None,
    typer.Option(
        "--on-limit",
        help="What follows --max-rounds and --max-time: postcopy or cancel [default: postcopy; cancel in mode precopy].",
        rich_help_panel="Migration",
    ),
]
Streams = Annotated[int, typer.Option("--streams", help="Page connections, 1 to 16.", rich_help_panel="Migration")]
Tracker = Annotated[
    str,
    typer.Option(
        "--tracker",
        help="auto, pagemap-scan, or page-fire (each first write stops its vCPU).",
        rich_help_panel="Migration",
    ),
]
Populate = Annotated[
    bool,
    typer.Option(
        "--populate",
        help="Take the destination's memory before the first round (longer setup, quicker round).",
        rich_help_panel="Migration",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Compare page digests of both hosts at the stun; lengthens it.", rich_help_panel="Migration"
    ),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="Pause the guest after the measurement and check the workload's invariant.",
        rich_help_panel="Migration",
    ),
]
Settle = Annotated[
    str, typer.Option("--settle", help="How long to watch the guest at the destination.", rich_help_panel="Migration")
]
JsonFile = Annotated[
    str | None, typer.Option("--json", help="Write the report as JSON to a file, or - for standard output.")
]
ReportDir = Annotated[
    Path | None, typer.Option("--report", help="Write report.json, summary.txt and timeline.png into this folder.")
]
GuestName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The guest; needed where several daemons run.")]


def guest_config(
    memory: str,
    resident: str | None,
    vcpus: int,
    workload: str,
    name: str,
    rate: str | None,
    working_set: str,
    seed: int,
    stop_at: int = 0,
) -> GuestConfig:
    """Parse what describes a guest; raises UsageError before anything is started."""
    memory_bytes = parse_size(memory)
    resident_bytes = parse_working_set(resident, memory_bytes) if resident is not None else memory_bytes
    available_bytes = psutil.virtual_memory().available
    if resident_bytes > available_bytes:
        raise UsageError(
            f"{format_size(resident_bytes)} of resident guest memory do not fit into this host",
            f"{format_size(available_bytes)} are available",
            "give a smaller --memory, or --resident for a sparse guest",
        )
    refuse_unknown(workload, None)
    if not name or "/" in name or len(name) > 40:
        raise UsageError(f"{name!r} is no name for a guest", "1 to 40 characters without a slash are", "change --name")
    config = GuestConfig(
        name=name,
        memory_bytes=memory_bytes,
        resident_bytes=resident_bytes,
        working_set_bytes=parse_working_set(working_set, resident_bytes),
        vcpus=vcpus,
        workload=workload,
        seed=seed,
        rate=parse_rate(rate) if rate is not None else None,
        stop_at=stop_at,
        # Who starts the guest here chose its workload here: that is the permission.
        user_workloads=() if workload in BUILT_IN else (workload,),
    )
    config.layout()
    return config


def migration_options(
    to: str,
    mode: str,
    downtime_limit: str,
    max_rounds: int,
    max_time: str,
    on_limit: str | None,
    streams: int,
    tracker: str,
    populate: bool,
    verify: bool,
    check: bool,
    settle: str,
) -> MigrationOptions:
    """Parse what describes a migration; raises UsageError."""
    _one_of("--mode", mode, MODES)
    _one_of("--tracker", tracker, ("auto", "pagemap-scan", "page-fire"))
    if on_limit is not None:
        _one_of("--on-limit", on_limit, ("postcopy", "cancel"))
    if not 1 <= streams <= 16:
        raise UsageError(f"{streams} page connections cannot be had", "1 to 16 can", "change --streams")
    if max_rounds < 1:
        raise UsageError(
            f"{max_rounds} pre-copy rounds make no pre-copy", "at least 1 is needed", "use --mode postcopy for none"
        )
    return MigrationOptions(
        to=to,
        mode=mode,
        downtime_limit_s=parse_duration(downtime_limit),
        max_rounds=max_rounds,
        max_time_s=parse_duration(max_time),
        on_limit=on_limit,
        streams=streams,
        tracker=tracker,
        populate=populate,
        verify=verify,
        check=check,
        settle_s=parse_duration(settle),
    )


def cpus(given: str | None) -> tuple[int, ...]:
    """Parse a CPU list; empty when none was given."""
    if given is None:
        return ()
    asked, online = parse_cpu_list(given), Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip()
    if missing := sorted(set(asked) - set(parse_cpu_list(online))):
        raise UsageError(f"there is no CPU {missing[0]} here", f"online are {online}", "name CPUs that are online")
    return asked


def guest_cpus(cpus_guest: str | None, cpus_of_its_daemon: str | None) -> tuple[int, ...]:
    """Give the CPUs that a guest is pinned to; empty for none.

    Where only the daemon is pinned, those are all: the guest is its child and would inherit the daemon's.
    """
    if cpus_guest is None and cpus_of_its_daemon is not None:
        return tuple(sorted(os.sched_getaffinity(0)))
    return cpus(cpus_guest)


def _one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError(f"{option} {given} is unknown", f"known are {', '.join(known)}")
