"""Fault latency after the resume: how long a vCPU waits for a page that is still at the source, and how many it waits for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.bench.bare_fetch import fetch_latencies_us
from pagefire.scripts.bench.pairs import alternate, ratios
from pagefire.scripts.bench.plan import Plan, page_store_guest
from pagefire.scripts.bench.plot import OURS, REFERENCE, bars, reference_line
from pagefire.scripts.bench.shuttle import Shuttle
from pagefire.scripts.spread import percentiles, spread
from pagefire.source_host.options import MigrationOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = (
    "the bare fetch: a fault read, a page asked for and sent over loopback TCP, shown; one at a time, beside the guest"
)
#: hybrid leaves what was written last, postcopy everything.
_MODES = ("hybrid", "postcopy")
_BARE_FAULTS, _QUICK_BARE_FAULTS = 1000, 200
_REST_S = 0.5
_FIGURES = ("p50", "p99", "max")


def measure(plan: Plan, console: Console) -> Json:
    """Measure both modes; gives {rows: [...]}, see `_row`. A mode in which no vCPU waited has no row, and is told of."""
    with Shuttle(page_store_guest(plan.memory_bytes)) as shuttle:
        time.sleep(_REST_S)
        rows = [_row(shuttle, mode, plan, console) for mode in _MODES]
    if not any(rows):
        raise PagefireError("no vCPU waited for a page in any mode", "", "ask for more --memory")
    return {"memory_bytes": plan.memory_bytes, "bare_faults": _bare_faults(plan), "rows": [row for row in rows if row]}


def _bare_faults(plan: Plan) -> int:
    return _QUICK_BARE_FAULTS if plan.quick else _BARE_FAULTS


def _row(shuttle: Shuttle, mode: str, plan: Plan, console: Console) -> Json | None:
    """Migrate so often in a mode. fault_us, bare_us and ratio have p50, p99 and max, each with the spread over the migrations.

    remaining_pages: missing at the resume. faults: those that waited for a page from the source; published: those whose page was
    here. A migration in which no vCPU waited counts as no faults, and has no latency.
    """
    reports: list[Json] = []
    bares: list[Json] = []

    def migrate() -> Json:
        report = shuttle.migrate(MigrationOptions(to="", mode=mode, settle_s=0.2))
        time.sleep(_REST_S)
        return report

    for report, bare in alternate(
        migrate, lambda: percentiles(fetch_latencies_us(_bare_faults(plan))), plan.repetitions
    ):
        reports.append(report)
        bares.append(bare)
        postcopy, latency = report["postcopy"], report["postcopy"]["fault_us"]
        words = (
            "no vCPU waited for a page"
            if latency is None
            else f"p50 {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us"
        )
        console.print(
            f"  {mode}: {format_count(report['bitmap']['pages'])} pages left, {format_count(postcopy['faulted_pages'])} fetched, "
            f"{words}; bare p50 {bare['p50']:.0f} us, p99 {bare['p99']:.0f} us",
            soft_wrap=True,
        )
    waited = [
        (report["postcopy"]["fault_us"], bare)
        for report, bare in zip(reports, bares, strict=True)
        if report["postcopy"]["fault_us"] is not None
    ]
    if not waited:
        console.print(f"  left out: {mode}: no vCPU waited for a page in {len(reports)} migrations", soft_wrap=True)
        return None
    return {
        "mode": mode,
        "migrations": len(reports),
        "migrations_with_faults": len(waited),
        "remaining_pages": spread([report["bitmap"]["pages"] for report in reports]),
        "faults": spread([report["postcopy"]["faulted_pages"] for report in reports]),
        "published": spread([report["postcopy"]["minor_faults"] for report in reports]),
        "blocktime_s": spread([report["postcopy"]["blocktime_s"] for report in reports]),
        "resident_after_s": spread([report["resident_after_s"] for report in reports]),
        "fault_us": {one: spread([ours[one] for ours, _ in waited]) for one in _FIGURES},
        "bare_us": {one: spread([bare[one] for _, bare in waited]) for one in _FIGURES},
        "ratio": {one: ratios([(ours[one], bare[one]) for ours, bare in waited]) for one in _FIGURES},
    }


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person."""
    table = Table(
        title=f"Faults that waited for the source, guest of {format_size(result['memory_bytes'])} (medians)",
        title_justify="left",
    )
    table.add_column("mode")
    for head in ("left at the resume", "faults", "p50", "p99", "max", "bare p50", "bare p99", "ratio p50", "ratio p99"):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["mode"],
            f"{format_count(row['remaining_pages']['median'])} pages",
            format_count(row["faults"]["median"]),
            *(format_duration(row["fault_us"][one]["median"] / 1e6) for one in _FIGURES),
            *(format_duration(row["bare_us"][one]["median"] / 1e6) for one in _FIGURES[:2]),
            *(f"{row['ratio'][one]['median']:.2f}" for one in _FIGURES[:2]),
        )
    return [table]


def draw(result: Json, figure: Figure) -> None:
    """Draw the latencies of each mode beside the bare fetch's, and their ratios."""
    rows: Sequence[Json] = result["rows"]
    latency, ratio = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [f"{row['mode']}\n{one}" for row in rows for one in _FIGURES]
    groups = [
        (words, look, [row[field][one] for row in rows for one in _FIGURES])
        for words, look, field in (("a vCPU's wait", OURS, "fault_us"), ("bare fetch", REFERENCE, "bare_us"))
    ]
    bars(latency, names, groups)
    latency.set_yscale("log")
    highest_us = max(row["fault_us"]["max"]["max"] for row in rows)
    latency.set_ylim(10, 6 * highest_us)
    latency.yaxis.set_major_formatter(lambda height, _: f"{height:g}")
    latency.set_ylabel("us")
    waited = ", ".join(
        f"{format_count(row['faults']['median'])} of {format_count(row['remaining_pages']['median'])} ({row['mode']})"
        for row in rows
    )
    latency.set_title(f"of the pages left a vCPU waited for {waited}", fontsize=9)
    of_modes = [f"{row['mode']}\n{one}" for row in rows for one in _FIGURES[:2]]
    bars(ratio, of_modes, [("over the bare fetch", OURS, [row["ratio"][one] for row in rows for one in _FIGURES[:2]])])
    reference_line(ratio, "the bare fetch")
    ratio.set_ylabel("ratio of latencies")
