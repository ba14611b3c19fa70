"""The command line's options, each defined once for every command that takes it, and what they mean."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from pagefire.guest_workload.guest_config import Backing, GuestConfig
from pagefire.guest_workload.registry import BUILT_IN, refuse_unknown
from pagefire.protocol import bitmap as bitmaps
from pagefire.protocol.errors import UsageError
from pagefire.protocol.negotiation import MODES
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES
from pagefire.protocol.units import (
    format_size,
    parse_cpu_list,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    parse_throughput,
    parse_working_set,
)
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.retuning import MODES as RETUNED_MODES
from pagefire.source_host.tracker_choice import granularity_of
from pagefire.source_host.tracking import Granularity

TRACKERS = ("auto", "pagemap-scan", "page-fire")
INSTALLS = ("stop", "loose", "rolling")
TRACERS = ("vcpu", "host")
GRANULARITIES = ("4K", "2M", "auto")
BACKINGS = ("4k", "thp", "hugetlb")
INSTALL_CALLS = ("range", "per-page")
STEPS = {"2M": GRANULE_PAGES, "1G": (1 << 30) // PAGE_BYTES, "all": None}

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
CpusSource = Annotated[
    str | None, typer.Option("--cpus-source", help="Pin the source daemon.", rich_help_panel="Pinning")
]
CpusDest = Annotated[
    str | None, typer.Option("--cpus-dest", help="Pin the destination daemon.", rich_help_panel="Pinning")
]
CpusGuest = Annotated[
    str | None, typer.Option("--cpus-guest", help="Pin the guest to these CPUs: 0,2-3.", rich_help_panel="Pinning")
]
UserWorkloads = Annotated[
    list[str] | None,
    typer.Option("--allow-workload", help="A workload of your own that guests may run here: MODULE:CLASS. Repeatable."),
]
JsonFile = Annotated[
    str | None, typer.Option("--json", help="Write the report as JSON to a file, or - for standard output.")
]
ReportDir = Annotated[
    Path | None, typer.Option("--report", help="Write report.json, summary.txt and timeline.png into this folder.")
]
DestBacking = Annotated[
    str | None,
    typer.Option(
        "--backing",
        help="What maps guest memory at the destination: 4k, thp or hugetlb [default: what maps it at the source].",
        rich_help_panel="Migration",
    ),
]
GuestName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The guest; needed where several live.")]
MaxGuestMemory = Annotated[
    str | None, typer.Option("--max-guest-memory", help="The largest guest taken in [default: this host's memory].")
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt",
        help="Adopt the guests of any daemon here that died, whatever its name or port; those of one that this takes the place "
        "of are adopted anyway.",
    ),
]
LinkTimeout = Annotated[
    str,
    typer.Option("--link-timeout", help="A peer that has been silent for so long is lost.", rich_help_panel="Timeouts"),
]


def changes_in_flight(
    max_bandwidth: str | None,
    mode: str | None,
    downtime_limit: str | None,
    max_rounds: int | None,
    max_time: str | None,
    on_limit: str | None,
) -> dict[str, str | int | float | None]:
    """Read what is to be changed of a migration, by the names of its options; raises UsageError."""
    changes: dict[str, str | int | float | None] = {}
    if max_bandwidth is not None:
        changes["max_bandwidth_Bps"] = None if max_bandwidth == "off" else parse_throughput(max_bandwidth)
    if mode is not None:
        one_of("--mode", mode, RETUNED_MODES)
        changes["mode"] = mode
    if downtime_limit is not None:
        changes["downtime_limit_s"] = parse_duration(downtime_limit)
    if max_rounds is not None:
        changes["max_rounds"] = max_rounds
    if max_time is not None:
        changes["max_time_s"] = parse_duration(max_time)
    if on_limit is not None:
        one_of("--on-limit", on_limit, ("postcopy", "cancel"))
        changes["on_limit"] = on_limit
    if not changes:
        raise UsageError("nothing is to be set", "", "give an option, such as --max-bandwidth 125MB/s")
    return changes


def link_timeout(given: str) -> float:
    """Read how long a peer may be silent, in seconds; raises UsageError."""
    silence_s = parse_duration(given)
    if not 0.2 <= silence_s <= 86_400:
        raise UsageError(f"{given!r} is no time for a peer to be silent", "0.2s to 24h are", "change --link-timeout")
    return silence_s


InstallLoss = Annotated[
    str,
    typer.Option(
        "--install-loss",
        help="A loose install by the host waits where the guest has lost more of its commits than this; any: never.",
        rich_help_panel="Tracing",
    ),
]


@dataclass(frozen=True)
class GuestOptions:
    """What describes a guest."""

    memory: Annotated[
        str, typer.Option("--memory", help="Guest memory: 512M, 4GiB, 6TiB (sparse).", rich_help_panel="Guest")
    ] = "1GiB"
    resident: Annotated[
        str | None,
        typer.Option(
            "--resident",
            help="How much of it has contents: size or percentage [default: all].",
            rich_help_panel="Guest",
        ),
    ] = None
    scattered: Annotated[
        int,
        typer.Option(
            "--scattered",
            help="So many single pages with contents besides, scattered over all of a sparse guest's memory.",
            rich_help_panel="Guest",
        ),
    ] = 0
    vcpus: Annotated[int, typer.Option("--vcpus", help="1 to 256 vCPU threads.", rich_help_panel="Guest")] = 2
    workload: Annotated[
        str,
        typer.Option(
            "--workload",
            help="idle, sequential, random, hotspot, phased, adversary, oltp, or your own as MODULE:CLASS.",
            rich_help_panel="Guest",
        ),
    ] = "oltp"
    name: Annotated[str, typer.Option("--name", help="The guest's name.", rich_help_panel="Guest")] = "guest0"
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            help="Transactions (oltp) or page stores (others) per second of the whole guest: 2000/s, 50k/s [default: full speed].",
            rich_help_panel="Guest",
        ),
    ] = None
    working_set: Annotated[
        str,
        typer.Option("--working-set", help="What the workload writes: size or percentage.", rich_help_panel="Guest"),
    ] = "25%"
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the workload and of the memory's contents.", rich_help_panel="Guest")
    ] = 1
    backing: Annotated[
        str,
        typer.Option(
            "--backing",
            help="What maps its memory: 4k, thp (2 MiB pages), or hugetlb (2 MiB pages of the host's pool).",
            rich_help_panel="Guest",
        ),
    ] = "4k"

    def config(self) -> GuestConfig:
        """Parse it; raises UsageError before anything is started."""
        memory_bytes = parse_size(self.memory)
        resident_bytes = parse_working_set(self.resident, memory_bytes) if self.resident is not None else memory_bytes
        one_of("--backing", self.backing, BACKINGS)
        available_bytes = psutil.virtual_memory().available
        if resident_bytes > available_bytes and self.backing != "hugetlb":
            raise UsageError(
                f"{format_size(resident_bytes)} of resident guest memory do not fit into this host",
                f"{format_size(available_bytes)} are available",
                "give a smaller --memory, or --resident for a sparse guest",
            )
        refuse_unknown(self.workload, None)
        if not self.name or "/" in self.name or len(self.name) > 40:
            raise UsageError(
                f"{self.name!r} is no name for a guest", "1 to 40 characters without a slash are", "change --name"
            )
        config = GuestConfig(
            name=self.name,
            memory_bytes=memory_bytes,
            resident_bytes=resident_bytes,
            working_set_bytes=parse_working_set(self.working_set, resident_bytes),
            vcpus=self.vcpus,
            workload=self.workload,
            seed=self.seed,
            rate=parse_rate(self.rate) if self.rate is not None else None,
            backing=self.backing,
            scattered_pages=self.scattered,
            # Who starts the guest here chose its workload here: that is the permission.
            user_workloads=() if self.workload in BUILT_IN else (self.workload,),
        )
        config.layout().scattered_pages(self.scattered)
        return config


@dataclass(frozen=True)
class TracingOptions:
    """What describes how writes are traced."""

    tracker: Annotated[
        str,
        typer.Option(
            "--tracker",
            help="auto, pagemap-scan, or page-fire (each first write stops its vCPU).",
            rich_help_panel="Tracing",
        ),
    ] = "auto"
    install: Annotated[
        str,
        typer.Option(
            "--install",
            help="stop: every vCPU stands still while memory is protected; loose: they run on; "
            "rolling: each piece just before it is sent.",
            rich_help_panel="Tracing",
        ),
    ] = "loose"
    tracer: Annotated[
        str,
        typer.Option(
            "--tracer",
            help="Who does a loose install: vcpu (a claimed one of the guest) or host (a thread of the daemon).",
            rich_help_panel="Tracing",
        ),
    ] = "host"
    granularity: Annotated[
        str,
        typer.Option(
            "--granularity",
            help="Protect by 4K; by 2M and break down what fires; or auto: what the memory's backing allows, broken down "
            "where that pays.",
            rich_help_panel="Tracing",
        ),
    ] = "auto"
    install_step: Annotated[
        str,
        typer.Option(
            "--install-step", help="The most that one system call protects: 2M, 1G or all.", rich_help_panel="Tracing"
        ),
    ] = "2M"

    install_calls: Annotated[
        str,
        typer.Option(
            "--install-calls",
            help="range: a call protects a step; per-page: a call for each page, which measures system calls.",
            rich_help_panel="Tracing",
        ),
    ] = "range"
    install_loss: InstallLoss = "3%"

    @property
    def step_pages(self) -> int | None:
        """How many pages one call protects at most; None for as many as lie together. Raises UsageError."""
        one_of("--install-step", self.install_step, tuple(STEPS))
        return 1 if self.install_calls == "per-page" else STEPS[self.install_step]

    def require_possible(self) -> None:
        """Raise UsageError for what is unknown or does not go together."""
        one_of("--tracker", self.tracker, TRACKERS)
        one_of("--install", self.install, INSTALLS)
        one_of("--tracer", self.tracer, TRACERS)
        one_of("--granularity", self.granularity, GRANULARITIES)
        one_of("--install-calls", self.install_calls, INSTALL_CALLS)
        if self.install_calls == "per-page" and (self.granularity == "2M" or self.install == "rolling"):
            raise UsageError(
                "--install-calls per-page goes with --granularity 4K and --install stop or loose only",
                "it makes a call for each page of 4 KiB, all of them at once",
                "leave it out",
            )

    def require_possible_for(self, backing: str) -> None:
        """Raise UsageError where memory of this backing, which is a known one, cannot be traced so."""
        granularity_of(Backing(backing), self.tracker, Granularity(self.granularity))


@dataclass(frozen=True)
class MoveOptions:
    """What describes a migration, but for its tracing."""

    mode: Annotated[
        str, typer.Option("--mode", help="hybrid, precopy, postcopy or stop-and-copy.", rich_help_panel="Migration")
    ] = "hybrid"
    downtime_limit: Annotated[
        str,
        typer.Option(
            "--downtime-limit",
            help="precopy: the longest stun. hybrid: the longest time to move what remains after the resume.",
            rich_help_panel="Migration",
        ),
    ] = "50ms"
    max_rounds: Annotated[
        int, typer.Option("--max-rounds", help="Pre-copy rounds at most.", rich_help_panel="Migration")
    ] = 30
    max_time: Annotated[str, typer.Option("--max-time", help="Pre-copy time at most.", rich_help_panel="Migration")] = (
        "300s"
    )
    on_limit: Annotated[
        str | None,
        typer.Option(
            "--on-limit",
            help="What follows --max-rounds and --max-time: postcopy or cancel [default: postcopy; cancel in mode precopy].",
            rich_help_panel="Migration",
        ),
    ] = None
    auto_converge: Annotated[
        bool,
        typer.Option(
            "--auto-converge",
            help="precopy: slow the vCPUs that write most, as much as needed. hybrid needs none of it.",
            rich_help_panel="Migration",
        ),
    ] = False
    streams: Annotated[
        int, typer.Option("--streams", help="Page connections, 1 to 16.", rich_help_panel="Migration")
    ] = 1
    max_bandwidth: Annotated[
        str | None,
        typer.Option(
            "--max-bandwidth",
            help="What all page connections together may send: 125MB/s, 1Gbit/s [default: all that the link carries].",
            rich_help_panel="Migration",
        ),
    ] = None
    bitmap: Annotated[
        str,
        typer.Option(
            "--bitmap",
            help="How the switchover tells which pages are left: raw (a bit for each page of the guest) or compacted.",
            rich_help_panel="Migration",
        ),
    ] = "compacted"
    populate: Annotated[
        bool,
        typer.Option(
            "--populate",
            help="Take the destination's memory before the first round (longer setup, quicker round).",
            rich_help_panel="Migration",
        ),
    ] = False
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare page digests of both hosts at the stun; lengthens it.",
            rich_help_panel="Migration",
        ),
    ] = False
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Pause the guest after the measurement and check the workload's invariant.",
            rich_help_panel="Migration",
        ),
    ] = True
    settle: Annotated[
        str,
        typer.Option("--settle", help="How long to watch the guest at the destination.", rich_help_panel="Migration"),
    ] = "1s"
    connect_timeout: Annotated[
        str,
        typer.Option("--connect-timeout", help="For a connection and its greeting.", rich_help_panel="Timeouts"),
    ] = "10s"
    setup_timeout: Annotated[
        str,
        typer.Option("--setup-timeout", help="For the guest's shell at the destination.", rich_help_panel="Timeouts"),
    ] = "120s"
    switchover_timeout: Annotated[
        str,
        typer.Option(
            "--switchover-timeout",
            help="For the vCPUs to stop, and for the destination to be READY: then the guest runs on here.",
            rich_help_panel="Timeouts",
        ),
    ] = "10s"
    link_timeout: LinkTimeout = "10s"

    def migration(self, to: str, tracing: TracingOptions) -> MigrationOptions:
        """Parse it; raises UsageError."""
        one_of("--mode", self.mode, MODES)
        one_of("--bitmap", self.bitmap, bitmaps.FORMS)
        tracing.require_possible()
        if self.on_limit is not None:
            one_of("--on-limit", self.on_limit, ("postcopy", "cancel"))
        if not 1 <= self.streams <= 16:
            raise UsageError(f"{self.streams} page connections cannot be had", "1 to 16 can", "change --streams")
        if self.max_rounds < 1:
            raise UsageError(
                f"{self.max_rounds} pre-copy rounds make no pre-copy",
                "at least 1 is needed",
                "use --mode postcopy for none",
            )
        return MigrationOptions(
            to=to,
            mode=self.mode,
            downtime_limit_s=parse_duration(self.downtime_limit),
            max_rounds=self.max_rounds,
            max_time_s=parse_duration(self.max_time),
            on_limit=self.on_limit,
            auto_converge=self.auto_converge,
            streams=self.streams,
            max_bandwidth_Bps=parse_throughput(self.max_bandwidth) if self.max_bandwidth is not None else None,
            tracker=tracing.tracker,
            install=tracing.install,
            tracer=tracing.tracer,
            # Page by page is by pages, whatever the memory would allow.
            granularity="4K" if tracing.install_calls == "per-page" else tracing.granularity,
            install_step_pages=tracing.step_pages,
            install_most_loss=loss(tracing.install_loss),
            bitmap=self.bitmap,
            populate=self.populate,
            verify=self.verify,
            check=self.check,
            settle_s=parse_duration(self.settle),
            connect_timeout_s=parse_duration(self.connect_timeout),
            setup_timeout_s=parse_duration(self.setup_timeout),
            switchover_timeout_s=parse_duration(self.switchover_timeout),
            silence_s=link_timeout(self.link_timeout),
        )


@dataclass(frozen=True)
class PinningOptions:
    """Which CPUs who runs on, as given."""

    cpus_source: CpusSource = None
    cpus_dest: CpusDest = None
    cpus_guest: CpusGuest = None

    def given(self) -> dict[str, str | None]:
        """Give them as the daemons take them; raises UsageError for a CPU that is not there."""
        pins = {"--cpus-source": self.cpus_source, "--cpus-dest": self.cpus_dest, "--cpus-guest": self.cpus_guest}
        for one in pins.values():
            cpus(one)
        return pins


def loss(given: str) -> float | None:
    """Parse the loss that an install may cost the guest; None for any. Raises UsageError."""
    return None if given == "any" else parse_share(given)


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


def one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    """Raise UsageError unless `given` is one of the known."""
    if given not in known:
        raise UsageError(f"{option} {given} is unknown", f"known are {', '.join(known)}")
