"""The picture of `pagefire bitmap`: bytes, and the time to encode and decode, against the pages left, on logarithmic axes.

Drawn are the largest guest that was measured and the worst scatter of it. Each code has a marker and a lightness of its own, so
that a grey print and a colour-blind reader lose nothing. Lines across say what goes through a link in a millisecond. A remainder
of no pages has no place on a logarithmic axis and is left out. Nothing here measures; matplotlib is loaded when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.bitmap_sets import SCATTERS
from pagefire.scripts.bitmap_table import LINK_GBITS, TIMES
from pagefire.scripts.report_folder import report_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BITMAP_FILES = ("bitmap.json", "bitmap.png")

Json = dict[str, Any]

_SCATTER_WORDS = {"one-run": "in one run", "clustered": "in clusters", "uniform": "uniformly random"}
_RAW: Json = {"label": "raw: one bit a page", "color": "#22384f", "marker": "D", "linewidth": 1.4, "zorder": 3}
_ROARING: Json = {"label": "Roaring", "color": "#2a78b5", "marker": "s", "linewidth": 1.4, "zorder": 4}
# Wide and light, so that the limit can be seen where it lies on it: nearly everywhere.
_COMPACTED: Json = {"label": "compacted", "color": "#e69f00", "marker": "o", "linewidth": 3.2, "zorder": 5}
_LIMIT: Json = {
    "label": "information limit", "color": "black", "linestyle": (0, (4, 3)), "linewidth": 1.0, "marker": "x", "zorder": 6,
}  # fmt: skip
_MARK_COLOUR = "#6b6b6b"
_MARK_S = 1e-3
#: Bytes between two ticks: 256 B, 4 KiB, 64 KiB.
_TICK_STEP = 16
#: Above the largest form there is room for a line of words.
_HEADROOM = 3.5
_MARGIN = 1.6


def write_bitmap_folder(result: Json, folder: Path) -> list[Path]:
    """Write bitmap.json and bitmap.png of what `measure_table` gave; gives their paths.

    Raises UsageError, before anything is written, when `folder` is a file or holds something else; PagefireError when the system
    refuses to write.
    """
    json_path, png_path = (folder / name for name in BITMAP_FILES)
    with report_folder(folder, BITMAP_FILES):
        write_whole(result, json_path)
        draw_bitmap(result["rows"], png_path)
    return [json_path, png_path]


def draw_bitmap(rows: Sequence[Json], png_path: Path) -> None:
    """Draw the rows of one guest and one scatter into `png_path`, replacing it; without any that has pages, it says so."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = _worst(rows)
    with style.context(["default", {"font.size": 9, "lines.markersize": 5}]):
        # A Figure of its own, not pyplot's: no display is looked for and nothing has to be closed.
        figure = Figure(figsize=(8.6, 7.4 if drawn else 2.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        if drawn:
            guest, scatter = format_size(drawn[0]["guest_bytes"]), _SCATTER_WORDS[drawn[0]["scatter"]]
            title = f"The bitmap at switchover of a {guest} guest, by pages left ({scatter})"
            figure.suptitle(title, fontsize=11, fontweight="bold")
            sizes, times = figure.subplots(2, 1, height_ratios=(3, 2), sharex=True)
            _draw_sizes(sizes, drawn)
            _draw_times(times, drawn)
            handles, labels = sizes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
        else:
            axes = figure.subplots()
            axes.set_axis_off()
            words = "No case with pages left was measured: nothing can stand on a logarithmic axis."
            axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
        figure.savefig(png_path, format="png")


def _worst(rows: Sequence[Json]) -> list[Json]:
    """Select the largest guest's rows of the worst scatter it was measured with, by ascending pages."""
    with_pages = [row for row in rows if row["pages"]]
    order = list(SCATTERS)
    worst = max(((row["guest_bytes"], order.index(row["scatter"])) for row in with_pages), default=None)
    chosen = [row for row in with_pages if (row["guest_bytes"], order.index(row["scatter"])) == worst]
    return sorted(chosen, key=lambda row: int(row["pages"]))


def _draw_sizes(axes: Axes, rows: list[Json]) -> None:
    nothing = float("nan")  # a limit of 0 bytes, where all pages are left, and a library that is not there
    drawn = [
        (_RAW, [row["raw_bytes"] for row in rows]),
        (_ROARING, [row["roaring"]["bytes"] if row["roaring"] else nothing for row in rows]),
        (_COMPACTED, [row["compacted_bytes"] for row in rows]),
        (_LIMIT, [row["limit_bytes"] or nothing for row in rows]),
    ]
    for look, sizes_bytes in drawn:
        axes.plot([row["pages"] for row in rows], sizes_bytes, **look)
    _label_pages(axes, rows)
    axes.tick_params(labelbottom=True)
    every_bytes = [size_bytes for _, sizes_bytes in drawn for size_bytes in sizes_bytes if size_bytes > 0]
    largest = max(every_bytes)
    ticks = _powers(_TICK_STEP, min(every_bytes), largest)
    axes.set(yscale="log", ylim=(ticks[0], largest * _HEADROOM), yticks=ticks[:-1], ylabel="bytes on the wire")
    axes.yaxis.set_major_formatter(lambda size_bytes, _: format_size(size_bytes))
    axes.minorticks_off()
    for gbits in LINK_GBITS:
        through_bytes = _MARK_S * gbits * 1e9 / 8
        if ticks[0] < through_bytes < largest:
            axes.axhline(through_bytes, color=_MARK_COLOUR, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            words = f"{format_duration(_MARK_S)} on a link of {gbits} Gbit/s: {format_size(through_bytes)}"
            _write_above(axes, through_bytes, words, _MARK_COLOUR)
    raw_bytes, raw_link_s = rows[0]["raw_bytes"], rows[0]["raw_link_s"]
    on_links = ", ".join(f"{format_duration(raw_link_s[str(gbits)])} on {gbits}" for gbits in LINK_GBITS)
    _write_above(axes, raw_bytes, f"{format_size(raw_bytes)}: {on_links} Gbit/s", _RAW["color"], 5)


def _write_above(axes: Axes, size_bytes: float, words: str, colour: str, points: int = 2) -> None:
    axes.annotate(
        words, (0.01, size_bytes), xycoords=axes.get_yaxis_transform(), xytext=(0, points), textcoords="offset points",
        va="bottom", fontsize=8, color=colour,
    )  # fmt: skip


def _draw_times(axes: Axes, rows: list[Json]) -> None:
    every_s: list[float] = []
    for look, key in ((_RAW, "raw"), (_ROARING, "roaring"), (_COMPACTED, "")):
        measured = [row for row in rows if not key or row[key]]
        if measured:
            both = [_both_ways_s(row, key) for row in measured]
            low_s, middle_s, high_s = zip(*both, strict=True)
            every_s += low_s + high_s
            below = [middle - low for middle, low in zip(middle_s, low_s, strict=True)]
            above = [high - middle for middle, high in zip(middle_s, high_s, strict=True)]
            pages = [row["pages"] for row in measured]
            axes.errorbar(pages, middle_s, yerr=(below, above), elinewidth=0.8, capsize=2, ecolor=_MARK_COLOUR, **look)
    _label_pages(axes, rows)
    ticks = _powers(10, min(every_s), max(every_s))
    label = "time to encode and decode\n(median; bars: shortest to longest)"
    axes.set(yscale="log", ylim=(ticks[0], ticks[-1]), yticks=ticks, ylabel=label, xlabel="pages left (4 KiB each)")
    axes.yaxis.set_major_formatter(lambda time_s, _: format_duration(time_s))


def _both_ways_s(row: Json, key: str) -> tuple[float, float, float]:
    """Give shortest, median and longest of encoding and decoding together."""
    times = row[key] if key else row
    low_s, middle_s, high_s = (times[f"encode{one}_s"] + times[f"decode{one}_s"] for one in TIMES)
    return low_s, middle_s, high_s


def _label_pages(axes: Axes, rows: list[Json]) -> None:
    ticks = _powers(10, rows[0]["pages"], rows[-1]["pages"])
    axes.set(xscale="log", xlim=(ticks[0] / _MARGIN, ticks[-1] * _MARGIN), xticks=ticks)
    axes.xaxis.set_major_formatter(lambda pages, _: format_count(pages))
    axes.grid(which="major", color="#dddddd", linewidth=0.5, zorder=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_linewidth(0.6)


def _powers(base: int, low: float, high: float) -> list[float]:
    """List the powers of `base` from the last one not above `low` to the first one above it and not below `high`."""
    first = math.floor(math.log(low, base) + 1e-9)
    last = max(first + 1, math.ceil(math.log(high, base) - 1e-9))
    return [float(base) ** power for power in range(first, last + 1)]
