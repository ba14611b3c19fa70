"""Throughput of a full round: round 1 of a real migration against the bare copier, by streams, backing, cold and warm."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.protocol.units import format_size, format_throughput
from pagefire.scripts.bench.copier import Copied
from pagefire.scripts.bench.full_round import Case, FullRound, measure_rounds
from pagefire.scripts.bench.pairs import ratios
from pagefire.scripts.bench.plan import Plan
from pagefire.scripts.bench.plot import OURS, REFERENCE, bars, reference_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = "the bare copier: the same bytes over the same sockets between two processes that do nothing else"


def measure(plan: Plan, console: Console) -> Json:
    """Measure every case; gives {rows: [...]}, each with `ratio` (median) to the copier, its spread, and both speeds (medians)."""

    def tell(case: Case, ours: FullRound, theirs: Copied) -> None:
        console.print(
            f"  {case.words}: round 1 {format_throughput(ours.bytes_per_s)}, copier {format_throughput(theirs.bytes_per_s)}, "
            f"ratio {ours.bytes_per_s / theirs.bytes_per_s:.2f}",
            soft_wrap=True,
        )

    rows = [_row(case, pairs) for case, pairs in measure_rounds(plan, console, tell)]
    return {"memory_bytes": plan.round_bytes, "rows": rows}


def _row(case: Case, pairs: list[tuple[FullRound, Copied]]) -> Json:
    ratio = ratios([(ours.bytes_per_s, theirs.bytes_per_s) for ours, theirs in pairs])
    return {
        "streams": case.streams,
        "backing": case.backing,
        "cold": case.cold,
        "congestion": pairs[0][0].congestion,
        "ratio": ratio["median"],
        "ratio_min": ratio["min"],
        "ratio_max": ratio["max"],
        "copier_Bps": statistics.median(theirs.bytes_per_s for _, theirs in pairs),
        "round_Bps": statistics.median(ours.bytes_per_s for ours, _ in pairs),
    }


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person."""
    table = Table(title=f"Throughput of a full round, {format_size(result['memory_bytes'])}", title_justify="left")
    for head in ("streams", "memory", "destination's memory"):
        table.add_column(head)
    for head in ("ratio", "least - largest", "round 1", "copier"):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        table.add_row(
            str(row["streams"]),
            row["backing"],
            "cold" if row["cold"] else "warm",
            f"{row['ratio']:.2f}",
            f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}",
            format_throughput(row["round_Bps"]),
            format_throughput(row["copier_Bps"]),
        )
    return [table]


def draw(result: Json, figure: Figure) -> None:
    """Draw the ratios, and both speeds below."""
    ratio, speed = figure.subplots(2, 1, sharex=True)
    rows = result["rows"]
    names = [f"{row['streams']} x {row['backing']}\n{'cold' if row['cold'] else 'warm'}" for row in rows]
    spreads = [{"median": row["ratio"], "min": row["ratio_min"], "max": row["ratio_max"]} for row in rows]
    bars(ratio, names, [("round 1 over the copier", OURS, spreads)])
    reference_line(ratio, "the bare copier")
    ratio.set_ylabel("ratio of the speeds")
    flat = [
        (words, look, [{key: row[field] / 1e9 for key in ("median", "min", "max")} for row in rows])
        for words, look, field in (("round 1", OURS, "round_Bps"), ("copier", REFERENCE, "copier_Bps"))
    ]
    bars(speed, names, flat)
    speed.set_ylabel("GB/s (medians)")
    speed.set_xlabel("streams x what maps memory, destination's memory cold or warm")
