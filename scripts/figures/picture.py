"""A figure as a PNG, by matplotlib: panels, looks and words as in interactive.py, for papers and where no script runs."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from pagefire.scripts.figures.description import Axis, Cells, Figure, Panel, Series
from pagefire.scripts.figures.interactive import LOG_TICKS, light_from, log_words
from pagefire.scripts.figures.looks import COMMITS, EMPTY, GRID, INK, SCALE, look

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

_WIDTH_INCHES, _PANEL_INCHES, _DPI = 8.0, 2.9, 140
_GROUP_WIDTH = 0.8
_MOST_LEGEND_COLUMNS = 4


def png_of(figure: Figure) -> bytes:
    """Draw a figure that has panels."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    with style.context(["default", {"font.size": 9, "hatch.linewidth": 0.6}]):
        count = len(figure.panels)
        picture = Picture(figsize=(_WIDTH_INCHES, 0.9 + _PANEL_INCHES * count), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(picture)
        picture.suptitle(figure.title, fontsize=11, fontweight="bold", parse_math=False)
        for axes, panel in zip(picture.subplots(count, squeeze=False)[:, 0], figure.panels, strict=True):
            _draw(picture, axes, panel)
        _legend(picture)
        page = BytesIO()
        picture.savefig(page, format="png")
        return page.getvalue()


def _draw(picture: Picture, axes: Axes, panel: Panel) -> None:
    for shade in panel.shades:
        axes.axvspan(
            shade.start,
            shade.end,
            facecolor=shade.fill,
            edgecolor="#8a8a8a",
            hatch=shade.hatch,
            linewidth=0,
            zorder=0,
            label=shade.label,
        )
    bars = [one for one in panel.series if one.form == "bar"]
    below: dict[float, float] = {}
    for index, one in enumerate(panel.series):
        _draw_series(axes, one, panel, index, len(bars), below)
    _set_axis(axes, panel.x, "x")
    _set_axis(axes, panel.y, "y")
    if panel.cells is not None:
        _draw_cells(picture, axes, panel.cells)
    else:
        axes.grid(True, axis="both" if panel.x.ticks is None else "y", linewidth=0.4, color=GRID, zorder=0)
    axes.set_axisbelow(True)
    if panel.title:
        axes.set_title(panel.title, fontsize=9, loc="left", parse_math=False)
    for side in axes.spines.values():
        side.set_linewidth(0.6)


def _draw_series(axes: Axes, one: Series, panel: Panel, index: int, bars: int, below: dict[float, float]) -> None:
    how, label = look(one.look), one.name or None
    xs, ys = list(one.x), [float("nan") if y is None else y for y in one.y]
    match one.form:
        case "area":
            axes.fill_between(
                xs, ys, step="post", facecolor=COMMITS, edgecolor=INK, linewidth=0.4, zorder=2, label=label
            )
            axes.set_xlim(xs[0], xs[-1])
            axes.set_ylim(0, 1.1 * max(*ys, 1.0))
        case "step":
            axes.step(xs, ys, where="post", color=how.color, linestyle=how.dash[0], linewidth=1.8, label=label)
        case "bar":
            width = _GROUP_WIDTH / (1 if panel.stacked else bars)
            places = xs if panel.stacked else [x - _GROUP_WIDTH / 2 + width * (index + 0.5) for x in xs]
            bottoms = [below.get(x, 0.0) for x in xs] if panel.stacked else 0.0
            axes.bar(
                places, ys, width, bottoms, facecolor=how.color, hatch=how.hatch[0],
                edgecolor="white" if how.hatch[0] else INK, linewidth=0.6, label=label, zorder=2,
            )  # fmt: skip
            if panel.stacked:
                below.update({x: below.get(x, 0.0) + y for x, y in zip(xs, ys, strict=True)})
            _whiskers(axes, places, one)
        case _:
            axes.plot(
                xs,
                ys,
                color=how.color,
                linestyle=how.dash[0],
                marker=how.marker[0],
                markersize=5.5,
                linewidth=1.8,
                label=label,
                zorder=3,
            )
            _whiskers(axes, xs, one)


def _whiskers(axes: Axes, places: list[float], one: Series) -> None:
    for x, least, largest in zip(places, one.least, one.largest, strict=False):
        if least is not None and largest is not None and largest > least:
            axes.plot([x, x], [least, largest], color=INK, linewidth=1.1, marker="_", markersize=6, zorder=4)


def _set_axis(axes: Axes, axis: Axis, which: str) -> None:
    one = axes.xaxis if which == "x" else axes.yaxis
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        least, largest = one.get_view_interval()
        shown = [tick for tick in LOG_TICKS if least <= tick <= largest]
        one.set_ticks(shown, labels=[log_words(tick) for tick in shown])
        one.set_ticks([], minor=True)
    if axis.ticks is not None:
        one.set_ticks([place for place, _ in axis.ticks], labels=axis.tick_lines)
        if axis.by_place:
            # A category without a bar has its place as well.
            (axes.set_xlim if which == "x" else axes.set_ylim)(-0.5, len(axis.ticks) - 0.5)
        one.set_ticks([], minor=True)
    elif which == "y" and not axis.log:
        axes.set_ylim(bottom=0)
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(
        axis.label if which == "x" else axis.label_lines, parse_math=False
    )


def _draw_cells(picture: Picture, axes: Axes, cells: Cells) -> None:
    import numpy as np

    values = np.array([[float("nan") if value is None else value for value in row] for row in cells.values])
    axes.set_facecolor(EMPTY)
    drawn = axes.imshow(np.ma.masked_invalid(values), cmap=SCALE, origin="lower", aspect="auto")
    picture.colorbar(drawn, ax=axes, label=cells.label)
    light = light_from(cells.values)
    for y, (row, said) in enumerate(zip(cells.values, cells.words, strict=True)):
        for x, (value, words) in enumerate(zip(row, said, strict=True)):
            color = "#111111" if value is None or value >= light else "#ffffff"
            axes.text(x, y, words, ha="center", va="center", fontsize=8, color=color, parse_math=False)


def _legend(picture: Picture) -> None:
    """Name everything once, below."""
    named: dict[str, Artist] = {}
    for axes in picture.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        columns = min(len(named), _MOST_LEGEND_COLUMNS)
        picture.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )
