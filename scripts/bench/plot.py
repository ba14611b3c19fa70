"""What the benchmarks' pictures share: the file, the looks, and bars and lines with their spread. Nothing here measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]

#: Ours dark, the reference light: a grey print loses nothing.
OURS: Json = {"color": "#22384f"}
REFERENCE: Json = {"color": "#e6b56a"}
#: More than two of ours, by lightness.
SHADES = ("#16324f", "#1f6f8b", "#e08a00", "#7fb7a6", "#b0487a", "#d9a9a0", "#6b6b6b", "#c9c9c9", "#a03000", "#efe2b8")


def draw_into(png_path: Path, title: str, size_inches: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Draw a picture into `png_path`, replacing it."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", {"font.size": 9, "hatch.linewidth": 0.5}]):
        figure = Figure(figsize=size_inches, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        draw(figure)
        figure.savefig(png_path, format="png")


def bars(axes: Axes, names: Sequence[str], groups: Sequence[tuple[str, Json, Sequence[Json]]]) -> None:
    """Draw for each name one bar a group, at its median, with a line from the least to the largest."""
    width = 0.8 / len(groups)
    for index, (words, look, spreads) in enumerate(groups):
        at = [position + (index - (len(groups) - 1) / 2) * width for position in range(len(names))]
        axes.bar(
            at, [one["median"] for one in spreads], 0.92 * width, label=words, linewidth=0, edgecolor="white", **look
        )
        axes.vlines(at, [one["min"] for one in spreads], [one["max"] for one in spreads], color="#111111", linewidth=1)
    axes.set_xticks(range(len(names)), list(names))
    axes.set_ylim(0, 1.25 * max(one["max"] for _, _, spreads in groups for one in spreads))
    axes.legend(loc="upper left", ncols=4, fontsize=8, framealpha=0.9)
    grid(axes, "y")


def line(axes: Axes, at: Sequence[float], spreads: Sequence[Json], words: str, look: Json, **more: Any) -> None:
    """Draw medians as a line with markers, and from the least to the largest as a thin one."""
    axes.plot(
        at, [one["median"] for one in spreads], marker="o", markersize=4, linewidth=1.4, label=words, **look, **more
    )
    axes.vlines(at, [one["min"] for one in spreads], [one["max"] for one in spreads], linewidth=0.8, alpha=0.7, **look)


def reference_line(axes: Axes, words: str) -> None:
    """Mark the reference of a ratio."""
    axes.axhline(1, color="#a03000", linewidth=1, linestyle=(0, (4, 2)), label=words)
    axes.legend(loc="upper left", ncols=4, fontsize=8, framealpha=0.9)


def grid(axes: Axes, which: Any = "both") -> None:
    """Lay a thin grid behind what is drawn."""
    axes.grid(True, axis=which, linewidth=0.3, color="#c8c8c8")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_linewidth(0.6)
