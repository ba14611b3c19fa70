"""Differences: migrations with `--delta-cache` beside the same with digests and the same codec, on a link that guests outrun.

The guest writes its working set faster than the link carries pages. In mode precopy auto-converge may slow it, so that both come to
an end; hybrid leaves to the time after the resume what rounds do not get rid of. By what is written (oltp changes a few places of a
page that compresses, random one of a page that does not), and with less room than the working set takes. One guest of each case
goes back and forth between two daemons.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.units import format_count, format_duration, format_size, format_throughput
from pagefire.scripts.bench.ballast import all_held_but
from pagefire.scripts.bench.pairs import alternate, ratio_words, ratios
from pagefire.scripts.bench.plan import Plan
from pagefire.scripts.bench.plot import OURS, REFERENCE, bars, reference_line
from pagefire.scripts.bench.shuttle import Shuttle
from pagefire.scripts.spread import spread
from pagefire.source_host.options import MigrationOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = "the same migration with digests and the same codec (--skip-unchanged on --compress zstd)"
_CODEC = "zstd"
#: The guest is so many times smaller than one of which a round is measured, and its working set half of it.
_TIMES_LESS, _QUICK_BYTES = 4, 64 << 20
#: A sixteenth of the guest's memory a second, in stores nearly twice as many pages.
_LINK_S, _QUICK_LINK_S, _WRITTEN = 16.0, 4.0, 1.8
_MOST_PAIRS = 3
#: How long the guest runs before each migration.
_UNMOVED_S = 1.5
#: What a measurement needs beside the ballast: two guests' memory, the versions and one to spare, two daemons, two guest processes.
_NEEDED_TIMES, _NEEDED_BYTES = 4, 1 << 30


#: Heading -> figure, and how it is written.
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "in all": ("total_s", format_duration),
    "sent": ("wire_bytes", format_size),
    "stun": ("stun_s", format_duration),
    "throttled": ("slept_s", format_duration),
    "left": ("left_pages", format_count),
    "stalled": ("stall_s", format_duration),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A guest, how it moves, and which share of its working set there is room for."""

    workload: str
    mode: str
    room: float
    memory_bytes: int

    @property
    def working_set_bytes(self) -> int:
        """Half of its memory."""
        return self.memory_bytes // 2

    @property
    def link_Bps(self) -> float:
        """What all page connections may send."""
        return self.memory_bytes / (_QUICK_LINK_S if self.memory_bytes == _QUICK_BYTES else _LINK_S)

    @property
    def rate_per_s(self) -> float:
        """Commits, one store each with random: more than the link carries, of pages."""
        return _WRITTEN * self.link_Bps / PAGE_BYTES

    @property
    def words(self) -> str:
        """Name it."""
        room = "" if self.room == 1 else f", room for {self.room:.0%} of it"
        return f"{self.workload}, {self.mode}{room}"


@dataclass(frozen=True, slots=True)
class Moved:
    """What a migration took of its link, its time and its guest."""

    total_s: float
    wire_bytes: int
    stun_s: float
    stall_s: float
    left_pages: int
    slept_s: float
    delta_cache: Json | None


def cases_of(plan: Plan) -> list[Case]:
    """Give the cases."""
    if plan.quick:
        return [Case("random", "precopy", 1.0, _QUICK_BYTES)]
    size_bytes = plan.round_bytes // _TIMES_LESS
    shapes = (
        ("oltp", "precopy", 1.0),
        ("random", "precopy", 1.0),
        ("random", "precopy", 0.5),
        ("random", "hybrid", 1.0),
    )
    return [Case(*shape, size_bytes) for shape in shapes]


def measure(plan: Plan, console: Console) -> Json:
    """Measure every case; gives {rows: [...]}, with the spread of each figure, and the reference's, and of their ratio."""
    rows = []
    for case in cases_of(plan):
        needed_bytes = case.memory_bytes * _NEEDED_TIMES + (0 if plan.quick else _NEEDED_BYTES)
        with all_held_but(needed_bytes, plan.hold_memory, console), Shuttle(_guest(case)) as shuttle:
            # The first one has what no other has: a guest that has just begun.
            _moved(case, shuttle, deltas=False)
            rows.append(_row(case, _pairs(case, shuttle, min(plan.repetitions, _MOST_PAIRS), console)))
    return {"codec": _CODEC, "rows": rows}


def _guest(case: Case) -> GuestConfig:
    size_bytes = case.memory_bytes
    return GuestConfig("guest0", size_bytes, size_bytes, case.working_set_bytes, 2, case.workload, rate=case.rate_per_s)


def _pairs(case: Case, shuttle: Shuttle, repetitions: int, console: Console) -> list[tuple[Moved, Moved]]:
    def move(*, deltas: bool) -> Moved:
        return _moved(case, shuttle, deltas=deltas)

    done = []
    for ours, theirs in alternate(lambda: move(deltas=True), lambda: move(deltas=False), repetitions):
        console.print(
            f"  {case.words}: {format_duration(ours.total_s)} and {format_size(ours.wire_bytes)}, "
            f"with digests {format_duration(theirs.total_s)} and {format_size(theirs.wire_bytes)}",
            soft_wrap=True,
        )
        done.append((ours, theirs))
    return done


def _row(case: Case, pairs: Sequence[tuple[Moved, Moved]]) -> Json:
    names = [name for name, _ in _COLUMNS.values()]
    figures = {name: spread([getattr(ours, name) for ours, _ in pairs]) for name in names}
    figures |= {f"digests_{name}": spread([getattr(theirs, name) for _, theirs in pairs]) for name in names}
    caches = [ours.delta_cache or {} for ours, _ in pairs]
    return {
        **dataclasses.asdict(case),
        "link_Bps": case.link_Bps,
        "rate_per_s": case.rate_per_s,
        "pairs": len(pairs),
        "total_ratio": ratios([(ours.total_s, theirs.total_s) for ours, theirs in pairs]),
        "wire_ratio": ratios([(ours.wire_bytes, theirs.wire_bytes) for ours, theirs in pairs]),
        "delta_pages": [cache["delta_pages"] for cache in caches],
        "delta_ratio": spread([cache["ratio"] for cache in caches]),
        **figures,
    }


def _moved(case: Case, shuttle: Shuttle, *, deltas: bool) -> Moved:
    # What it does unmoved is what a stall is measured by.
    time.sleep(_UNMOVED_S)
    report = shuttle.migrate(
        MigrationOptions(
            to=shuttle.destination,
            mode=case.mode,
            compress=_CODEC,
            delta_cache_bytes=round(case.room * case.working_set_bytes) if deltas else 0,
            skip_unchanged="off" if deltas else "on",
            auto_converge=case.mode == "precopy",
            max_bandwidth_Bps=case.link_Bps,
        )
    )
    throttle = report["throttle"] or {}
    return Moved(
        report["total_s"],
        report["wire_bytes"],
        report["stun_s"],
        report["stall_s"],
        report["bitmap"]["pages"],
        max(throttle.get("slept_s") or [0.0]),
        report["delta_cache"],
    )


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person."""
    any_row = result["rows"][0]
    shape = f"{format_size(any_row['memory_bytes'])} over {format_throughput(any_row['link_Bps'])}"
    title = f"With differences (with digests), both by {result['codec']}; {shape}, {any_row['pairs']} pair(s) each"
    table = Table(title=title, title_justify="left")
    table.add_column("guest, mode")
    for head in ("time", "least - largest", "bytes", "least - largest", *_COLUMNS):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        table.add_row(
            _case(row).words,
            *(words for key in ("total_ratio", "wire_ratio") for words in ratio_words(row[key])),
            *(_both(row, name, write) for name, write in _COLUMNS.values()),
        )
    return [table]


def _both(row: Json, name: str, write: Callable[[float], str]) -> str:
    """Write both medians."""
    ours, theirs = (write(row[key]["median"]) for key in (name, f"digests_{name}"))
    return f"{ours} ({theirs})"


def draw(result: Json, figure: Figure) -> None:
    """Draw what all of it takes and sends, of what it does with digests."""
    axes = figure.subplots()
    rows = result["rows"]
    bars(
        axes,
        [_case(row).words.replace(", ", "\n") for row in rows],
        [
            ("time of all of the migration", OURS, [row["total_ratio"] for row in rows]),
            ("bytes sent", REFERENCE, [row["wire_ratio"] for row in rows]),
        ],
    )
    reference_line(axes, "with digests")
    axes.set_ylabel("over the same with digests")
    axes.set_xlabel("guest, mode, room for versions")


def _case(row: Json) -> Case:
    return Case(row["workload"], row["mode"], row["room"], row["memory_bytes"])
