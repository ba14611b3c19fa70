"""Peak memory of both daemons during a migration, against what they take at rest, by guest size.

Counted: memory that is the daemon's own (RssAnon: heap, stacks, bitmaps) and its page tables, each at its largest of samples taken
every 2 ms. Not counted: guest memory, which a daemon maps and which is there once whoever maps it; the guest's processes; code and
libraries; the kernel's socket buffers and pipes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.protocol.units import format_size
from pagefire.scripts.bench.pairs import ratios
from pagefire.scripts.bench.plan import Plan, page_store_guest, sizes_that_fit
from pagefire.scripts.bench.plot import OURS, REFERENCE, grid, line
from pagefire.scripts.bench.process_figures import SAMPLE_S, MemoryPeaks, MemoryUse
from pagefire.scripts.bench.shuttle import Shuttle
from pagefire.scripts.spread import growth, spread
from pagefire.source_host.options import MigrationOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = "the same daemon at rest, right before each migration"
#: A guest whose size is of another order than what it holds.
_SPARSE_BYTES, _SPARSE_RESIDENT_BYTES = 6 << 40, 256 << 20
_SIDES = ("source", "dest")
_REST_S = 0.3


def measure(plan: Plan, console: Console) -> Json:
    """Measure each size, and a sparse guest of 6 TiB; gives {rows: [...]}: for source and dest `*_own_bytes` (peak),
    `*_rest_bytes`, `*_ratio` of the two and `*_tables_bytes`, as spreads over the migrations."""
    sizes = [(size, size) for size in sizes_that_fit(plan, console) or [plan.memory_bytes]]
    sizes.append((_SPARSE_BYTES, min(_SPARSE_RESIDENT_BYTES, plan.memory_bytes)))
    rows = [_row(size, resident, plan.repetitions, console) for size, resident in sizes]
    dense = [row for row in rows if row["resident_bytes"] == row["memory_bytes"]]
    return {
        "sample_s": SAMPLE_S,
        "growth_bytes_per_GiB": {
            side: growth([(row["memory_bytes"] / (1 << 30), row[f"{side}_own_bytes"]["median"]) for row in dense])
            for side in _SIDES
        },
        "rows": rows,
    }


def _row(memory_bytes: int, resident_bytes: int, migrations: int, console: Console) -> Json:
    config = page_store_guest(memory_bytes, resident_bytes=resident_bytes)
    seen: list[tuple[MemoryUse, MemoryUse, MemoryUse, MemoryUse]] = []
    with Shuttle(config) as shuttle:
        for _ in range(migrations):
            time.sleep(_REST_S)
            pids = shuttle.here.pid, shuttle.there.pid
            at_rest = [MemoryUse.of(pid) for pid in pids]
            with MemoryPeaks(*pids) as watch:
                shuttle.migrate(MigrationOptions(to="", mode="hybrid", settle_s=0.1))
            seen.append((*at_rest, *watch.peaks))  # type: ignore[arg-type]
            source, dest = watch.peaks
            console.print(
                f"  {format_size(memory_bytes)}: source {format_size(source.own_bytes)}, destination {format_size(dest.own_bytes)}"
                f", at rest {format_size(at_rest[0].own_bytes)} and {format_size(at_rest[1].own_bytes)}",
                soft_wrap=True,
            )
    row: Json = {"memory_bytes": memory_bytes, "resident_bytes": resident_bytes, "migrations": migrations}
    for index, side in enumerate(_SIDES):
        rests, peaks = [one[index] for one in seen], [one[index + 2] for one in seen]
        row |= {
            f"{side}_own_bytes": spread([one.own_bytes for one in peaks]),
            f"{side}_rest_bytes": spread([one.own_bytes for one in rests]),
            f"{side}_tables_bytes": spread([one.tables_bytes for one in peaks]),
            f"{side}_ratio": ratios(
                [(peak.own_bytes, rest.own_bytes) for peak, rest in zip(peaks, rests, strict=True)]
            ),
        }
    return row


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person."""
    table = Table(title="Peak memory of the daemons, guest memory not counted", title_justify="left")
    table.add_column("guest", no_wrap=True)
    for side in ("source", "destination"):
        for head in (f"{side}, own", "at rest", "ratio", "page tables"):
            table.add_column(head, justify="right")
    for row in result["rows"]:
        words = format_size(row["memory_bytes"])
        if row["resident_bytes"] != row["memory_bytes"]:
            words += f", {format_size(row['resident_bytes'])} of contents"
        cells = []
        for side in _SIDES:
            cells += [
                format_size(row[f"{side}_own_bytes"]["median"]),
                format_size(row[f"{side}_rest_bytes"]["median"]),
                f"{row[f'{side}_ratio']['median']:.2f}",
                format_size(row[f"{side}_tables_bytes"]["median"]),
            ]
        table.add_row(words, *cells)
    return [table]


def draw(result: Json, figure: Figure) -> None:
    """Draw own memory and page tables of each daemon against guest memory; the sparse guest stands apart."""
    panels = figure.subplots(1, 2, sharey=True)
    dense: Sequence[Json] = [row for row in result["rows"] if row["resident_bytes"] == row["memory_bytes"]]
    (sparse,) = (row for row in result["rows"] if row["resident_bytes"] != row["memory_bytes"])
    at = [row["memory_bytes"] / (1 << 30) for row in dense]
    for axes, side, words in zip(panels, _SIDES, ("source", "destination"), strict=True):
        for label, look, field in (
            ("own, peak", OURS, "own"), ("own, at rest", REFERENCE, "rest"), ("page tables, peak", {"color": "#7fb7a6"}, "tables"),
        ):  # fmt: skip
            scaled = [
                {key: value / (1 << 20) for key, value in row[f"{side}_{field}_bytes"].items()}
                for row in (*dense, sparse)
            ]
            line(axes, at, scaled[:-1], label, look)
            axes.plot([1.3 * at[-1]], [scaled[-1]["median"]], marker="D", markersize=5, **look)
        names = [f"{one:g}" for one in at]
        axes.set_xticks([*at, 1.3 * at[-1]], [*names, f"{format_size(sparse['memory_bytes'])}\nsparse"])
        axes.set_title(words, fontsize=9)
        axes.set_xlabel("guest memory (GiB)")
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", fontsize=8)
        grid(axes)
    panels[0].set_ylabel("MiB")
