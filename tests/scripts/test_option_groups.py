"""Options that stand once and serve several commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from pagefire.scripts.option_groups import takes_groups


@dataclass(frozen=True)
class Fruit:
    apples: Annotated[int, typer.Option("--apples", help="How many apples.")] = 3
    sort: Annotated[str, typer.Option("--sort")] = "russet"
    ripe: Annotated[bool, typer.Option("--ripe/--green")] = True


@dataclass(frozen=True)
class Basket:
    size: Annotated[str | None, typer.Option("--size")] = None


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @takes_groups
    def pick(
        to: Annotated[str, typer.Option("--to")],
        fruit: Fruit,
        basket: Basket,
        name: Annotated[str | None, typer.Argument()] = None,
    ) -> None:
        """Pick fruit."""
        print(to, fruit, basket, name)

    return app


def test_each_field_is_an_option(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--to", "a", "--apples", "5", "--green", "--size", "big", "pomona"])
    assert result.output == "a Fruit(apples=5, sort='russet', ripe=False) Basket(size='big') pomona\n"


def test_defaults_are_the_fields(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["--to", "a"]).output == f"a {Fruit()} {Basket()} None\n"


def test_help_tells_of_them(app: typer.Typer) -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    for expected in ("--apples", "How many apples.", "--green", "--size", "Pick fruit."):
        assert expected in output


def test_a_wrong_value_is_a_usage_error(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--to", "a", "--apples", "many"])
    assert result.exit_code == 2
    assert "--apples" in result.output
