"""The picture of a migration: the guest's commits per 10 ms, the phases behind them, and the stun under the magnifying glass.

Above, the whole of the timeline; below, 100 ms before and after the stun. Phases differ in lightness and hatching as well as in
colour, so that a grey print and a colour-blind reader lose nothing.

Facts: a bucket says how many commits fell into 10 ms, not when; clock readings of the vCPUs and the hosts say to the microsecond
when a phase (`phases`) and the stun began (`stun_at_s`) and how long it was (`stun_s`). Shades and mark are drawn from those, and
the buckets have no part in them: an empty bucket beside the mark is one in which no transaction ended, and is not hidden. Nothing
here measures; matplotlib is loaded on the first drawing only, because it takes half a second that `pagefire status` should not pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from pagefire.protocol.units import format_count, format_duration
from pagefire.scripts.summary import stun_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

BUCKET_S = 0.01
ZOOM_S = 0.1

#: Above the tallest bucket there is room for two rows: the phases' names, and below them the stun's length.
_HEADROOM = 1.38
_STUN_ROW = 0.8
_WIDE_SHARE = 0.2
_MARGIN_PX = 12
_TITLE_CHARACTERS = 80
_INK, _COMMITS, _HATCH, _STUN = "#22384f", "#44586d", "#8a8a8a", "#a03000"
_PAPER = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PhaseLook:
    """How a phase is named and shaded: phases that follow one another differ in lightness or in hatching, not in hue alone."""

    label: str
    fill: str
    hatch: str


_BEFORE = PhaseLook("before", "#ffffff", "")
_SETUP = PhaseLook("setup", "#e4e4e4", "....")
_PRECOPY = PhaseLook("pre-copy", "#cfe3f2", "")
_SWITCHOVER = PhaseLook("switchover", "#e69f00", "xxxx")
_POSTCOPY = PhaseLook("post-copy", "#b5dcc9", "////")
_PAUSED = PhaseLook("post-copy paused", "#d9a9c4", "\\\\\\\\")
_AFTER = PhaseLook("after", "#ffffff", "")
_ENDED = PhaseLook("ended at the source", "#e4e4e4", "....")

#: Looks by the status names of the state table; what is not listed is shaded as `before` and keeps its own name.
PHASE_LOOKS = {
    "": _BEFORE,
    "none": _BEFORE,
    "before": _BEFORE,
    "setup": _SETUP,
    "active": _PRECOPY,
    "pre-switchover": _SWITCHOVER,
    "device": _SWITCHOVER,
    "postcopy-active": _POSTCOPY,
    "postcopy-recover": _PAUSED,
    "postcopy-paused": _PAUSED,
    "completed": _AFTER,
    "failed": _ENDED,
    "cancelling": _ENDED,
    "cancelled": _ENDED,
}


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the timeline, in seconds since the migrate request."""

    start_s: float
    end_s: float


def draw_timeline(report: Report, png_path: Path) -> None:
    """Draw the report's timeline into `png_path`, replacing it. A report without a timeline gives a picture that says so."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", {"hatch.linewidth": 0.4, "font.size": 9}]):
        buckets = report.get("timeline") or []
        # A Figure of its own, not pyplot's: no display is looked for and nothing has to be closed.
        figure = Figure(figsize=(8.6, 5.8 if buckets else 2.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(_title(report), fontsize=11, fontweight="bold", parse_math=False)
        stun = place_stun(report)
        if not buckets:
            _draw_nothing(figure)
        elif stun is None:
            axes = figure.subplots()
            _draw_buckets(axes, report)
            _label_axes(axes, "time since the migrate request (s)")
        else:
            _draw_with_zoom(figure, report, stun)
        if buckets:
            _draw_legend(figure, report)
            _name_phases(figure, report)
        figure.savefig(png_path, format="png")


def place_stun(report: Report) -> Span | None:
    """Give the stun as it was measured; None when it was not, or when there is nothing to lay it over."""
    stun_s, at_s, buckets = report.get("stun_s"), report.get("stun_at_s"), report.get("timeline")
    if stun_s is None or at_s is None or not buckets or not buckets[0]["t_s"] <= at_s < buckets[-1]["t_s"] + BUCKET_S:
        return None
    return Span(at_s, at_s + stun_s)


def phase_spans(report: Report) -> Iterator[tuple[PhaseLook, Span]]:
    """Give the stretches of the timeline that look alike, in order: by the instants of the phases, or, without them, by buckets."""
    buckets = report["timeline"]
    if begins := report.get("phases"):
        edges_s = [buckets[0]["t_s"], *(one["at_s"] for one in begins), buckets[-1]["t_s"] + BUCKET_S]
        looks = [_BEFORE, *(_look(one["phase"]) for one in begins)]
        for look, start_s, end_s in zip(looks, edges_s, edges_s[1:], strict=False):
            yield look, Span(start_s, max(end_s, start_s))
        return
    for look, group in groupby(buckets, lambda one: _look(one["phase"])):
        run = list(group)
        yield look, Span(run[0]["t_s"], run[-1]["t_s"] + BUCKET_S)


def _look(phase: str) -> PhaseLook:
    return PHASE_LOOKS.get(phase, PhaseLook(phase, "#ffffff", ""))


def _title(report: Report) -> str:
    name = shorten(str((report.get("guest") or {}).get("name") or "guest"), 40, placeholder="...")
    outcome = report.get("outcome") or "outcome unknown"
    mode = f"{report['mode']} migration" if report.get("mode") else "migration"
    total_s, stun_s = report.get("total_s"), report.get("stun_s")
    figures = [f"stun {stun_words(report)}"] if stun_s is not None else []
    figures += [f"{format_duration(total_s)} in all"] if total_s is not None else []
    first = f"{name}: {mode}, {outcome}"
    rest = f"({', '.join(figures)})" if figures else ""
    fits = len(first) + len(rest) < _TITLE_CHARACTERS
    return f"{first} {rest}".strip() if fits else f"{first}\n{rest}"


# -- drawing -------------------------------------------------------------------------------------------------------------


def _draw_nothing(figure: Figure) -> None:
    axes = figure.subplots()
    axes.set_axis_off()
    words = "No timeline: the guest's commits were not counted in this run."
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)


def _draw_with_zoom(figure: Figure, report: Report, stun: Span) -> None:
    from matplotlib.patches import ConnectionPatch

    whole, zoomed = figure.subplots(2, 1, height_ratios=(3, 2))
    window = Span(stun.start_s - ZOOM_S, stun.end_s + ZOOM_S)
    _draw_buckets(whole, report)
    _draw_buckets(zoomed, report, window)
    # The axis of the upper panel is at its top, so that the lines of the magnifying glass cross no text.
    _label_axes(whole, "time since the migrate request (s)")
    whole.xaxis.tick_top()
    whole.xaxis.set_label_position("top")
    _label_axes(zoomed, "time since the stun began (ms)")
    ticks_ms = _zoom_ticks_ms(stun)
    zoomed.set_xticks(
        [stun.start_s + tick / 1000 for tick in ticks_ms],
        [f"{tick:,}".replace("-", "\N{MINUS SIGN}") for tick in ticks_ms],
    )
    for axes in (whole, zoomed):
        _mark_stun(axes, stun, f"stun {stun_words(report)}")
    for edge_s in (stun.start_s, stun.end_s):
        zoomed.axvline(edge_s, color=_STUN, linewidth=1.0, zorder=4)
    for edge_s, side in ((window.start_s, 0), (window.end_s, 1)):
        inside_s = min(max(edge_s, whole.get_xlim()[0]), whole.get_xlim()[1])
        line = ConnectionPatch(
            (inside_s, 0),
            (side, 1),
            whole.get_xaxis_transform(),
            zoomed.transAxes,
            color=_INK,
            linewidth=0.6,
            alpha=0.6,
        )
        line.set_in_layout(False)
        figure.add_artist(line)
    whole.axvspan(window.start_s, window.end_s, facecolor="none", edgecolor=_INK, linewidth=0.6, alpha=0.6, zorder=4)


def _zoom_ticks_ms(stun: Span) -> list[int]:
    length_ms = (stun.end_s - stun.start_s) * 1000
    step_ms = next(
        step for step in (20, 50, 100, 200, 500, 1000, 10**7) if length_ms + 200 <= 14 * step or step == 10**7
    )
    return list(range(-100 // step_ms * step_ms, int(length_ms + 100) + 1, step_ms))


def _draw_buckets(axes: Axes, report: Report, window: Span | None = None) -> None:
    """Draw commits and phases within `window`, all of them when it is None."""
    every = report["timeline"]
    shown = [one for one in every if window is None or window.start_s - BUCKET_S < one["t_s"] < window.end_s] or every
    # Each bucket is a step of its own; a gap between two of them was not measured and stays empty.
    edges_s, heights = [], []
    for one, following in zip_longest(shown, shown[1:]):
        edges_s += [one["t_s"], one["t_s"] + BUCKET_S]
        heights += [one["commits"]] * 2
        if following is not None and following["t_s"] > one["t_s"] + 1.5 * BUCKET_S:
            edges_s.append(one["t_s"] + BUCKET_S)
            heights.append(float("nan"))
    axes.fill_between(edges_s, heights, facecolor=_COMMITS, edgecolor=_INK, linewidth=0.4, zorder=2)
    start_s, end_s = (window.start_s, window.end_s) if window else (edges_s[0], edges_s[-1])
    axes.set_xlim(start_s, end_s)
    before_per_s = (report.get("guest_rate") or {}).get("before_per_s") or 0
    tallest = max(1, before_per_s * BUCKET_S, *(one["commits"] for one in shown))
    axes.set_ylim(0, tallest * _HEADROOM)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.1 * tallest])
    _shade(axes, report)
    if before_per_s:
        axes.axhline(before_per_s * BUCKET_S, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)


def _shade(axes: Axes, report: Report) -> None:
    for look, span in phase_spans(report):
        axes.axvspan(
            span.start_s, span.end_s, facecolor=look.fill, edgecolor=_HATCH, hatch=look.hatch, linewidth=0, zorder=0
        )


def shade_phases(axes: Axes, report: Report) -> list[Patch]:
    """Shade the phases behind any picture over the time of a migration; gives what its legend says of them."""
    _shade(axes, report)
    return _phase_patches(report)


def _phase_patches(report: Report) -> list[Patch]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=look.fill, edgecolor=_HATCH, hatch=look.hatch, linewidth=0.4, label=look.label)
        for look in dict.fromkeys(_look(one["phase"]) for one in report["timeline"])
        if look.fill != _BEFORE.fill
    ]


def _label_axes(axes: Axes, time_label: str) -> None:
    axes.set_xlabel(time_label)
    axes.set_ylabel("commits per 10 ms")
    axes.yaxis.set_major_formatter(lambda count, _: format_count(count) if count == round(count) else "")
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_linewidth(0.6)


def _mark_stun(axes: Axes, stun: Span, words: str) -> None:
    """Measure a stun out where it is wide enough to carry its length; else point at it from the emptier side."""
    in_row: dict[str, Any] = {
        "xycoords": axes.get_xaxis_transform(), "va": "center", "color": _STUN, "fontweight": "bold", "bbox": _PAPER, "zorder": 6,
    }  # fmt: skip
    arrow: dict[str, Any] = {"color": _STUN, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    left_s, right_s = axes.get_xlim()
    middle_s = (stun.start_s + stun.end_s) / 2
    if stun.end_s - stun.start_s > _WIDE_SHARE * (right_s - left_s):
        ends = (stun.start_s, _STUN_ROW), (stun.end_s, _STUN_ROW)
        both_ways = {"arrowstyle": "<|-|>", **arrow}
        axes.annotate("", *ends, xycoords=in_row["xycoords"], textcoords=in_row["xycoords"], arrowprops=both_ways)
        axes.annotate(words, (middle_s, _STUN_ROW), ha="center", **in_row)
        return
    on_the_left = middle_s > (left_s + right_s) / 2
    edge_s, away_points, side = (stun.start_s, -26, "right") if on_the_left else (stun.end_s, 26, "left")
    pointer = {"arrowstyle": "-|>", **arrow}
    away: dict[str, Any] = {"xytext": (away_points, 0), "textcoords": "offset points", "ha": side}
    axes.annotate(words, (edge_s, _STUN_ROW), arrowprops=pointer, **away, **in_row)


def _draw_legend(figure: Figure, report: Report) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [*_phase_patches(report)]
    handles.append(Patch(facecolor=_COMMITS, edgecolor=_INK, linewidth=0.4, label="commits"))
    if (report.get("guest_rate") or {}).get("before_per_s"):
        handles.append(Line2D([], [], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), label="rate before"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def _name_phases(figure: Figure, report: Report) -> None:
    """Write the names of the phases into every panel, where they are wide enough; the legend has them all."""
    # Widths in pixels are known only once the layout is: so the names come last, and have no part in it.
    figure.draw_without_rendering()
    for axes in figure.axes:
        left_s, right_s = axes.get_xlim()
        for look, span in phase_spans(report):
            edges_s = min(max(span.start_s, left_s), right_s), max(min(span.end_s, right_s), left_s)
            left_px, right_px = (axes.transData.transform((edge_s, 0))[0] for edge_s in edges_s)
            name = axes.text(
                sum(edges_s) / 2, 0.98, look.label, ha="center", va="top", transform=axes.get_xaxis_transform(),
                fontsize=8, zorder=5, parse_math=False, bbox=_PAPER, in_layout=False,
            )  # fmt: skip
            if name.get_window_extent().width + _MARGIN_PX > right_px - left_px:
                name.remove()
