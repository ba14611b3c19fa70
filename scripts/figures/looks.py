"""How series are told apart: by colour, line, marker and hatching together, for a grey print and a colour-blind reader.

Colours are of the palette by Okabe and Ito, in an order in which neighbours differ in lightness. The last colours are for phases:
those of the single timeline (scripts/timeline.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """`dash`, `marker` and `hatch` by the names of the two libraries: matplotlib's first, plotly's second."""

    color: str
    dash: tuple[str, str]
    marker: tuple[str, str]
    hatch: tuple[str, str]


LOOKS = (
    Look("#0072B2", ("-", "solid"), ("o", "circle"), ("", "")),
    Look("#E69F00", ("--", "dash"), ("s", "square"), ("////", "/")),
    Look("#000000", (":", "dot"), ("^", "triangle-up"), ("....", ".")),
    Look("#009E73", ("-.", "dashdot"), ("D", "diamond"), ("\\\\\\\\", "\\")),
    Look("#56B4E9", ("-", "solid"), ("v", "triangle-down"), ("xxxx", "x")),
    Look("#D55E00", ("--", "longdash"), ("P", "cross"), ("----", "-")),
    Look("#CC79A7", (":", "longdashdot"), ("X", "x"), ("||||", "|")),
)
INK, GRID, EMPTY = "#22384f", "#c8c8c8", "#e9e9e9"
#: Colour scale of a heat map, of both libraries: its lightness grows throughout, so that it is right in grey.
SCALE = "cividis"
COMMITS = "#44586d"


def look(number: int) -> Look:
    """Give a look; after the last the first comes again."""
    return LOOKS[number % len(LOOKS)]
