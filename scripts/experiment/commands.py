"""`pagefire experiment`: run a scenario, list those that come with pagefire; and `pagefire report`, the page of its results."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pagefire.protocol.errors import FeatureMissing, UsageError
from pagefire.protocol.units import format_duration

if TYPE_CHECKING:
    from pagefire.scripts.experiment.scenario import Scenario

app = typer.Typer(help="Run an experiment: many migrations, one scenario, a folder of results.", no_args_is_help=True)
_screen = Console(stderr=True, highlight=False)

Json = dict[str, Any]

ALL = "all"
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Run what has PARAMETER=VALUE, or the migration of a key, alone. Repeatable."),
]


@app.command()
def run(
    scenario: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME|all", help="A scenario's file, or the name of one of `pagefire experiment list`."
        ),
    ],
    results: Annotated[
        Path | None,
        typer.Option(
            "--results", help="Folder of the results; what is there already is not run again \\[default: results/NAME]."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The scenario's short form: to see that it works, not for figures.")
    ] = False,
    only: Only = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Address of a Dask scheduler, whose workers make the migrations.")
    ] = None,
) -> None:
    """Make the migrations of an experiment that its folder does not have yet."""
    from pagefire.scripts.experiment import catalogue
    from pagefire.scripts.experiment.runner import require_sound

    if scenario != ALL:
        loaded = catalogue.load(scenario, quick=quick)
        folder = results or default_folder(loaded)
        lines = _run_one(loaded, scenario, folder, only or [], scheduler)
        require_sound(lines, folder)
        return
    if only:
        raise UsageError(
            "--only does not go with `all`", "each experiment has parameters of its own", "name the experiment"
        )
    root = results or Path("results") / ("catalogue-quick" if quick else "catalogue")
    began_s, left_out, made = time.monotonic(), list[str](), list[tuple[Path, list[Json]]]()
    for name in catalogue.NAMES:
        try:
            made.append((root / name, _run_one(catalogue.load(name, quick=quick), name, root / name, [], scheduler)))
        except FeatureMissing as missing:
            left_out.append(name)
            _screen.print(f"Left out: {name}: {missing}", style="bold", soft_wrap=True)
    _screen.print(
        f"{len(made)} of {len(catalogue.NAMES)} experiments in {format_duration(time.monotonic() - began_s)}"
        + "".join(f"; left out: {name}" for name in left_out)
        + f". Figures: pagefire report {root}",
        soft_wrap=True,
    )
    for folder, lines in made:
        require_sound(lines, folder)


def default_folder(scenario: Scenario) -> Path:
    """Give where results go unless it is said: the same for the same scenario, so that running it again goes on."""
    return Path("results") / (f"{scenario.name}-quick" if scenario.quick else scenario.name)


def _run_one(scenario: Scenario, argument: str, folder: Path, only: list[str], scheduler: str | None) -> list[Json]:
    from pagefire.scripts.experiment.runner import outcome_words, run_experiment

    words = [
        "pagefire",
        "experiment",
        "run",
        argument,
        *(["--quick"] if scenario.quick else []),
        "--results",
        str(folder),
    ]
    command = shlex.join(words)
    _screen.print(f"{scenario.title} ({scenario.name}{', quick' if scenario.quick else ''})", style="bold")
    if scenario.question:
        _screen.print(f"  {scenario.question}", style="dim", soft_wrap=True)
    lines = run_experiment(scenario, argument, folder, only, command, scheduler, _screen)
    _screen.print(
        f"  {len(lines)} migrations in {folder}: {outcome_words(lines)}. Figures: pagefire report {folder}",
        soft_wrap=True,
    )
    return lines


@app.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this one's file, to begin one's own with.")
    ] = None,
) -> None:
    """List the experiments that come with pagefire, and the question that each answers."""
    from pagefire.scripts.experiment import catalogue
    from pagefire.scripts.experiment.sweep import cases_of, tasks_of

    if name is not None:
        print(catalogue.text_of(name), end="")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("question")
    for heading in ("cases", "migrations", "quick"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in catalogue.NAMES:
        whole, quick = (catalogue.load(one, quick=quick) for quick in (False, True))
        counts = (len(cases_of(whole)), len(tasks_of(whole)), len(tasks_of(quick)))
        table.add_row(one, whole.question, *(str(count) for count in counts))
    Console(highlight=False).print(table)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A results folder, or one that holds several.")],
    page: Annotated[
        Path | None, typer.Option("--page", help="Where the page goes \\[default: report.html in the folder].")
    ] = None,
) -> None:
    """Write the page of an experiment's results: every figure, to look into and as a picture, in one file that needs no network."""
    from pagefire.scripts.figures.report import write_report

    written = write_report(folder, page)
    _screen.print("Report: " + ", ".join(str(path) for path in written), soft_wrap=True)


def add_experiments(commands: typer.Typer) -> None:
    """Give the command line its commands `experiment` and `report`."""
    commands.add_typer(app, name="experiment")
    commands.command()(report)
