"""Running an experiment: what is not in its folder yet is made, line after line, with a time estimate; then it is said how it went.

Everything that can be refused is refused before the first migration. What is found in the folder is not made again, so running the
same command again goes on after whatever ended it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pagefire.protocol.errors import FeatureMissing, PagefireError, UsageError
from pagefire.protocol.units import format_duration
from pagefire.scripts.experiment.cluster import Cluster
from pagefire.scripts.experiment.estimate import remaining_s
from pagefire.scripts.experiment.host import describe_host
from pagefire.scripts.experiment.leftovers import swept
from pagefire.scripts.experiment.parameters import parameter, words_of
from pagefire.scripts.experiment.scenario import Scenario
from pagefire.scripts.experiment.store import Store, opened
from pagefire.scripts.experiment.sweep import Task, tasks_of
from pagefire.scripts.experiment.work import Work, do, require_possible

Json = dict[str, Any]
#: Makes migrations and gives their lines as they come.
Make = Callable[[Sequence[Work]], Iterator[Json]]


def run_experiment(
    scenario: Scenario,
    argument: str,
    folder: Path,
    only: Sequence[str],
    command: str,
    scheduler: str | None,
    console: Console,
) -> list[Json]:
    """Make every migration that is chosen by `only` and not in `folder` yet; gives all lines of the folder.

    `argument` is what names the scenario on the command line, `command` the whole of that. Raises UsageError, FeatureMissing before
    anything is run; Cancelled when a person interrupts: what is finished is kept.
    """
    chosen = choose(tasks_of(scenario), only)
    experiment = experiment_of(scenario, command)
    with opened(folder, experiment) as store:
        works = [work_of(scenario, argument, task) for task in chosen if task.key not in store.keys]
        try:
            for work in {work.task.case.digest: work for work in works}.values():
                require_possible(work)
        except FeatureMissing as missing:
            store.describe({**experiment, "left_out": str(missing)})
            raise
        if store.lines and works:
            console.print(
                f"  {folder} has {len(store.lines)} migrations, {len(works)} are left to make", soft_wrap=True
            )
        with _maker(scheduler, console) as (make, at_once):
            if scheduler is None:
                with swept(folder):
                    _make(make, at_once, works, store, console)
            else:
                _make(make, at_once, works, store, console)
        return store.lines


def work_of(scenario: Scenario, argument: str, task: Task) -> Work:
    """Give what it takes to make one migration of a scenario."""
    return Work(task, scenario.name, argument, scenario.quick, scenario.warmup, scenario.warmup_migrations)


def experiment_of(scenario: Scenario, command: str) -> Json:
    """Give what experiment.json holds."""
    tasks = tasks_of(scenario)
    return {
        "name": scenario.name,
        "title": scenario.title,
        "question": scenario.question,
        "command": command,
        "created_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "swept": list(scenario.swept),
        "migrations": len(tasks),
        "scenario": scenario.as_json(),
        "figures": [figure.as_json() for figure in scenario.figures],
        "host": describe_host(),
    }


def choose(tasks: Sequence[Task], only: Sequence[str]) -> list[Task]:
    """Give the tasks that every one of `only` admits: a key, or PARAMETER=VALUE. Raises UsageError for one that admits none."""
    chosen = list(tasks)
    for one in only:
        name, equals, value = one.partition("=")
        if equals:
            parameter(name, "--only")
            chosen = [task for task in chosen if name in task.case.values and words_of(task.case.values[name]) == value]
        else:
            chosen = [task for task in chosen if task.key == one]
        if not chosen:
            labels = sorted({task.case.label for task in tasks})
            raise UsageError(
                f"--only {one} leaves nothing",
                f"the cases are: {'; '.join(labels)}",
                "name a parameter=value of these, or a key",
            )
    return chosen


@contextlib.contextmanager
def _maker(scheduler: str | None, console: Console) -> Iterator[tuple[Make, int]]:
    if scheduler is None:
        yield (lambda works: (do(work) for work in works)), 1
        return
    with Cluster(scheduler) as cluster:
        places = f"{len(cluster.workers)} workers, on {cluster.machines} of its machines"
        console.print(f"  {scheduler} has {places}; a migration has its machine to itself", soft_wrap=True)
        yield cluster.run, cluster.machines


def _make(make: Make, at_once: int, works: Sequence[Work], store: Store, console: Console) -> None:
    pending = {work.task.key: work for work in works}
    with Progress(
        TextColumn("  {task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    ) as progress:  # fmt: skip
        shown = progress.add_task(_left(store, pending.values(), at_once), total=len(works))
        for line in make(works):
            store.add(line)
            work = pending.pop(line["key"])
            left = _left(store, pending.values(), at_once)
            progress.update(shown, advance=1, description=left)
            after = f"; {left}" if pending else ""
            console.print(f"  {len(works) - len(pending)}/{len(works)} {_words(work, line)}{after}", soft_wrap=True)


def _left(store: Store, pending: Iterable[Work], at_once: int) -> str:
    estimate_s = remaining_s(store.lines, [work.task for work in pending], at_once)
    return "no estimate yet" if estimate_s is None else f"about {format_duration(round(estimate_s))} left"


def _words(work: Work, line: Json) -> str:
    """Say in a line how a migration went."""
    task, report = work.task, line["report"] or {}
    times = f", repetition {task.repetition + 1}" if task.repetition else ""
    seed = f", seed {task.seed}" if task.seed != 1 else ""
    figures = [
        f"{words} {format_duration(report[name])}"
        for name, words in (("stun_s", "stun"), ("total_s", "total"))
        if report.get(name)
    ]
    if line["fault"] is not None:
        figures.append(
            f"the {line['fault']['owner']} has the guest after {format_duration(line['fault']['settled_s'])}"
        )
    if line["error"] is not None:
        figures.append(line["error"]["what"])
    return f"{task.case.label}{times}{seed}: {line['outcome']}" + "".join(f", {figure}" for figure in figures)


def outcome_words(lines: Sequence[Json]) -> str:
    """Say how many migrations ended how."""
    counted = Counter(line["outcome"] for line in lines)
    return ", ".join(f"{count} {outcome}" for outcome, count in counted.items()) or "none"


def require_sound(lines: Sequence[Json], folder: Path) -> None:
    """Raise PagefireError where a migration failed to which nothing was done that may make it fail."""
    failed = [line for line in lines if line["outcome"] == "failed" and line["fault"] is None]
    if failed:
        first = failed[0]
        raise PagefireError(
            f"{len(failed)} of {len(lines)} migrations in {folder} failed",
            f"the first of them, {first['key']}: {first['error']['what']}: {first['error']['why']}",
            f"run it alone: {first['command']}",
        )
