"""What `--help` says."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from pagefire.scripts.cli import app

COMMAND = typer.main.get_command(app)
COMMANDS = sorted(COMMAND.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_defaults_in_words_are_shown(name: str) -> None:
    """A bracket is markup to whoever prints it, and vanishes, unless it is escaped."""
    shown = CliRunner().invoke(app, [name, "--help"]).output
    shown = re.sub(r"[\s│]+", " ", shown)
    for parameter in COMMAND.commands[name].params:  # type: ignore[attr-defined]
        for words in re.findall(r"default: [^\]]+", getattr(parameter, "help", None) or ""):
            assert words in shown
