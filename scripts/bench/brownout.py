"""Brownout: the guest's throughput during pre-copy and after the resume, against what it has beside processes that are as busy.

A guest loses commits to a migration in two ways: daemons take CPU time, and tracing costs it page fires. The reference has the
first alone: while the guest is not traced, stand-ins take the CPU time per second that both daemons took in the pre-copy phases so
far. A paced guest shows what a person notices; one at full rate what a fire costs, since every lost moment shows there.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.linux.fire_cost import fire_cost_s
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.bench.pairs import alternate, ratios
from pagefire.scripts.bench.plan import RATE_PER_S, WORKING_SET_BYTES, Plan, page_store_guest
from pagefire.scripts.bench.plot import OURS, REFERENCE, bars, grid, reference_line
from pagefire.scripts.bench.process_figures import cpu_s
from pagefire.scripts.bench.shuttle import Shuttle
from pagefire.scripts.bench.stand_in import stand_ins
from pagefire.scripts.spread import spread
from pagefire.source_host.options import MigrationOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]

REFERENCE_WORDS = (
    "the same guest, untraced, beside two processes that take as much CPU time as both daemons did in pre-copy"
)
BUCKET_S = 0.01
#: The guest is back when so much of its baseline is there, as the mean of so many buckets from then on: one alone may be luck.
BACK, BACK_BUCKETS = 0.95, 5
#: How long a guest runs on between two measurements: longer than the second in which its rate before is taken.
_REST_S = 1.1
#: How long the stand-ins run before they count.
_SETTLE_S = 0.2
_PHASES = {
    "setup": ("#f4efe2", "setup"),
    "active": ("#d3dde6", "pre-copy"),
    "device": ("#a03000", "stun"),
    "postcopy-active": ("#bfd6cd", "post-copy"),
}
#: What guests at full rate write, as parts of the working set of the paced one.
_FULL_RATE_PARTS = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Passage:
    """One migration: its report, and the CPU seconds per second that each daemon took during pre-copy."""

    report: Json
    shares: tuple[float, float]


def measure(plan: Plan, console: Console) -> Json:
    """Measure a paced guest and some at full rate; gives {fire_s, rows: [...]}, see `_row`."""
    fire_s = fire_cost_s()
    configs = [page_store_guest(plan.memory_bytes, rate_per_s=RATE_PER_S)]
    largest_bytes = min(WORKING_SET_BYTES, plan.memory_bytes // 2)
    configs += [
        page_store_guest(plan.memory_bytes, rate_per_s=None, working_set_bytes=largest_bytes // part)
        for part in (() if plan.quick else _FULL_RATE_PARTS)
    ]
    return {
        "memory_bytes": plan.memory_bytes,
        "fire_s": fire_s,
        "rows": [_row(config, plan, fire_s, console) for config in configs],
    }


def _row(config: GuestConfig, plan: Plan, fire_s: float, console: Console) -> Json:
    """Measure one guest. Ratios of rates: during_over_beside (pre-copy over the reference), beside_over_alone, during_over_alone,
    postcopy_over_alone (resume to the last page), after_over_alone; alone is the second before the migration.

    to_95_s: from the resume until 95% of that is back; None where it was not within a second of the last page. lost_s: vCPU time
    lost during pre-copy against the reference; fires_cost_s: page fires times what one costs by itself.
    """
    passages: list[Passage] = []
    rates: list[tuple[float, float]] = []
    shares: list[list[float]] = []
    with Shuttle(config) as shuttle:

        def migrate() -> Passage:
            time.sleep(_REST_S)
            passages.append(_migrate(shuttle, _REST_S))
            return passages[-1]

        def beside_per_s() -> float:
            wanted = [statistics.median(one.shares[side] for one in passages) for side in (0, 1)]
            watched_s = max(_REST_S, float(passages[-1].report["precopy_s"]))
            with stand_ins([min(one, 1.0) for one in wanted]) as busy:
                time.sleep(_SETTLE_S)
                busy.shares()
                rate_per_s = shuttle.commits_per_s(watched_s)
                shares.append(busy.shares())
            return rate_per_s

        for passage, beside in alternate(migrate, beside_per_s, plan.repetitions):
            during = passage.report["guest_rate"]["during_per_s"]
            rates.append((during, beside))
            console.print(
                f"  {_name(config)}: during pre-copy {during / beside:.1%} of beside stand-ins "
                f"({passage.shares[0]:.2f} + {passage.shares[1]:.2f} CPUs, they took {sum(shares[-1]):.2f}), "
                f"95% after {_or_never(to_95_s(passage.report))}",
                soft_wrap=True,
            )
    reports = [passage.report for passage in passages]
    running = min(config.vcpus, os.cpu_count() or 1)
    alone = [report["guest_rate"]["before_per_s"] for report in reports]
    backs_s = [to_95_s(report) for report in reports]
    back_s = [one for one in backs_s if one is not None]
    fires = [report["trace_install"]["fires"] for report in reports]
    return {
        "memory_bytes": config.memory_bytes,
        "working_set_bytes": config.working_set_bytes,
        "vcpus": config.vcpus,
        "rate_per_s": config.rate,
        "during_over_beside": ratios(rates),
        "during_over_alone": ratios([(during, one) for (during, _), one in zip(rates, alone, strict=True)]),
        "beside_over_alone": ratios([(beside, one) for (_, beside), one in zip(rates, alone, strict=True)]),
        "postcopy_over_alone": spread([postcopy_share(report) for report in reports]),
        "after_over_alone": ratios(
            [(report["guest_rate"]["after_per_s"], one) for report, one in zip(reports, alone, strict=True)]
        ),
        "alone_per_s": spread(alone),
        "to_95_s": spread(back_s) if len(back_s) == len(backs_s) else None,
        "precopy_s": spread([report["precopy_s"] for report in reports]),
        "remaining_pages": spread([report["bitmap"]["pages"] for report in reports]),
        "cpu_shares": [spread([passage.shares[side] for passage in passages]) for side in (0, 1)],
        "stand_in_shares": [spread([taken[side] for taken in shares]) for side in (0, 1)],
        "fires": spread(fires),
        "fires_cost_s": spread([one * fire_s for one in fires]),
        "lost_s": spread(
            [
                (1 - during / beside) * report["precopy_s"] * running
                for (during, beside), report in zip(rates, reports, strict=True)
            ]
        ),
        "shown": {key: reports[-1][key] for key in ("timeline", "phases", "stun_s", "guest_rate")},
    }


def _migrate(shuttle: Shuttle, settle_s: float) -> Passage:
    """Migrate, and read both daemons' CPU clocks at the ends of pre-copy."""
    readings: dict[str, tuple[float, float, float]] = {}
    here, there = shuttle.here, shuttle.there

    def on_event(event: Json) -> None:
        if event["event"] == "phase":
            readings[event["phase"]] = time.monotonic(), cpu_s(here.pid), cpu_s(there.pid)

    report = shuttle.migrate(MigrationOptions(to="", mode="hybrid", settle_s=settle_s), on_event)
    (from_s, *before), (to_s, *after) = readings["active"], readings["device"]
    source, dest = ((late - early) / (to_s - from_s) for early, late in zip(before, after, strict=True))
    return Passage(report, (source, dest))


def _resumed_s(report: Json) -> float:
    return float(next(one["at_s"] for one in report["phases"] if one["phase"] in ("postcopy-active", "completed")))


def to_95_s(report: Json) -> float | None:
    """Give the time from the resume to the first of five 10 ms buckets that make 95% of the baseline together; None: there is none.

    The baseline is the second before the request.
    """
    resumed_s, enough = _resumed_s(report), BACK * report["guest_rate"]["before_per_s"] * BUCKET_S * BACK_BUCKETS
    after = [one for one in report["timeline"] if one["t_s"] >= resumed_s]
    for index in range(len(after) - BACK_BUCKETS + 1):
        if sum(one["commits"] for one in after[index : index + BACK_BUCKETS]) >= enough:
            return float(after[index]["t_s"]) - resumed_s
    return None


def postcopy_share(report: Json) -> float:
    """Give the throughput from the resume to the last page over the baseline; that of one bucket where it took less."""
    resumed_s = _resumed_s(report)
    completed_s = next(one["at_s"] for one in report["phases"] if one["phase"] == "completed")
    after = [
        one["commits"] for one in report["timeline"] if resumed_s <= one["t_s"] < max(completed_s, resumed_s + BUCKET_S)
    ]
    return statistics.mean(after) / (report["guest_rate"]["before_per_s"] * BUCKET_S) if after else 0.0


def _name(config: GuestConfig) -> str:
    pace = f"{format_count(config.rate)}/s" if config.rate is not None else "full rate"
    return f"{pace} in {format_size(config.working_set_bytes)}"


def _row_name(row: Json) -> str:
    pace = f"{format_count(row['rate_per_s'])}/s" if row["rate_per_s"] is not None else "full rate"
    return f"{pace} in\n{format_size(row['working_set_bytes'])}"


def _or_never(duration_s: float | None) -> str:
    return format_duration(duration_s) if duration_s is not None else "never"


def tables(result: Json) -> list[Table]:
    """Lay the rows out for a person."""
    table = Table(title=f"Brownout of a guest of {format_size(result['memory_bytes'])}", title_justify="left")
    table.add_column("guest", no_wrap=True)
    for head in (
        "pre-copy / beside",
        "least - largest",
        "beside / alone",
        "post-copy",
        "after",
        "95% back",
        "lost",
        "fires cost",
    ):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        kept = row["during_over_beside"]
        table.add_row(
            _row_name(row).replace("\n", " "),
            f"{kept['median']:.1%}",
            f"{kept['min']:.1%} - {kept['max']:.1%}",
            f"{row['beside_over_alone']['median']:.1%}",
            f"{row['postcopy_over_alone']['median']:.1%}",
            f"{row['after_over_alone']['median']:.1%}",
            _or_never(row["to_95_s"]["median"] if row["to_95_s"] else None),
            format_duration(max(row["lost_s"]["median"], 0.0)),
            format_duration(row["fires_cost_s"]["median"]),
        )
    return [table]


def draw(result: Json, figure: Figure) -> None:
    """Draw the throughput kept, one run of the paced guest, and the loss at full rate against page fires times their cost."""
    grid_of = figure.add_gridspec(2, 2)
    rows: Sequence[Json] = result["rows"]
    at_full_rate = [row for row in rows if row["rate_per_s"] is None]
    kept = figure.add_subplot(grid_of[0, 0 if at_full_rate else slice(None)])
    bars(
        kept,
        [_row_name(row) for row in rows],
        [
            ("pre-copy", OURS, [row["during_over_alone"] for row in rows]),
            ("beside stand-ins", REFERENCE, [row["beside_over_alone"] for row in rows]),
        ],
    )
    reference_line(kept, "alone")
    kept.set_ylabel("throughput over that of the guest alone")
    if at_full_rate:
        _draw_loss(figure.add_subplot(grid_of[0, 1]), at_full_rate, result["fire_s"])
    _draw_run(figure.add_subplot(grid_of[1, :]), rows[0])


def _draw_loss(axes: Axes, rows: Sequence[Json], fire_s: float) -> None:
    at = [row["fires_cost_s"]["median"] * 1e3 for row in rows]
    axes.plot(at, [row["lost_s"]["median"] * 1e3 for row in rows], "o", color=OURS["color"], label="guest at full rate")
    axes.vlines(
        at, [row["lost_s"]["min"] * 1e3 for row in rows], [row["lost_s"]["max"] * 1e3 for row in rows],
        color=OURS["color"], linewidth=0.8,
    )  # fmt: skip
    for row, x in zip(rows, at, strict=True):
        axes.annotate(
            f" {format_size(row['working_set_bytes'])}", (x, row["lost_s"]["median"] * 1e3), fontsize=8, va="bottom"
        )
    axes.plot([0, max(at)], [0, max(at)], color="#a03000", linewidth=1, linestyle=(0, (4, 2)), label="the fires alone")
    axes.set_xlabel(f"page fires x {format_duration(fire_s)} (ms)")
    axes.set_ylabel("vCPU time lost during pre-copy (ms)")
    axes.legend(loc="upper left", fontsize=8)
    grid(axes)


def _draw_run(axes: Axes, row: Json) -> None:
    """Draw the last run of a guest in buckets of 10 ms, as shares of its baseline, with the instants of its phases."""
    shown = row["shown"]
    per_bucket = shown["guest_rate"]["before_per_s"] * BUCKET_S
    buckets = shown["timeline"]
    edges_s = [*(one["t_s"] for one in buckets), buckets[-1]["t_s"] + BUCKET_S]
    axes.stairs([100 * one["commits"] / per_bucket for one in buckets], edges_s, color=OURS["color"], linewidth=0.9)
    begins = shown["phases"]
    for one, following in pairwise(begins):
        fill, words = _PHASES[one["phase"]]
        axes.axvspan(
            one["at_s"], following["at_s"], facecolor=fill, edgecolor=fill, linewidth=1.2, zorder=0, label=words
        )
    axes.legend(loc="lower right", ncols=len(begins), fontsize=8, framealpha=0.9)
    axes.set_xlabel(f"time since the migrate request (s); {_row_name(row).replace(chr(10), ' ')}, the last of the runs")
    axes.set_ylabel("% of the baseline, 10 ms each")
    axes.set_ylim(bottom=0)
    grid(axes)
