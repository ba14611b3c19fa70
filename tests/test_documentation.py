"""What README.md and docs/ say: every command and option exists, every link leads somewhere, every example is what is tested.

That the commands do what they should is shown by running them: tests/e2e/test_documentation.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from pagefire.scripts.cli import app
from pagefire.scripts.metrics import MOVED
from tests.documentation import KINDS, PAGES, ROOT, Block, blocks, inline_commands, pagefire_command

COMMAND = typer.main.get_command(app)


def options_of(command: Any) -> set[str]:
    """Give the options of a command, and of those below it."""
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for one in getattr(command, "commands", {}).values():
        options |= options_of(one)
    return options | {"--help"}


OPTIONS = {name: options_of(command) for name, command in COMMAND.commands.items()}  # type: ignore[attr-defined]
EVERY_OPTION = set().union(*OPTIONS.values())
#: Options of the project's scripts, and of others' commands.
OTHERS = {"--quick", "--silent", "--fail", "--nthreads", "--resources"}
MAKEFILE = (ROOT / "Makefile").read_text()
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def known(line: str) -> None:
    """Check that a command of pagefire exists, and has the options that it is given."""
    if (found := pagefire_command(line)) is None:
        return
    command, options = found
    assert command in OPTIONS, line
    assert set(options) <= OPTIONS[command], (line, set(options) - OPTIONS[command])


def test_every_block_says_how_it_is_tested() -> None:
    for block in blocks():
        assert block.language in ("sh", "python", "toml", "text"), (block.page.name, block.text)
        assert block.kind in KINDS or block.language == "text", (block.page.name, block.text)
    names = [(block.kind, block.name) for block in blocks() if block.kind not in (None, "two hosts")]
    assert len(names) == len(set(names))
    assert {kind for kind, _ in names} >= {"run", "terminals", "make", "file"}


def test_there_are_no_blocks_that_are_not_looked_at() -> None:
    """By four spaces a block would escape the tests."""
    for page in PAGES:
        outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"\n\n    \S", outside), page.name
        for line in outside.splitlines():
            assert line.count("`") % 2 == 0, (page.name, line)


@pytest.mark.parametrize("block", [block for block in blocks() if block.language == "sh"], ids=lambda block: block.name)
def test_commands_in_blocks_exist_with_their_options(block: Block) -> None:
    for line in block.commands:
        known(line)
        if (target := re.match(r"make (\w+)", line)) is not None:
            assert re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE), line


def test_commands_in_text_exist_with_their_options() -> None:
    seen = 0
    for page, piece in inline_commands():
        known(piece)
        if (target := re.match(r"make (\w+)", piece)) is not None:
            assert re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE), (page.name, piece)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", piece):
            seen += 1
            assert option in EVERY_OPTION | OTHERS, (page.name, piece)
    assert seen > 50


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        assert path.exists(), (page.name, target)
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("block", blocks("file"), ids=lambda block: block.name)
def test_examples_are_the_tested_ones(block: Block) -> None:
    code = (ROOT / block.name).read_text()
    assert code.split('"""', 2)[2].strip() == block.text.strip()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 360


def test_every_metric_is_in_the_table() -> None:
    table = (ROOT / "docs" / "watching.md").read_text()
    for name, _ in MOVED.values():
        assert f"{name}_total" in table or f"`...{name.removeprefix('pagefire_migration')}_total`" in table, name
