"""CPU seconds per GiB: both daemons during round 1 of a real migration, against both processes of the bare copier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.protocol.units import format_size
from pagefire.scripts.bench.copier import Copied
from pagefire.scripts.bench.full_round import Case, FullRound, measure_rounds
from pagefire.scripts.bench.pairs import ratios
from pagefire.scripts.bench.plan import Plan
from pagefire.scripts.bench.plot import OURS, REFERENCE, bars, reference_line
from pagefire.scripts.spread import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = "the CPU seconds of both processes of the bare copier, for the same bytes"
_SIDES = ("source", "dest", "both")


def measure(plan: Plan, console: Console) -> Json:
    """Measure every case; gives {rows: [...]}: for source, dest and both, `*_s_per_GiB`, the copier's, and their ratio."""

    def tell(case: Case, ours: FullRound, theirs: Copied) -> None:
        parts = ", ".join(
            f"{side} {mine:.2f} s/GiB ({mine / other:.2f} of the copier's)"
            for side, (mine, other) in _per_gib(ours, theirs, plan.round_bytes).items()
        )
        console.print(f"  {case.words}: {parts}", soft_wrap=True)

    rows = [_row(case, pairs, plan.round_bytes) for case, pairs in measure_rounds(plan, console, tell)]
    return {"memory_bytes": plan.round_bytes, "rows": rows}


def _per_gib(ours: FullRound, theirs: Copied, size_bytes: int) -> dict[str, tuple[float, float]]:
    gib = size_bytes / (1 << 30)
    source = ours.source_cpu_s / gib, theirs.sender_cpu_s / gib
    dest = ours.dest_cpu_s / gib, theirs.receiver_cpu_s / gib
    return {"source": source, "dest": dest, "both": (source[0] + dest[0], source[1] + dest[1])}


def _row(case: Case, pairs: list[tuple[FullRound, Copied]], size_bytes: int) -> Json:
    row: Json = {"streams": case.streams, "backing": case.backing, "cold": case.cold}
    figures = [_per_gib(ours, theirs, size_bytes) for ours, theirs in pairs]
    for side in _SIDES:
        of_side = [one[side] for one in figures]
        row |= {
            f"{side}_ratio": ratios(of_side),
            f"{side}_s_per_GiB": spread([mine for mine, _ in of_side]),
            f"{side}_copier_s_per_GiB": spread([other for _, other in of_side]),
        }
    return row


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person."""
    table = Table(
        title=f"CPU seconds per GiB of a full round, {format_size(result['memory_bytes'])}", title_justify="left"
    )
    for head in ("streams", "memory", "destination's memory"):
        table.add_column(head)
    for head in ("ratio of both", "least - largest", "source", "copier's", "destination", "copier's"):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        both = row["both_ratio"]
        table.add_row(
            str(row["streams"]),
            row["backing"],
            "cold" if row["cold"] else "warm",
            f"{both['median']:.2f}",
            f"{both['min']:.2f} - {both['max']:.2f}",
            *(f"{row[f'{side}_{whose}s_per_GiB']['median']:.2f} s" for side in _SIDES[:2] for whose in ("", "copier_")),
        )
    return [table]


def draw(result: Json, figure: Figure) -> None:
    """Draw the ratio of both sides together, and each side's seconds below."""
    ratio, seconds = figure.subplots(2, 1, sharex=True)
    rows = result["rows"]
    names = [f"{row['streams']} x {row['backing']}\n{'cold' if row['cold'] else 'warm'}" for row in rows]
    bars(ratio, names, [("both daemons over both of the copier", OURS, [row["both_ratio"] for row in rows])])
    reference_line(ratio, "the bare copier")
    ratio.set_ylabel("ratio of CPU seconds")
    bars(
        seconds,
        names,
        [
            (words, look, [row[field] for row in rows])
            for words, look, field in (
                ("source", OURS, "source_s_per_GiB"),
                ("copier's sender", REFERENCE, "source_copier_s_per_GiB"),
                ("destination", OURS | {"hatch": "////"}, "dest_s_per_GiB"),
                ("copier's receiver", REFERENCE | {"hatch": "////"}, "dest_copier_s_per_GiB"),
            )
        ],
    )
    seconds.set_ylabel("CPU seconds per GiB")
    seconds.set_xlabel("streams x what maps memory, destination's memory cold or warm")
