"""The options of a migration, but for its tracing: those it begins with, and those that can be changed in flight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pagefire.protocol import bitmap as bitmaps
from pagefire.protocol.compression import MODES as COMPRESSION_MODES
from pagefire.protocol.errors import UsageError
from pagefire.protocol.messages import MAX_FRAME_PAGES
from pagefire.protocol.negotiation import MAX_STREAMS, MODES
from pagefire.protocol.units import parse_duration, parse_size, parse_throughput
from pagefire.scripts import options as o
from pagefire.source_host.options import PREFETCH_PAGES, MigrationOptions
from pagefire.source_host.retuning import MODES as RETUNED_MODES
from pagefire.source_host.skipping import MODES as SKIPPING_MODES

DestBacking = Annotated[
    str | None,
    typer.Option(
        "--backing",
        help="What maps guest memory at the destination: 4k, thp or hugetlb \\[default: what maps it at the source].",
        rich_help_panel="Migration",
    ),
]


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
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="A function of your own that decides when pre-copy ends: MODULE:FUNCTION or FILE.py:FUNCTION.",
            rich_help_panel="Migration",
        ),
    ] = None
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
            help="What follows --max-rounds and --max-time: postcopy or cancel \\[default: postcopy; cancel in mode precopy].",
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
        str,
        typer.Option(
            "--streams", help="Page connections, 1 to 16, or auto: as many as carry more.", rich_help_panel="Migration"
        ),
    ] = "1"
    compress: Annotated[
        str,
        typer.Option(
            "--compress",
            help="Compress page contents: off, lz4, zstd, or auto: with what pays at the link's speed, if anything does.",
            rich_help_panel="Migration",
        ),
    ] = "off"
    delta_cache: Annotated[
        str | None,
        typer.Option(
            "--delta-cache",
            help="Keep the last version of pages in so much memory (512MiB) and send in rounds what has changed; needs --compress.",
            rich_help_panel="Migration",
        ),
    ] = None
    prefetch: Annotated[
        int,
        typer.Option(
            "--prefetch",
            help="After the resume, push next what lies around a fault: an aligned window of so many pages, 0 for none.",
            rich_help_panel="Migration",
        ),
    ] = PREFETCH_PAGES
    skip_unchanged: Annotated[
        str,
        typer.Option(
            "--skip-unchanged",
            help="Leave out of rounds what the destination holds just so: off, on, or auto: where it pays (2 MiB pages).",
            rich_help_panel="Migration",
        ),
    ] = "off"
    max_bandwidth: Annotated[
        str | None,
        typer.Option(
            "--max-bandwidth",
            help="What all page connections together may send: 125MB/s, 1Gbit/s \\[default: all that the link carries].",
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
    foretell: Annotated[
        bool,
        typer.Option(
            "--foretell/--no-foretell",
            help="hybrid: send the bitmap while the guest still runs, and during the stun only what has changed.",
            rich_help_panel="Migration",
        ),
    ] = True
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
    link_timeout: o.LinkTimeout = "10s"

    def migration(self, to: str, tracing: o.TracingOptions) -> MigrationOptions:
        """Parse it; raises UsageError."""
        o.one_of("--mode", self.mode, MODES)
        o.one_of("--bitmap", self.bitmap, bitmaps.FORMS)
        o.one_of("--compress", self.compress, COMPRESSION_MODES)
        o.one_of("--skip-unchanged", self.skip_unchanged, SKIPPING_MODES)
        if self.delta_cache is not None and self.compress == "off":
            raise UsageError(
                "--delta-cache without --compress sends nothing smaller",
                "differences have as many bytes as pages until a codec packs them",
                "add --compress auto, lz4 or zstd",
            )
        tracing.require_possible()
        if self.on_limit is not None:
            o.one_of("--on-limit", self.on_limit, ("postcopy", "cancel"))
        if not 0 <= self.prefetch <= MAX_FRAME_PAGES:
            raise UsageError(
                f"a window of {self.prefetch} pages cannot be pushed at once",
                f"0 to {MAX_FRAME_PAGES} can",
                "change --prefetch",
            )
        if self.max_rounds < 1:
            raise UsageError(
                f"{self.max_rounds} pre-copy rounds make no pre-copy",
                "at least 1 is needed",
                "use --mode postcopy for none",
            )
        return MigrationOptions(
            to=to,
            mode=self.mode,
            policy=located(self.policy),
            downtime_limit_s=parse_duration(self.downtime_limit),
            max_rounds=self.max_rounds,
            max_time_s=parse_duration(self.max_time),
            on_limit=self.on_limit,
            auto_converge=self.auto_converge,
            streams=page_connections(self.streams),
            compress=self.compress,
            delta_cache_bytes=parse_size(self.delta_cache) if self.delta_cache is not None else 0,
            prefetch_pages=self.prefetch,
            skip_unchanged=self.skip_unchanged,
            max_bandwidth_Bps=parse_throughput(self.max_bandwidth) if self.max_bandwidth is not None else None,
            tracker=tracing.tracker,
            install=tracing.install,
            tracer=tracing.tracer,
            # Page by page is by pages, whatever the memory would allow.
            granularity="4K" if tracing.install_calls == "per-page" else tracing.granularity,
            install_step_pages=tracing.step_pages,
            install_most_loss=o.loss(tracing.install_loss),
            bitmap=self.bitmap,
            foretell=self.foretell,
            populate=self.populate,
            verify=self.verify,
            check=self.check,
            settle_s=parse_duration(self.settle),
            connect_timeout_s=parse_duration(self.connect_timeout),
            setup_timeout_s=parse_duration(self.setup_timeout),
            switchover_timeout_s=parse_duration(self.switchover_timeout),
            silence_s=o.link_timeout(self.link_timeout),
        )


def located(policy: str | None) -> str | None:
    """Give a policy's name for a daemon, which may run in another directory; raises UsageError."""
    if policy is None:
        return None
    place, separator, function = policy.rpartition(":")
    if not separator or not place or not function:
        raise UsageError(f"{policy!r} names no policy", "", "name it MODULE:FUNCTION or FILE.py:FUNCTION")
    return f"{Path(place).absolute()}:{function}" if place.endswith(".py") else policy


def page_connections(asked: str) -> int:
    """Read how many page connections are asked for, 0 for auto; raises UsageError."""
    if asked == "auto":
        return 0
    if not asked.isdecimal() or not 1 <= int(asked) <= MAX_STREAMS:
        raise UsageError(
            f"{asked} page connections cannot be had", f"1 to {MAX_STREAMS} can, or auto", "change --streams"
        )
    return int(asked)


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
        o.one_of("--mode", mode, RETUNED_MODES)
        changes["mode"] = mode
    if downtime_limit is not None:
        changes["downtime_limit_s"] = parse_duration(downtime_limit)
    if max_rounds is not None:
        changes["max_rounds"] = max_rounds
    if max_time is not None:
        changes["max_time_s"] = parse_duration(max_time)
    if on_limit is not None:
        o.one_of("--on-limit", on_limit, ("postcopy", "cancel"))
        changes["on_limit"] = on_limit
    if not changes:
        raise UsageError("nothing is to be set", "", "give an option, such as --max-bandwidth 125MB/s")
    return changes
