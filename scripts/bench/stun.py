"""The stun: its distribution over many migrations, and what it depends on: guest memory, dirty rate, vCPUs; and where it goes.

One guest goes back and forth between two daemons, mode hybrid. Each migration has its own bare handover beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.bench.bare_handover import BareHandover
from pagefire.scripts.bench.pairs import alternate, ratios
from pagefire.scripts.bench.plan import Plan, page_store_guest, sizes_that_fit
from pagefire.scripts.bench.plot import OURS, REFERENCE, SHADES, grid, line
from pagefire.scripts.bench.shuttle import Shuttle
from pagefire.scripts.compare_figures import BREAKDOWN
from pagefire.scripts.spread import growth, percentiles, spread
from pagefire.source_host.options import MigrationOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = "the bare handover: quiesce one guest, one scan, one and a half round trips, let another one run"
#: What the stun consists of: the downtime's parts (digests are not compared here), and what comes after it.
PARTS = (*(part for part in BREAKDOWN if part != "verify_s"), "first_commit_s")
_WORDS = {
    "quiesce_s": "quiesce", "final_scan_s": "scan", "bitmap_s": "code", "checkpoint_s": "registers", "drain_s": "drain",
    "transfer_s": "transfer", "install_s": "install", "verify_s": "verify", "resume_s": "handover",
    "first_commit_s": "first commit",
}  # fmt: skip
_SERIES = ("distribution", "memory", "rate", "vcpus")
#: Series -> the field it is drawn over, what that is divided by, and what the axis then says.
_AXES = {
    "memory": ("memory_bytes", 1 << 30, "guest memory (GiB)"),
    "rate": ("rate_per_s", 1e3, "page stores per second (thousands)"),
    "vcpus": ("vcpus", 1, "paced vCPUs"),
}
#: With hundreds of vCPUs each wakes for every transaction; at this rate of all together there is time left for the rest.
_MANY_VCPUS_RATE_PER_S = 20_000.0
#: How long a guest runs on between two measurements.
_REST_S = 0.5


def measure(plan: Plan, console: Console) -> Json:
    """Measure every series; gives {rows: [...]}, a row a guest. See `_row` and the README for the fields."""
    rows = [_row("distribution", page_store_guest(plan.memory_bytes), plan.migrations, console)]
    rows += [
        _row("memory", page_store_guest(size_bytes), plan.repetitions, console)
        for size_bytes in sizes_that_fit(plan, console)
    ]
    rows += [
        _row("rate", page_store_guest(plan.memory_bytes, rate_per_s=rate), plan.repetitions, console, rate)
        for rate in plan.rates_per_s
    ]
    for vcpus in plan.vcpus:
        config = page_store_guest(plan.memory_bytes, vcpus=vcpus, rate_per_s=_MANY_VCPUS_RATE_PER_S)
        rows.append(_row("vcpus", config, plan.repetitions, console))
    by_size = [(row["memory_bytes"] / (1 << 30), row["stun_s"]["median"]) for row in rows if row["series"] == "memory"]
    return {
        "memory_bytes": plan.memory_bytes,
        "migrations": plan.migrations,
        "p50_growth_s_per_GiB": growth(by_size),
        "rows": rows,
    }


def _row(series: str, config: GuestConfig, migrations: int, console: Console, rate: float | None = None) -> Json:
    """Migrate one guest so often; gives its shape and, in seconds: stun_s, bare_s, their ratio, and the parts' medians.

    `rate_per_s` is the page stores per second that were asked for, 0 where a vCPU stores into one page only; dirty_pages_per_s
    what the last round found.
    """
    options = MigrationOptions(to="", mode="hybrid", settle_s=0.2)
    reports: list[Json] = []
    bares_s: list[float] = []
    with Shuttle(config) as shuttle, BareHandover(config) as bare:
        time.sleep(_REST_S)

        def bare_s() -> float:
            with shuttle.guest_stopped():
                gap_s = bare.gap_s()
            time.sleep(_REST_S)
            return gap_s

        for report, gap_s in alternate(lambda: shuttle.migrate(options), bare_s, migrations):
            reports.append(report)
            bares_s.append(gap_s)
            console.print(
                f"  {series}, {shape_words(config)}: stun {format_duration(report['stun_s'])}, bare {format_duration(gap_s)}",
                soft_wrap=True,
            )
    stuns_s = [report["stun_s"] for report in reports]
    return {
        "series": series,
        "memory_bytes": config.memory_bytes,
        "working_set_bytes": config.working_set_bytes,
        "vcpus": config.vcpus,
        "rate_per_s": config.rate if rate is None else rate,
        "migrations": migrations,
        "stun_s": spread(stuns_s) | percentiles(stuns_s),
        "bare_s": spread(bares_s) | percentiles(bares_s),
        "ratio": ratios(list(zip(stuns_s, bares_s, strict=True))),
        "downtime_s": spread([report["downtime_s"] for report in reports]),
        "all_running_s": spread([report["all_running_s"] or report["stun_s"] for report in reports]),
        "breakdown": breakdown(reports),
        "stun_pages": statistics.median(report["stun_pages"] for report in reports),
        "remaining_pages": statistics.median(report["bitmap"]["pages"] for report in reports),
        "dirty_pages_per_s": statistics.median(report["dirty_pages_per_s"] for report in reports),
        "stuns_s": stuns_s,
        "bares_s": bares_s,
    }


def breakdown(reports: Sequence[Json]) -> dict[str, float]:
    """Give the median of each part of the stun, in seconds: those of the downtime, and from the resume to the first commit.

    They add up to more than the stun by the time from the pause request to the last commit, which is part of quiesce_s.
    """
    first_commits_s = [first_commit_s(report) for report in reports]
    return {
        part: statistics.median(report["downtime_breakdown"][part] for report in reports) for part in PARTS[:-1]
    } | {"first_commit_s": statistics.median(first_commits_s)}


def first_commit_s(report: Json) -> float:
    """Give the time from the resume at the destination to the first commit there."""
    begins = {one["phase"]: one["at_s"] for one in report["phases"]}
    resumed_s: float = begins.get("postcopy-active", begins["completed"])
    return max(float(report["stun_at_s"]) + float(report["stun_s"]) - resumed_s, 0.0)


def shape_words(config: GuestConfig) -> str:
    """Name a guest by what is varied here."""
    pages = (
        "one page a vCPU" if config.working_set_bytes <= config.vcpus * 4096 else format_size(config.working_set_bytes)
    )
    pace = f"{format_count(config.rate)}/s" if config.rate is not None else "unpaced"
    return f"{format_size(config.memory_bytes)}, {config.vcpus} vCPUs, {pace} in {pages}"


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person: the figures, and where each stun went."""
    figures = Table(title="Stun, and the bare handover beside it", title_justify="left")
    parts = Table(title="Where the stun went (medians)", title_justify="left")
    for table in (figures, parts):
        for head in ("series", "memory", "vCPUs", "stores"):
            table.add_column(head, no_wrap=True)
    for head in ("migrations", "p50", "p99", "max", "bare p50", "ratio", "least - largest", "remainder"):
        figures.add_column(head, justify="right", no_wrap=True)
    shown = [part for part in PARTS if any(row["breakdown"][part] for row in result["rows"])]
    for part in shown:
        parts.add_column(_WORDS[part], justify="right", no_wrap=True)
    for row in result["rows"]:
        shape = (
            row["series"], format_size(row["memory_bytes"]), str(row["vcpus"]), f"{format_count(row['rate_per_s'])}/s",
        )  # fmt: skip
        stun, ratio = row["stun_s"], row["ratio"]
        figures.add_row(
            *shape,
            str(row["migrations"]),
            *(format_duration(stun[one]) for one in ("p50", "p99", "max")),
            format_duration(row["bare_s"]["p50"]),
            f"{ratio['median']:.2f}",
            f"{ratio['min']:.2f} - {ratio['max']:.2f}",
            f"{format_count(row['remaining_pages'])} pages",
        )
        parts.add_row(*shape, *(format_duration(row["breakdown"][part]) for part in shown))
    return [figures, parts]


def draw(result: Json, figure: Figure) -> None:
    """Draw the distribution, its parts, and the stun against memory, dirty rate and vCPUs."""
    by_series = {name: [row for row in result["rows"] if row["series"] == name] for name in _SERIES}
    against = [name for name in _SERIES[1:] if by_series[name]]
    grid_of = figure.add_gridspec(1 + -(-len(against) // 2), 2)
    _draw_distribution(figure.add_subplot(grid_of[0, 0]), by_series["distribution"][0])
    _draw_parts(figure.add_subplot(grid_of[0, 1]), by_series)
    for index, name in enumerate(against):
        last_alone = index == len(against) - 1 and not index % 2
        axes = figure.add_subplot(grid_of[1 + index // 2, slice(None) if last_alone else index % 2])
        field, unit, words = _AXES[name]
        _draw_against(axes, [row[field] / unit for row in by_series[name]], by_series[name])
        axes.set_xlabel(words)
        if name == "vcpus":
            axes.set_xscale("log", base=2)
            axes.set_xticks([row[field] for row in by_series[name]], [str(row[field]) for row in by_series[name]])


def _draw_distribution(axes: Axes, row: Json) -> None:
    for words, look, stuns_s in (("bare handover", REFERENCE, row["bares_s"]), ("stun", OURS, row["stuns_s"])):
        ranked_ms = [one * 1e3 for one in sorted(stuns_s)]
        shares = [100 * (index + 1) / len(ranked_ms) for index in range(len(ranked_ms))]
        axes.step(ranked_ms, shares, where="post", label=words, linewidth=1.6, **look)
    axes.set_xlabel("ms")
    axes.set_ylabel(f"of {row['migrations']} migrations, % within")
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", fontsize=8)
    grid(axes)


def _draw_parts(axes: Axes, by_series: dict[str, list[Json]]) -> None:
    chosen = [*by_series["distribution"], *by_series["memory"][-1:], *by_series["rate"][-1:], *by_series["vcpus"][-1:]]
    names = [
        f"{format_size(row['memory_bytes'])}, {row['vcpus']} vCPUs\n{format_count(row['rate_per_s'])}/s"
        for row in chosen
    ]
    shown = [part for part in PARTS if any(row["breakdown"][part] for row in chosen)]
    left_ms = [0.0] * len(chosen)
    for colour, part in zip(SHADES, shown, strict=False):
        widths_ms = [row["breakdown"][part] * 1e3 for row in chosen]
        axes.barh(range(len(chosen)), widths_ms, 0.6, left=left_ms, color=colour, label=_WORDS[part])
        left_ms = [left + width for left, width in zip(left_ms, widths_ms, strict=True)]
    axes.set_yticks(range(len(chosen)), names, fontsize=7)
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    axes.set_xlabel("ms (medians of each part)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=5, fontsize=7, frameon=False)
    grid(axes, "x")


def _draw_against(axes: Axes, at: Sequence[float], rows: Sequence[Json]) -> None:
    for words, look, field in (("stun", OURS, "stun_s"), ("bare handover", REFERENCE, "bare_s")):
        scaled = [{key: row[field][key] * 1e3 for key in ("median", "min", "max")} for row in rows]
        line(axes, at, scaled, words, look)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms (median, least to largest)")
    axes.legend(loc="upper left", fontsize=8)
    grid(axes)
