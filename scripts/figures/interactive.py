"""A figure as plotly's JSON: data and layout, made by hand, so that drawing needs plotly.js alone. Pure.

Panels stand under each other, each with axes of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pagefire.scripts.figures.description import Axis, Cells, Figure, Panel, Series, Shade
from pagefire.scripts.figures.looks import COMMITS, EMPTY, GRID, INK, SCALE, look

Json = dict[str, Any]

PANEL_PX, _GAP_PX, _TOP_PX, _BOTTOM_PX = 300, 95, 50, 110
#: Of a logarithmic axis: as many digits as can be read.
LOG_TICKS = [digit * 10.0**power for power in range(-4, 10) for digit in (1, 2, 5)]
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"}
#: From this value of a map on, as a share of its span, words in a cell are dark: the scale is light there.
_DARK_WORDS_FROM = 0.55


def plotly_figure(figure: Figure) -> Json:
    """Give {data, layout} of a figure that has panels."""
    count = len(figure.panels)
    height_px = _TOP_PX + _BOTTOM_PX + count * PANEL_PX + (count - 1) * _GAP_PX
    inner_px = height_px - _TOP_PX - _BOTTOM_PX
    traces: list[Json] = []
    layout: Json = {
        "height": height_px,
        "margin": {"l": 85, "r": 30, "t": _TOP_PX, "b": _BOTTOM_PX},
        "font": _FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "bargap": 0.3,
        "barmode": "stack" if any(panel.stacked for panel in figure.panels) else "group",
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -75 / inner_px, "yanchor": "top"},
        "annotations": [],
        "shapes": [],
    }
    named: set[str] = set()
    for index, panel in enumerate(figure.panels):
        suffix = str(index + 1) if index else ""
        top = 1 - index * (PANEL_PX + _GAP_PX) / inner_px
        bottom = top - PANEL_PX / inner_px
        layout[f"xaxis{suffix}"] = {**_axis(panel.x), "anchor": f"y{suffix}"}
        if panel.x.by_place:
            words = [_words(one) for one in panel.x.tick_lines]
            # A category without a bar has its place as well.
            layout[f"xaxis{suffix}"] |= {"tickangle": 0, "ticktext": words, "range": [-0.5, len(words) - 0.5]}
        layout[f"yaxis{suffix}"] = {**_axis(panel.y), "anchor": f"x{suffix}", "domain": [max(bottom, 0.0), top]}
        layout[f"yaxis{suffix}"]["title"]["text"] = _words(panel.y.label_lines)
        if panel.title:
            layout["annotations"].append(
                {"text": f"<b>{_words(panel.title)}</b>", "showarrow": False, "xref": "paper", "yref": "paper", "x": 0, "y": top,
                 "xanchor": "left", "yanchor": "bottom", "yshift": 6}
            )  # fmt: skip
        drawn = [*_shades(panel), *(_series(one, panel) for one in panel.series)]
        if panel.cells is not None:
            drawn.append(_cells(panel, panel.cells, top, bottom))
            layout["annotations"] += _cell_words(panel.cells, suffix)
            layout[f"xaxis{suffix}"] |= {"showgrid": False, "zeroline": False}
            layout[f"yaxis{suffix}"] |= {"showgrid": False, "zeroline": False}
            layout["plot_bgcolor"] = EMPTY
        for trace in drawn:
            # A name stands in the legend once, and there shows and hides what bears it in all panels.
            if name := trace.get("name"):
                trace |= {"legendgroup": name, "showlegend": trace.get("showlegend", True) and name not in named}
                named.add(name)
            traces.append({**trace, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
    layout["showlegend"] = any(trace.get("showlegend") for trace in traces)
    return {"data": traces, "layout": layout}


def _axis(axis: Axis) -> Json:
    said: Json = {
        "title": {"text": _words(axis.label), "standoff": 8},
        "gridcolor": GRID,
        "linecolor": INK,
        "zerolinecolor": GRID,
        "ticks": "outside",
        "automargin": True,
    }
    if axis.log:
        said |= {
            "type": "log",
            "tickmode": "array",
            "tickvals": LOG_TICKS,
            "ticktext": [log_words(tick) for tick in LOG_TICKS],
        }
    if axis.ticks is not None:
        said |= {
            "tickmode": "array",
            "tickvals": [place for place, _ in axis.ticks],
            "ticktext": [_words(words) for _, words in axis.ticks],
        }
        said |= {"showgrid": axis.log, "zeroline": False}
    elif not axis.log:
        said["rangemode"] = "tozero"
    return said


def log_words(tick: float) -> str:
    """Write a tick of a logarithmic axis."""
    return f"{tick:,.0f}" if tick >= 1 else f"{tick:g}"


def _series(one: Series, panel: Panel) -> Json:
    how = look(one.look)
    trace: Json = {"name": _words(one.name), "x": list(one.x), "y": list(one.y), "showlegend": bool(one.name)}
    if panel.x.ticks is not None:
        written = dict(panel.x.ticks)
        spreads = zip(one.least, one.largest, strict=True) if one.least else ((None, None) for _ in one.x)
        trace["customdata"] = [[_words(written[x]), low, high] for x, (low, high) in zip(one.x, spreads, strict=True)]
    spread = _spread(one)
    match one.form:
        case "bar":
            pattern = {
                "shape": how.hatch[1],
                # Without it a bar with a pattern is see-through.
                "bgcolor": how.color,
                "fgcolor": "#ffffff" if how.color != "#56B4E9" else "#1a1a1a",
                "solidity": 0.35,
            }
            return trace | {
                "type": "bar", "marker": {"color": how.color, "pattern": pattern, "line": {"color": INK, "width": 0.6}},
                "hovertemplate": _hover(panel, one), **spread,
            }  # fmt: skip
        case "step":
            line = {"shape": "hv", "color": how.color, "dash": how.dash[1], "width": 2.2}
            return trace | {"type": "scatter", "mode": "lines", "line": line, "hovertemplate": _hover(panel, one)}
        case "area":
            line = {"shape": "hv", "color": COMMITS, "width": 0.8}
            return trace | {
                "type": "scatter", "mode": "lines", "line": line, "fill": "tozeroy", "fillcolor": COMMITS,
                "hovertemplate": "%{x:.2f} s: %{y} commits<extra></extra>",
            }  # fmt: skip
        case _:
            return trace | {
                "type": "scatter", "mode": "lines+markers", "line": {"color": how.color, "dash": how.dash[1], "width": 2.2},
                "marker": {"symbol": how.marker[1], "size": 9, "color": how.color}, "hovertemplate": _hover(panel, one), **spread,
            }  # fmt: skip


def _spread(one: Series) -> Json:
    if list(one.least) == list(one.largest):
        return {}
    pairs = list(zip(one.y, one.least, one.largest, strict=True))
    up = [high - middle if None not in (middle, high) else None for middle, _, high in pairs]  # type: ignore[operator]
    down = [middle - low if None not in (middle, low) else None for middle, low, _ in pairs]  # type: ignore[operator]
    return {
        "error_y": {
            "type": "data",
            "array": up,
            "arrayminus": down,
            "symmetric": False,
            "color": INK,
            "thickness": 1.2,
            "width": 4,
        }
    }


def _hover(panel: Panel, one: Series) -> str:
    x = "%{customdata[0]}" if panel.x.ticks is not None else "%{x:.3g}"
    spread = " (%{customdata[1]:.3g} to %{customdata[2]:.3g})" if one.least else ""
    return (
        f"{_words(panel.x.label)} {x}<br>{_words(panel.y.label)}: %{{y:.3g}}{spread}<extra>{_words(one.name)}</extra>"
    )


def _shades(panel: Panel) -> Iterator[Json]:
    """Give the phases as filled rectangles behind the curves, hatched as well; as high as the highest curve, and a tenth."""
    highest = 1.1 * max((y for one in panel.series for y in one.y if y is not None), default=1.0) or 1.0
    for shade in panel.shades:
        yield {
            "type": "scatter", "mode": "lines", "name": shade.label, "line": {"width": 0.5, "color": "#8a8a8a"},
            "x": [shade.start, shade.start, shade.end, shade.end], "y": [0, highest, highest, 0], "fill": "toself",
            "fillcolor": shade.fill, "hoverinfo": "skip",
            **_pattern(shade),
        }  # fmt: skip


def _pattern(shade: Shade) -> Json:
    shape = {".": ".", "x": "x", "/": "/", "\\": "\\"}.get(shade.hatch[:1], "")
    if not shape:
        return {}
    return {"fillpattern": {"shape": shape, "bgcolor": shade.fill, "fgcolor": "#8a8a8a", "solidity": 0.12, "size": 7}}


def _cells(panel: Panel, cells: Cells, top: float, bottom: float) -> Json:
    xs = [place for place, _ in panel.x.ticks or ()]
    ys = [place for place, _ in panel.y.ticks or ()]
    return {
        "type": "heatmap", "x": xs, "y": ys, "z": [list(values) for values in cells.values], "colorscale": SCALE.capitalize(),
        "xgap": 2, "ygap": 2, "hoverongaps": False,
        "colorbar": {"title": {"text": _words(cells.label), "side": "right"}, "len": top - bottom, "y": (top + bottom) / 2},
        "hovertemplate": f"{_words(cells.label)}: %{{z:.3g}}<extra></extra>",
    }  # fmt: skip


def _cell_words(cells: Cells, suffix: str) -> Iterator[Json]:
    light = light_from(cells.values)
    for y, (row, said) in enumerate(zip(cells.values, cells.words, strict=True)):
        for x, (value, words) in enumerate(zip(row, said, strict=True)):
            dark = value is None or value >= light
            yield {
                "text": _words(words), "showarrow": False, "x": x, "y": y,
                "xref": f"x{suffix}", "yref": f"y{suffix}", "font": {"color": "#111111" if dark else "#ffffff", "size": 12},
            }  # fmt: skip


def light_from(values: Sequence[Sequence[float | None]]) -> float:
    """Give the value from which on the scale is so light that words on it are dark."""
    known = [value for row in values for value in row if value is not None]
    return min(known) + _DARK_WORDS_FROM * (max(known) - min(known)) if known else 0.0


def _words(text: str) -> str:
    """Take what plotly would read as markup for what it is, and a new line for one."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")
