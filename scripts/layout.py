"""How what a person reads is laid out, for 80 to 100 columns: sections of names, figures, and faint words of what each counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: Wider lines are harder to read than shorter ones are to wrap.
MAX_WIDTH_COLUMNS = 100
NAME_COLUMNS = 19
_BAR_COLUMNS = 28
_FIGURE_COLUMNS = 18


def bar(share: float, console: Console) -> str:
    """Draw a bar; a share above zero has at least its thinnest stroke, and one above all of it is drawn as all."""
    share = min(share, 1.0)
    if console.options.ascii_only:
        return "#" * max(round(share * _BAR_COLUMNS), share > 0)
    eighths = max(round(share * _BAR_COLUMNS * 8), share > 0)
    whole, rest = divmod(eighths, 8)
    return "\N{FULL BLOCK}" * whole + (chr(0x2590 - rest) if rest else "")


def grid(justify: Literal["left", "right"], *headers: str) -> Table:
    """Make a table without lines; its first columns have these headers."""
    table = Table(box=None, show_header=bool(headers), header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, justify=justify)
    return table


def pairs(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Lay out names and words that may wrap."""
    table = grid("left")
    table.add_column(min_width=NAME_COLUMNS)
    table.add_column()
    for name, words in rows:
        table.add_row(Text(name), Text(words))
    return indented(table)


def triples(rows: Iterable[tuple[str, str, str]]) -> RenderableType:
    """Lay out names, figures and, faintly, what each figure counts."""
    table = grid("left")
    table.add_column(min_width=NAME_COLUMNS)
    table.add_column(min_width=_FIGURE_COLUMNS)
    table.add_column(style="dim")
    for name, figure, note in rows:
        table.add_row(Text(name), Text(figure), Text(note))
    return indented(table)


def indented(renderable: RenderableType) -> Padding:
    """Move it two columns to the right."""
    return Padding(renderable, (0, 0, 0, 2))


def section(console: Console, title: str, *body: RenderableType) -> None:
    """Print an empty line, a title and what belongs to it."""
    print_all(console, Text(), Text(title, style="bold"), *body)


def print_all(console: Console, *renderables: RenderableType) -> None:
    """Print one behind the other, no wider than `MAX_WIDTH_COLUMNS`."""
    for renderable in renderables:
        console.print(renderable, width=min(console.width, MAX_WIDTH_COLUMNS), highlight=False)
