"""The picture of `pagefire compare`: the resident guest's commits laid over each other, the sparse guest's stuns beside each other.

Above, commits per second as the post shows them, in buckets of 1 s, and each profile's phases below on the same axis. Then, in
buckets of 10 ms, around the trace install and around the stun, where the profiles are moved to begin together. Last, the stun of
the sparse guest, divided into what the bitmap has part in and the rest. Drawn are the runs of the median share of commits lost. A
profile has a lightness and a line of its own, so that a grey print loses nothing.
Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagefire.protocol.units import format_duration, format_size
from pagefire.scripts.compare_table import case_title, table_text
from pagefire.scripts.profiles import VSPHERE
from pagefire.scripts.report_folder import report_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPARE_FILES = ("compare.json", "table.txt", "compare.png")

Json = dict[str, Any]

#: What is drawn in buckets of 10 ms, in seconds from the beginning of the install and of the stun.
INSTALL_WINDOW_S = (-0.3, 1.15)
STUN_WINDOW_S = (-0.45, 0.6)
_BUCKET_S = 0.01
_LOOKS: dict[str, Json] = {
    "6.7": {"color": "#e08a00", "linestyle": "-"},
    "7": {"color": "#1f5f99", "linestyle": (0, (5, 1.5))},
    "ours": {"color": "#111111", "linestyle": (0, (1.2, 1.2))},
}
_NAMES = {"6.7": "vSphere 6.7's way", "7": "vSphere 7's way", "ours": "ours"}
_PHASES = (
    ("setup", "#ffffff", "....", "setup"),
    ("trace", "#7d7d7d", "", "trace install"),
    ("active", "#e3e3e3", "", "pre-copy"),
    ("device", "#a03000", "", "stun"),
    ("postcopy-active", "#c9c9c9", "////", "post-copy"),
)
_PARTS = (
    ("bitmap_s", "#22384f", "", "coding the bitmap"),
    ("transfer_s", "#e08a00", "////", "transfer: bitmap and registers through the link"),
    ("install_s", "#b9dcf2", "....", "the destination decodes it and prepares"),
    ("rest", "#dcdcdc", "", "the rest of the stun"),
)


def write_compare_folder(result: Json, folder: Path) -> list[Path]:
    """Write compare.json, table.txt and compare.png of what `run_compare` gave; gives their paths.

    Raises UsageError, PagefireError.
    """
    json_path, table_path, png_path = (folder / name for name in COMPARE_FILES)
    with report_folder(folder, COMPARE_FILES):
        write_whole(result, json_path)
        table_path.write_text(table_text(result), encoding="utf-8")
        draw_compare(result, png_path)
    return [json_path, table_path, png_path]


def draw_compare(result: Json, png_path: Path) -> None:
    """Draw it into `png_path`, replacing it; what was not run has no panel."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    resident = [case for case in result["cases"] if case["link_bps"] is None]
    sparse = [case for case in result["cases"] if case["link_bps"] is not None]
    heights = [*([3.2, 0.9, 3.0] * len(resident)), *([2.3] * len(sparse))]
    with style.context(["default", {"font.size": 9, "hatch.linewidth": 0.5}]):
        figure = Figure(figsize=(9.6, 1.0 + sum(heights)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        runs = "1 run each" if result["repetitions"] == 1 else f"{result['repetitions']} runs each, in turn"
        figure.suptitle(f"One guest, migrated three ways ({runs})", fontsize=12, fontweight="bold")
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        rows = iter(range(len(heights)))
        for case in resident:
            _draw_seconds(figure.add_subplot(grid[next(rows), :]), case)
            _draw_bands(figure.add_subplot(grid[next(rows), :]), case)
            at = next(rows)
            install = figure.add_subplot(grid[at, 0])
            _draw_install(install, figure.add_subplot(grid[at, 1], sharey=install), case)
        for case in sparse:
            _draw_stuns(figure.add_subplot(grid[next(rows), :]), case)
        figure.savefig(png_path, format="png")


# -- the resident guest --------------------------------------------------------------------------------------------------


def _draw_seconds(axes: Axes, case: Json) -> None:
    for row in _drawn(case):
        _draw_commits(axes, row, *commits_per_s(row["shown"]["timeline"], 1.0), width=2.0)
    axes.set_xlim(*_whole_s(case))
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_ylabel("commits per second\n(buckets of 1 s)")
    axes.set_title(f"Guest: {case_title(case)}", fontsize=9)
    # Below the lines there is room: a guest that is traced is slower, not stopped.
    axes.legend(loc="lower left", ncols=3, fontsize=8, framealpha=0.9)
    _plain(axes)


def _draw_install(install: Axes, stun: Axes, case: Json) -> None:
    """Draw the 10 ms around the install and around the stun, each profile's moved so that 0 is the instant at which it began."""
    for axes, since, window_s in ((install, "dip", INSTALL_WINDOW_S), (stun, "stun", STUN_WINDOW_S)):
        for row in _drawn(case):
            shown = row["shown"]
            zero_s = shown["dip"]["from_s"] if since == "dip" else shown["stun_at_s"]
            # A short pre-copy's stun is in the other panel, not beside another's install.
            until_s = shown["stun_at_s"] if since == "dip" else float("inf")
            buckets = [one for one in shown["timeline"] if one["t_s"] + _BUCKET_S <= until_s]
            edges_s, rates = commits_per_s(buckets, _BUCKET_S)
            _draw_commits(axes, row, [edge_s - zero_s for edge_s in edges_s], rates, width=1.2)
        axes.set_xlim(*window_s)
        axes.axvline(0, color="#555555", linewidth=0.8, zorder=1)
        _plain(axes)
    install.set_ylim(bottom=0)
    install.set_ylabel("commits per second\n(buckets of 10 ms)")
    install.set_xlabel("time since the trace install began (s)")
    stun.set_xlabel("time since the stun began (s)")
    stun.tick_params(labelleft=False)


def _draw_commits(axes: Axes, row: Json, edges_s: Sequence[float], rates: Sequence[float], width: float) -> None:
    look = _LOOKS[row["profile"]]
    axes.stairs(
        rates, edges_s, baseline=None, label=_NAMES[row["profile"]], linewidth=width,
        color=look["color"], linestyle=look["linestyle"],
    )  # fmt: skip


def _plain(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda rate, _: _short(rate))
    axes.grid(True, axis="y", linewidth=0.3, color="#c8c8c8")
    _thin(axes)


def _short(rate: float) -> str:
    return f"{rate / 1e6:g}M" if rate >= 1e6 else f"{rate / 1e3:g}k" if rate >= 1e3 else f"{rate:g}"


def _whole_s(case: Json) -> tuple[float, float]:
    """Give the time that all runs shown cover between them, in seconds since the request."""
    timelines = [row["shown"]["timeline"] for row in _drawn(case)]
    return min(one[0]["t_s"] for one in timelines), max(one[-1]["t_s"] + _BUCKET_S for one in timelines)


def commits_per_s(timeline: Sequence[Json], bucket_s: float) -> tuple[list[float], list[float]]:
    """Add 10 ms buckets up to longer ones and give their edges and commits per second; an unfinished last one is left out.

    The long buckets are laid such that the first one of 10 ms begins one; edges are one more than rates.
    """
    per = max(1, round(bucket_s / _BUCKET_S))
    whole = len(timeline) // per * per
    counts = [one["commits"] for one in timeline[:whole]]
    rates = [sum(counts[at : at + per]) / (per * _BUCKET_S) for at in range(0, whole, per)]
    start_s = timeline[0]["t_s"] if timeline else 0.0
    return [start_s + index * per * _BUCKET_S for index in range(len(rates) + 1)], rates


def phases_of(shown: Json) -> list[tuple[str, float, float]]:
    """Give a run's phases as (name, from, to) in seconds since the request; `trace` is laid over them where tracing was installed.

    The stun takes the place of the phase `device`: it is what the guest saw of that.
    """
    dip = shown["dip"]
    begins = [(one["phase"], one["at_s"]) for one in shown["phases"]]
    spans = [(name, at_s, end_s) for (name, at_s), (_, end_s) in pairwise(begins) if name != "device"]
    return [
        *spans,
        ("trace", dip["from_s"], dip["installed_s"]),
        ("device", shown["stun_at_s"], shown["stun_at_s"] + shown["stun_s"]),
    ]  # fmt: skip


def _draw_bands(axes: Axes, case: Json) -> None:
    """Draw the phases of each profile as a row of bars, on the time axis of the panel above."""
    from matplotlib.patches import Patch

    rows = _drawn(case)
    looks = {name: (fill, hatch) for name, fill, hatch, _ in _PHASES}
    for at, row in enumerate(rows):
        for name, from_s, to_s in phases_of(row["shown"]):
            fill, hatch = looks[name]
            # What is shorter than a pixel or two would not be seen: an install and a stun are drawn with an edge of their own.
            edge = fill if name in ("trace", "device") else "#8a8a8a"
            low, height = (-0.4, 0.8) if name != "trace" else (-0.4, 0.35)
            axes.bar(
                from_s, height, to_s - from_s, at + low, align="edge", facecolor=fill, hatch=hatch, edgecolor=edge,
                linewidth=1.2 if name in ("trace", "device") else 0.4,
            )  # fmt: skip
    axes.set_xlim(*_whole_s(case))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row["profile"] for row in rows])
    axes.tick_params(left=False)
    axes.set_xlabel("time since the migrate request (s)")
    _thin(axes)
    patches = [
        Patch(facecolor=fill, hatch=hatch, edgecolor="#8a8a8a", linewidth=0.4, label=words)
        for _, fill, hatch, words in _PHASES
    ]
    axes.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(patches), frameon=False, fontsize=8
    )


# -- the sparse guest ----------------------------------------------------------------------------------------------------


def _draw_stuns(axes: Axes, case: Json) -> None:
    rows = _drawn(case)
    for at, row in enumerate(rows):
        left_ms = 0.0
        for part, colour, hatch, words in _PARTS:
            width_ms = stun_parts_s(row)[part] * 1e3
            axes.barh(
                at, width_ms, 0.6, left=left_ms, facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.4,
                label=words if not at else None,
            )  # fmt: skip
            left_ms += width_ms
        stun = row["stun_s"]
        words = f"{format_duration(stun['median'])}, bitmap {format_size(row['bitmap_bytes']['median'])}"
        axes.annotate(words, (left_ms, at), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    longest_ms = max(row["stun_s"]["median"] for row in rows) * 1e3
    axes.set_xlim(0, 1.3 * longest_ms)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_NAMES[row["profile"]] for row in rows])
    axes.xaxis.set_major_formatter(lambda ms, _: f"{ms:,g}")
    axes.set_xlabel("stun (ms, median)")
    axes.set_title(f"Guest: {case_title(case)}", fontsize=9)
    axes.grid(True, axis="x", linewidth=0.3, color="#c8c8c8")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    _thin(axes)


def stun_parts_s(row: Json) -> dict[str, float]:
    """Divide a row's median stun, in seconds: the parts of the downtime that the bitmap has part in, and the rest, at least 0."""
    breakdown = row["downtime_breakdown"]
    parts = {part: breakdown[part] for part in ("bitmap_s", "transfer_s", "install_s")}
    return parts | {"rest": max(row["stun_s"]["median"] - sum(parts.values()), 0.0)}


def _drawn(case: Json) -> list[Json]:
    return [row for row in case["rows"] if row["profile"] in VSPHERE]


def _thin(axes: Axes) -> None:
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_linewidth(0.6)
