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
from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES
from pagefire.protocol.units import (
    format_size,
    parse_cpu_list,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    parse_working_set,
)
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
    typer.Option("--runtime-dir", help="Where the control sockets lie \\[default: $XDG_RUNTIME_DIR/pagefire]."),
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
GuestName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The guest; needed where several live.")]
MaxGuestMemory = Annotated[
    str | None, typer.Option("--max-guest-memory", help="The largest guest taken in \\[default: this host's memory].")
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


def link_timeout(given: str) -> float:
    """Read how long a peer may be silent, in seconds; raises UsageError."""
    silence_s = parse_duration(given)
    if not 0.2 <= silence_s <= 86_400:
        raise UsageError(f"{given!r} is no time for a peer to be silent", "0.2s to 24h are", "change --link-timeout")
    return silence_s


def watch_time(given: str) -> float:
    """Read how long a guest is to be watched, in seconds; raises UsageError."""
    watch_s = parse_duration(given)
    if not 0.1 <= watch_s <= 600:
        raise UsageError(f"{given!r} is no time to watch a guest", "0.1s to 10m are", "change --for")
    return watch_s


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
            help="How much of it has contents: size or percentage \\[default: all].",
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
            help="idle, sequential, random, hotspot, phased, adversary, oltp, sqlite, or your own as MODULE:CLASS.",
            rich_help_panel="Guest",
        ),
    ] = "oltp"
    name: Annotated[str, typer.Option("--name", help="The guest's name.", rich_help_panel="Guest")] = "guest0"
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            help="Transactions (oltp, sqlite) or page stores (others) per second of the whole guest: 2000/s, 50k/s "
            "\\[default: full speed; sqlite: 500/s of each vCPU].",
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
