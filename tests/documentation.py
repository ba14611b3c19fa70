"""The commands of README.md and docs/: found, and told apart by what stands above each block.

    <!-- run: NAME -->                    run as it stands
    <!-- terminals: NAME -->              a line a terminal: daemons until the end, everything else to its end, in order
    <!-- make: TARGET -->                 a target of the Makefile, whose recipe is looked at
    <!-- two hosts: NAME -->              here, there: a line a terminal, on that host; any other name: looked at
    <!-- file: PATH -->                   Python; the same as that file, but for its docstring
    <!-- write: NAME -->                  a file that the page's `run` blocks find under that name

A block of commands without such a line is an error. Commands inside of text and tables have their options looked at.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
KINDS = ("run", "terminals", "make", "two hosts", "file", "write")

_BLOCK = re.compile(r"(?:^<!-- ([a-z ]+): (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"(?:^|\s)(?:\.venv/bin/)?pagefire\s+([a-z]+)((?:\s+\S+)*)")


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a page; `kind` is None where nothing stands above it."""

    page: Path
    kind: str | None
    name: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The block's lines, those that end in a backslash put together."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(kind: str | None = None) -> list[Block]:
    """Give the blocks of all pages, or those of one kind."""
    found = [Block(page, *match) for page in PAGES for match in (_matches(page))]
    return [block for block in found if kind is None or block.kind == kind]


def _matches(page: Path) -> Iterator[tuple[str | None, str, str, str]]:
    for kind, name, language, text in _BLOCK.findall(page.read_text()):
        yield kind or None, name, language, text


def inline_commands() -> Iterator[tuple[Path, str]]:
    """Give the pieces of code inside of text."""
    for page in PAGES:
        for piece in _INLINE.findall(_BLOCK.sub("", page.read_text())):
            yield page, piece.replace("\\|", "|")


def pagefire_command(line: str) -> tuple[str, list[str]] | None:
    """Give the command of pagefire in a line and the options that it has; None where there is none."""
    found = _COMMAND.search(line)
    if found is None:
        return None
    try:
        words = shlex.split(found[2])
    except ValueError:
        words = found[2].split()
    return found[1], [word.partition("=")[0] for word in words if word.startswith("--")]
