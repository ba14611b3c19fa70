"""The picture of `pagefire trace`: how long no vCPU ran while tracing was installed, and what the fires cost afterwards.

Left, the install, by number of vCPUs or share touched, whichever was varied; right, the vCPU time lost while dirty pages were
collected, beside what the fires account for. Where granularities were compared, a second row shows what each cost: the CPU time
that tracing took, and that with the time of the pages that are to be sent again. Each way has a marker and a lightness of its own.
Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagefire.protocol.units import format_duration
from pagefire.scripts.report_folder import report_folder, write_whole
from pagefire.scripts.trace import way_words
from pagefire.scripts.trace_crossing import share_of, varied

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRACE_FILES = ("trace.json", "trace.png")

Json = dict[str, Any]

_LOOKS = (
    ("#22384f", "o", "-"),
    ("#e69f00", "s", "--"),
    ("#2a9d6f", "^", "-."),
    ("#b0487a", "D", ":"),
    ("#6b6b6b", "v", "-"),
    ("#5aa7d6", "P", "--"),
)
_FIRES = "#d9a9a0"


def write_trace_folder(result: Json, folder: Path) -> list[Path]:
    """Write trace.json and trace.png of what `run_trace` gave; gives their paths. Raises UsageError, PagefireError."""
    json_path, png_path = (folder / name for name in TRACE_FILES)
    with report_folder(folder, TRACE_FILES):
        write_whole(result, json_path)
        draw_trace(result, png_path)
    return [json_path, png_path]


def draw_trace(result: Json, png_path: Path) -> None:
    """Draw it into `png_path`, replacing it."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: Sequence[Json] = result["rows"]
    with style.context(["default", {"font.size": 9}]):
        compared = result["fire_s"] is not None and len({row["granularity"] for row in rows}) > 1
        figure = Figure(figsize=(10.4, 8.4 if compared else 5.0), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        first = rows[0]
        pace = f"{first['rate_share']:.3g} of its full rate" if first["rate_share"] else "its full rate"
        if varied(rows) == "rate_share":
            pace = "part of its full rate"
        figure.suptitle(
            f"Tracing a guest of {first['resident_bytes'] / (1 << 30):g} GiB at {pace}, workload {first['workload']}, "
            f"medians of {result['repetitions']}",
            fontsize=11, fontweight="bold",
        )  # fmt: skip
        panels = figure.subplots(2 if compared else 1, 2).ravel()
        gap, lost = panels[:2]
        over, axis_label = _varied(rows)
        _draw(gap, rows, over, lambda row: row["any_vcpu_gap_s"] * 1e3, spread=True)
        gap.set_yscale("log")
        for of_ticks in (gap.yaxis.set_major_formatter, gap.yaxis.set_minor_formatter):
            of_ticks(lambda height, _: f"{height:g}")
        gap.set_ylabel("longest time without a commit of any vCPU (ms)")
        gap.set_title("during the install", fontsize=9)
        _draw(lost, rows, over, lambda row: max(row["lost_s"], 0.0) * 1e3, spread=False)
        _draw_fires(lost, rows, over, result["fire_s"])
        lost.set_ylim(bottom=0)
        lost.set_ylabel("vCPU time lost (ms)")
        lost.set_title("afterwards, while dirty pages were collected", fontsize=9)
        if compared:
            _draw_cost(panels[2], panels[3], rows, over)
        positions = sorted({over(row) for row in rows})
        for axes in panels:
            if len(positions) > 1 and positions[-1] >= 4 * positions[0]:
                axes.set_xscale("log", base=2)
            axes.set_xticks(positions, [f"{one:g}" for one in positions], minor=False)
            axes.set_xticks([], minor=True)
            axes.set_xlabel(axis_label)
            axes.grid(True, which="major", linewidth=0.3, color="#c8c8c8")
        handles, labels = lost.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        figure.savefig(png_path, format="png")


def _varied(rows: Sequence[Json]) -> tuple[Callable[[Json], float], str]:
    """Choose what the rows are drawn over: the guest's pace if it varies, or the number of vCPUs, else the share touched."""
    if varied(rows) == "rate_share":
        return lambda row: share_of(row, "rate_share") * 100, "of its full rate (%)"
    if len({row["vcpus"] for row in rows}) > 1 or len({row["touched"] for row in rows}) == 1:
        return lambda row: float(row["vcpus"]), "vCPUs"
    return lambda row: row["touched"] * 100, "of the resident memory touched (%)"


def _draw(
    axes: Axes, rows: Sequence[Json], over: Callable[[Json], float], figure: Callable[[Json], float], *, spread: bool
) -> None:
    ways: dict[str, list[Json]] = {}
    for row in rows:
        name = f"{way_words(row['install'], row['tracer'], row['granularity'], row['step'])}, memory {row['backing']}"
        ways.setdefault(name, []).append(row)
    for index, (name, of_way) in enumerate(ways.items()):
        colour, marker, line = _LOOKS[index % len(_LOOKS)]
        at = [over(row) for row in of_way]
        heights = [figure(row) for row in of_way]
        axes.plot(at, heights, color=colour, marker=marker, linestyle=line, linewidth=1.4, markersize=5, label=name)
        if spread:
            low = [row["any_vcpu_gap_min_s"] * 1e3 for row in of_way]
            high = [row["any_vcpu_gap_max_s"] * 1e3 for row in of_way]
            axes.vlines(at, low, high, color=colour, linewidth=0.8, alpha=0.7)


def _draw_cost(tracing: Axes, total: Axes, rows: Sequence[Json], over: Callable[[Json], float]) -> None:
    _draw(tracing, rows, over, lambda row: row["tracing_s"] * 1e3, spread=False)
    tracing.set_ylim(bottom=0)
    tracing.set_ylabel("CPU time (ms)")
    tracing.set_title("what tracing took: installing, fires, collecting, breaking down", fontsize=9)
    _draw(total, rows, over, lambda row: row["total_s"], spread=False)
    total.set_ylim(bottom=0)
    total.set_ylabel("time (s)")
    total.set_title(f"the same and the dirty pages on a link of {rows[0]['link_bps'] / 1e9:g} Gbit/s", fontsize=9)


def _draw_fires(axes: Axes, rows: Sequence[Json], over: Callable[[Json], float], fire_s: float | None) -> None:
    """Shade what the fires account for: their number, the largest of all ways, times the cost of one."""
    if fire_s is None:
        return
    largest: dict[float, float] = {}
    for row in rows:
        largest[over(row)] = max(largest.get(over(row), 0.0), row["fires_cost_s"] * 1e3)
    at = sorted(largest)
    words = f"what the fires account for, {format_duration(fire_s)} each"
    if len(at) == 1:
        axes.axhline(largest[at[0]], color=_FIRES, linewidth=3, zorder=0, label=words)
    else:
        axes.fill_between(at, [largest[one] for one in at], color=_FIRES, alpha=0.6, zorder=0, label=words)
