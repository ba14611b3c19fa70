"""Which benchmarks there are, and what is done with each: measure, print, JSON, picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.scripts.bench import brownout, compression, cpu, deltas, faults, memory, stun, throughput
from pagefire.scripts.bench.plan import Plan, host
from pagefire.scripts.bench.plot import draw_into
from pagefire.scripts.report_folder import report_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

_TABLE_COLUMNS = 170


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One figure: `measure` gives {rows: [...], ...}, of which `tables` and `draw` make what a person reads."""

    title: str
    reference: str
    size_inches: tuple[float, float]
    measure: Callable[[Plan, Console], Json]
    tables: Callable[[Json], list[Table]]
    draw: Callable[[Json, Figure], None]


BENCHMARKS = {
    "throughput": Benchmark(
        "Throughput of a full round", throughput.REFERENCE_WORDS, (9.6, 6.4),
        throughput.measure, throughput.tables, throughput.draw,
    ),
    "stun": Benchmark("The stun", stun.REFERENCE_WORDS, (10.4, 11.0), stun.measure, stun.tables, stun.draw),
    "cpu": Benchmark("CPU time per GiB", cpu.REFERENCE_WORDS, (9.6, 6.4), cpu.measure, cpu.tables, cpu.draw),
    "brownout": Benchmark(
        "Brownout", brownout.REFERENCE_WORDS, (10.4, 8.0), brownout.measure, brownout.tables, brownout.draw
    ),
    "faults": Benchmark(
        "Fault latency after the resume", faults.REFERENCE_WORDS, (10.4, 4.6), faults.measure, faults.tables, faults.draw
    ),
    "memory": Benchmark(
        "Peak memory of the daemons", memory.REFERENCE_WORDS, (10.0, 4.8), memory.measure, memory.tables, memory.draw
    ),
    "compression": Benchmark(
        "Compression", compression.REFERENCE_WORDS, (9.6, 4.8),
        compression.measure, compression.tables, compression.draw,
    ),
    "deltas": Benchmark(
        "Differences", deltas.REFERENCE_WORDS, (9.6, 4.8), deltas.measure, deltas.tables, deltas.draw
    ),
}  # fmt: skip


def run(name: str, plan: Plan, console: Console) -> Json:
    """Run one benchmark; gives its JSON, which says when, where, for how long and against what it was measured."""
    benchmark, began_s, before = BENCHMARKS[name], time.monotonic(), host()
    console.print(f"{benchmark.title}, against {benchmark.reference}", soft_wrap=True)
    measured = benchmark.measure(plan, console)
    return {
        "benchmark": name,
        "at": datetime.now().isoformat(timespec="seconds"),
        "reference": benchmark.reference,
        "repetitions": plan.repetitions,
        "host": before,
        **measured,
        "took_s": round(time.monotonic() - began_s, 1),
    }


def print_result(result: Json, console: Console) -> None:
    """Print a benchmark's tables; a narrower console is widened, because cut figures are no figures."""
    console.width = max(console.width, _TABLE_COLUMNS)
    for table in BENCHMARKS[result["benchmark"]].tables(result):
        console.print(table)
    console.print(
        f"Reference: {result['reference']}. Medians of {result['repetitions']} pairs in turn unless told otherwise; measured "
        f"{result['at']}, load {result['host']['load']:.2f} before.",
        style="dim",
    )


def folder_files(names: Sequence[str]) -> list[str]:
    """Name what `write_folder` writes of these benchmarks."""
    return [f"{name}.{kind}" for name in names for kind in ("json", "png")]


def write_folder(result: Json, folder: Path) -> list[Path]:
    """Write NAME.json and NAME.png of a benchmark; gives their paths. Raises UsageError, PagefireError.

    The folder may hold those of other benchmarks, and nothing else.
    """
    name = result["benchmark"]
    json_path, png_path = (folder / file for file in folder_files([name]))
    with report_folder(folder, folder_files(list(BENCHMARKS))):
        write_whole(result, json_path)
        benchmark = BENCHMARKS[name]
        draw_into(png_path, benchmark.title, benchmark.size_inches, lambda figure: benchmark.draw(result, figure))
    return [json_path, png_path]
