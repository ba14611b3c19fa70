"""The picture that a database's administrator asks for: how long clients waited, over the time of a migration.

Per 10 ms the middle and the longest wait of the transactions that ended in them, on a logarithmic scale; phases shaded and the stun
marked as in the timeline, from the same instants. A client who waited through the stun is a point behind it, as high as the wait.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from pagefire.protocol.units import format_duration
from pagefire.scripts.timeline import place_stun, shade_phases

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST, _MIDDLE, _STUN = "#b04a00", "#22384f", "#a03000"

Report = dict[str, Any]


def draw_latencies(report: Report, png_path: Path) -> None:
    """Draw the report's latencies into `png_path`, replacing it; the report has some."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", {"hatch.linewidth": 0.4, "font.size": 9}]):
        figure = Figure(figsize=(8.6, 4.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(_title(report), fontsize=11, fontweight="bold", parse_math=False)
        axes = figure.subplots()
        axes.set_title(_figures(report), fontsize=9, parse_math=False)
        shaded = _draw(axes, report)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            [*handles, *shaded], [*labels, *(one.get_label() for one in shaded)],
            loc="outside lower center", ncols=len(handles) + len(shaded), frameon=False, fontsize=8,
        )  # fmt: skip
        figure.savefig(png_path, format="png")


def _draw(axes: Axes, report: Report) -> list[Any]:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    buckets = report["database"]["latencies"]
    middle_s = [one["t_s"] + 0.005 for one in buckets]
    axes.plot(
        middle_s, [one["max_s"] for one in buckets], linestyle="none", marker="o", markersize=2.6,
        markerfacecolor="none", markeredgewidth=0.7, color=_LONGEST, label="longest in 10 ms", zorder=3,
    )  # fmt: skip
    axes.plot(
        middle_s, [one["p50_s"] for one in buckets], linestyle="none", marker=".", markersize=3.0, color=_MIDDLE,
        label="median in 10 ms", zorder=4,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(buckets[0]["t_s"], buckets[-1]["t_s"] + 0.01)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda wait_s, _: format_duration(wait_s)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time since the migrate request (s)")
    axes.set_ylabel("clients waited (logarithmic)")
    axes.grid(axis="y", linewidth=0.4, color="#b0b0b0", zorder=1)
    if (stun := place_stun(report)) is not None:
        axes.axvline(stun.end_s, color=_STUN, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2, label="end of the stun")
    return shade_phases(axes, report)


def _title(report: Report) -> str:
    name = shorten(str((report.get("guest") or {}).get("name") or "guest"), 40, placeholder="...")
    return f"{name}: how long clients waited in a {report.get('mode')} migration"


def _figures(report: Report) -> str:
    waits = report["database"]
    windows = (
        ("before", "before"),
        ("precopy", "in pre-copy"),
        ("through", "through stun and post-copy"),
        ("after", "after"),
    )
    there = [(name, waits[key]) for key, name in windows if waits.get(key)]
    parts = [f"{name} {format_duration(window['p99'])}" for name, window in there]
    longest = format_duration(max((window["max"] for _, window in there), default=0.0))
    return f"p99 {', '.join(parts)}; longest of all {longest}"
