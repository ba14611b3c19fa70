"""Compression: migrations with `--compress` beside the same without, over loopback, where nothing may be lost, and a slow link.

Loopback: auto, of memory that reads like a text and of memory that no codec makes smaller. A link of 100 Mbit/s (shaped_link.py,
root): auto and each codec, of text, an eighth of the memory, because raw it takes a second for each 12 MB. Every run has daemons
and a guest of its own, which does next to nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.guest_workload.layout import MIN_MEMORY_BYTES
from pagefire.protocol.codecs import CODECS
from pagefire.protocol.errors import FeatureMissing
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_duration, format_size
from pagefire.scripts.bench.ballast import all_held_but, warm_pool
from pagefire.scripts.bench.pairs import alternate, ratio_words, ratios
from pagefire.scripts.bench.plan import Plan
from pagefire.scripts.bench.plot import OURS, REFERENCE, bars, reference_line
from pagefire.scripts.daemons import Pair
from pagefire.scripts.shaped_link import ShapedLink
from pagefire.scripts.spread import spread
from pagefire.source_host.options import MigrationOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = "the same migration without compression"
#: What memory holds -> the workload that fills it.
CONTENTS = {"text": "pagefire.scripts.bench.text_workload:Text", "distinct": "idle"}
_SLOW_BPS, _QUICK_SLOW_BPS = 10**8, 10**9
#: Behind the slow link memory is so many times smaller, and there are at most so many pairs: they hardly differ.
_SLOW_TIMES_LESS, _SLOW_PAIRS = 8, 3
#: What a measurement needs beside the ballast: two guests' memory and one to spare, two daemons, two guest processes.
_NEEDED_TIMES, _NEEDED_BYTES = 3, 1 << 30


@dataclass(frozen=True, slots=True)
class Case:
    """A guest's memory and what it holds, the compression, and the link's bits per second, None for loopback."""

    memory_bytes: int
    contents: str
    mode: str
    link_bps: int | None = None

    @property
    def words(self) -> str:
        """Name it."""
        link = "loopback" if self.link_bps is None else f"{self.link_bps / 1e6:g} Mbit/s"
        return f"{self.mode}, {self.contents}, {link}"


@dataclass(frozen=True, slots=True)
class Moved:
    """What a migration took, and what its report says of compression."""

    round_s: float
    total_s: float
    wire_bytes: int
    compression: Json


def cases_of(plan: Plan) -> tuple[list[Case], list[Case]]:
    """Give the cases over loopback, and those over a slow link."""
    fast = [Case(plan.round_bytes, contents, "auto") for contents in CONTENTS]
    slow_bytes = max(plan.round_bytes // _SLOW_TIMES_LESS, MIN_MEMORY_BYTES)
    if plan.quick:
        return fast[:1], [Case(slow_bytes, "text", "auto", _QUICK_SLOW_BPS)]
    return fast, [Case(slow_bytes, "text", mode, _SLOW_BPS) for mode in ("auto", *CODECS)]


def measure(plan: Plan, console: Console) -> Json:
    """Measure every case; gives {rows: [...]}, each with the spread of round 1 and of all of the migration, in seconds, and of what
    these are of the time without compression."""
    fast, slow = cases_of(plan)
    needed_bytes = plan.round_bytes * _NEEDED_TIMES + (0 if plan.quick else _NEEDED_BYTES)
    with all_held_but(needed_bytes, plan.hold_memory, console):
        rows = _rows(fast, plan.streams[0], plan.repetitions, needed_bytes, console)
        try:
            ShapedLink.require_possible()
        except FeatureMissing as missing:
            console.print(f"  left out: the slow link: {missing.what}: {missing.why}", soft_wrap=True)
        else:
            rows += _rows(slow, plan.streams[0], min(plan.repetitions, _SLOW_PAIRS), needed_bytes, console)
    return {"streams": plan.streams[0], "rows": rows}


def _rows(cases: Sequence[Case], streams: int, repetitions: int, needed_bytes: int, console: Console) -> list[Json]:
    rows = []
    for case in cases:
        with ShapedLink(case.link_bps) if case.link_bps is not None else nullcontext() as link:
            rows.append(_row(case, _pairs(case, link, streams, repetitions, needed_bytes, console)))
    return rows


def _pairs(
    case: Case, link: ShapedLink | None, streams: int, repetitions: int, needed_bytes: int, console: Console
) -> list[tuple[Moved, Moved]]:
    def move(mode: str) -> Moved:
        warm_pool(needed_bytes)
        return _moved(dataclasses.replace(case, mode=mode), streams, link)

    done = []
    for ours, theirs in alternate(lambda: move(case.mode), lambda: move("off"), repetitions):
        console.print(
            f"  {case.words}: round 1 {format_duration(ours.round_s)}, off {format_duration(theirs.round_s)}; "
            f"{ours.compression['reason']}",
            soft_wrap=True,
        )
        done.append((ours, theirs))
    return done


def _row(case: Case, pairs: Sequence[tuple[Moved, Moved]]) -> Json:
    return {
        **dataclasses.asdict(case),
        "pairs": len(pairs),
        "codec": pairs[-1][0].compression["codec"],
        "compressed_pages": [ours.compression["compressed_pages"] for ours, _ in pairs],
        "round_ratio": ratios([(ours.round_s, theirs.round_s) for ours, theirs in pairs]),
        "total_ratio": ratios([(ours.total_s, theirs.total_s) for ours, theirs in pairs]),
        "round_s": spread([ours.round_s for ours, _ in pairs]),
        "off_round_s": spread([theirs.round_s for _, theirs in pairs]),
        "total_s": spread([ours.total_s for ours, _ in pairs]),
        "off_total_s": spread([theirs.total_s for _, theirs in pairs]),
        "wire_bytes": spread([ours.wire_bytes for ours, _ in pairs]),
        "off_wire_bytes": spread([theirs.wire_bytes for _, theirs in pairs]),
    }


def _moved(case: Case, streams: int, link: ShapedLink | None) -> Moved:
    """Migrate a guest that does next to nothing, in pre-copy."""
    over: Json = {}
    dest_arguments = ["--allow-workload", CONTENTS["text"], "--max-guest-memory", str(case.memory_bytes)]
    if link is not None:
        over = {
            "source_before": link.before("source"),
            "dest_before": link.before("dest"),
            "dest_host": link.dest_address,
        }
        # Nobody else is on this link, and what encryption costs is not what is measured.
        dest_arguments.append("--insecure")
    guest = [
        "--memory",
        str(case.memory_bytes),
        "--workload",
        CONTENTS[case.contents],
        "--vcpus",
        "1",
        "--rate",
        "100/s",
    ]
    with Pair(guest, dest_arguments, **over) as pair:
        options = MigrationOptions(
            to=pair.destination,
            mode="precopy",
            streams=streams,
            compress=case.mode,
            check=False,
            settle_s=0.0,
            insecure=link is not None,
        )
        report = request(pair.source_socket, "migrate", **dataclasses.asdict(options))["report"]
    return Moved(report["rounds"][0]["duration_s"], report["total_s"], report["wire_bytes"], report["compression"])


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person."""
    table = Table(title=f"Compression, time over the time without, {result['streams']} stream(s)", title_justify="left")
    for head in ("compression", "memory", "pairs"):
        table.add_column(head)
    for head in ("round 1", "least - largest", "in all", "least - largest", "round 1", "without", "sent", "without"):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        table.add_row(
            _case(row).words,
            format_size(row["memory_bytes"]),
            str(row["pairs"]),
            *(words for key in ("round_ratio", "total_ratio") for words in ratio_words(row[key])),
            *(format_duration(row[key]["median"]) for key in ("round_s", "off_round_s")),
            *(format_size(row[key]["median"]) for key in ("wire_bytes", "off_wire_bytes")),
        )
    return [table]


def draw(result: Json, figure: Figure) -> None:
    """Draw what round 1 and all of it take of the time without compression."""
    axes = figure.subplots()
    rows = result["rows"]
    bars(
        axes,
        [_case(row).words.replace(", ", "\n") for row in rows],
        [
            ("round 1", OURS, [row["round_ratio"] for row in rows]),
            ("all of the migration", REFERENCE, [row["total_ratio"] for row in rows]),
        ],
    )
    reference_line(axes, "without compression")
    axes.set_ylabel("time over the time without")
    axes.set_xlabel("compression, what memory holds, link")


def _case(row: Json) -> Case:
    return Case(row["memory_bytes"], row["contents"], row["mode"], row["link_bps"])
