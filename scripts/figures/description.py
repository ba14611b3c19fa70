"""A figure as it is to be drawn, before anybody draws it: panels of curves, bars, cells and shades, in the units of their axes.

Whoever draws one (interactive.py, picture.py) decides nothing about numbers: medians, spreads, ticks and words stand here already,
and the table under a figure is made of the same rows.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

_LABEL_COLUMNS, _TICKS_COLUMNS, _LEAST_TICK_COLUMNS = 30, 100, 9


@dataclass(frozen=True, slots=True)
class Axis:
    """`label` has the unit. `ticks`: (position, words), None for ticks as they fall. `log`: logarithmic."""

    label: str
    ticks: tuple[tuple[float, str], ...] | None = None
    log: bool = False

    @property
    def label_lines(self) -> str:
        """The label in lines that are short enough to stand beside a panel."""
        return textwrap.fill(self.label, _LABEL_COLUMNS)

    @property
    def by_place(self) -> bool:
        """Whether the ticks are categories, one beside the other."""
        return self.ticks is not None and [place for place, _ in self.ticks] == list(range(len(self.ticks)))

    @property
    def tick_lines(self) -> list[str]:
        """The ticks' words; of categories in lines that are short enough for all to stand under a panel."""
        words = [words for _, words in self.ticks or ()]
        if not self.by_place:
            return words
        columns = max(_TICKS_COLUMNS // max(len(words), 1), _LEAST_TICK_COLUMNS)
        return [textwrap.fill(one, columns, break_long_words=False, break_on_hyphens=False) for one in words]


@dataclass(frozen=True, slots=True)
class Series:
    """Points with their spread, drawn as `form`: line (markers), step, area (filled steps), or bar (grouped at whole x).

    `least` and `largest` are as long as `y` or empty. `look` is the number of a look (looks.py). A y of None is left out.
    """

    name: str
    form: str
    look: int
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    least: tuple[float | None, ...] = ()
    largest: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Cells:
    """A heat map: values by [row][column], None where there is none; the words in each cell; the label of the scale."""

    values: tuple[tuple[float | None, ...], ...]
    words: tuple[tuple[str, ...], ...]
    label: str


@dataclass(frozen=True, slots=True)
class Shade:
    """A phase behind a timeline."""

    label: str
    start: float
    end: float
    fill: str
    hatch: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. `stacked`: bars stand on each other, not beside each other."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    cells: Cells | None = None
    shades: tuple[Shade, ...] = ()
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table under a figure: of `runs` migrations of a case, in `measured` of which the quantity was measured.

    median, least and largest are words with their unit, empty where nothing was measured.
    """

    case: str
    runs: int
    measured: int
    median: str
    least: str
    largest: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: `name` for files, `counts` what its quantity is, panels (none: nothing was measured), and the table's rows."""

    name: str
    title: str
    counts: str
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...] = field(default=())
