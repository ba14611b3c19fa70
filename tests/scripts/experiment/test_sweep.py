"""From a scenario to its migrations: which, in what order, under which keys; and how long they are still to take."""

from __future__ import annotations

import dataclasses

import pytest

from pagefire.protocol.errors import UsageError
from pagefire.scripts.experiment.estimate import remaining_s
from pagefire.scripts.experiment.runner import choose
from pagefire.scripts.experiment.scenario import parse_scenario
from pagefire.scripts.experiment.sweep import cases_of, tasks_of

PRODUCT = 'repetitions = 3\nseeds = [1, 2]\n[guest]\nmemory = "64MiB"\n[sweep]\nmode = ["precopy", "hybrid"]\nvcpus = [1, 2]\n'
UNION = '[[sweep]]\nmemory = ["64MiB", "128MiB"]\nvcpus = 2\n[[sweep]]\nmemory = "64MiB"\nvcpus = [1, 2]\n'


def scenario(text: str = PRODUCT):  # type: ignore[no-untyped-def]
    return parse_scenario(text, "s", "s.toml")


def test_a_sweep_is_every_combination() -> None:
    cases = cases_of(scenario())
    assert [case.label for case in cases] == [
        "mode precopy, vcpus 1", "mode precopy, vcpus 2", "mode hybrid, vcpus 1", "mode hybrid, vcpus 2",
    ]  # fmt: skip
    assert all(case.values["memory"] == "64MiB" for case in cases)


def test_several_sweeps_follow_each_other_and_what_they_share_is_there_once() -> None:
    assert [case.label for case in cases_of(scenario(UNION))] == [
        "memory 64MiB, vcpus 2", "memory 128MiB, vcpus 2", "memory 64MiB, vcpus 1",
    ]  # fmt: skip


def test_every_repetition_takes_every_case_once_with_each_seed() -> None:
    tasks = tasks_of(scenario())
    assert len(tasks) == len({task.key for task in tasks}) == 24
    for repetition in range(3):
        turn = tasks[8 * repetition : 8 * repetition + 8]
        assert {task.repetition for task in turn} == {repetition}
        assert len({(task.case.digest, task.seed) for task in turn}) == 8


def test_the_order_differs_between_repetitions_and_is_the_same_each_time() -> None:
    tasks = tasks_of(scenario())
    turns = [[(task.case.digest, task.seed) for task in tasks[at : at + 8]] for at in (0, 8, 16)]
    assert turns[0] != turns[1] != turns[2]
    assert [task.key for task in tasks_of(scenario())] == [task.key for task in tasks]


def test_a_key_is_made_of_parameters_repetition_and_seed_alone() -> None:
    before = {task.key for task in tasks_of(scenario())}
    renamed = dataclasses.replace(scenario(), name="other", title="x", question="y")
    assert {task.key for task in tasks_of(renamed)} == before
    assert {task.key for task in tasks_of(scenario(PRODUCT.replace("repetitions = 3", "repetitions = 4")))} > before
    assert not {task.key for task in tasks_of(scenario(PRODUCT.replace("64MiB", "65MiB")))} & before


def test_a_key_does_not_change_between_versions() -> None:
    """Results that are there would not be found again."""
    assert next(iter(cases_of(scenario()))).digest == "a6a3fe7d7f"


@pytest.mark.parametrize(
    ("only", "count"), [([], 24), (["mode=hybrid"], 12), (["mode=hybrid", "vcpus=2"], 6), (["memory=64MiB"], 24)]
)
def test_only_by_parameter(only: list[str], count: int) -> None:
    assert len(choose(tasks_of(scenario()), only)) == count


def test_only_by_key() -> None:
    tasks = tasks_of(scenario())
    assert choose(tasks, [tasks[5].key]) == [tasks[5]]


@pytest.mark.parametrize("only", ["mode=postcopy", "mdoe=hybrid", "nothing"])
def test_only_that_leaves_nothing_is_refused(only: str) -> None:
    with pytest.raises(UsageError):
        choose(tasks_of(scenario()), [only])


def test_the_estimate_is_by_case_and_by_all_where_a_case_has_not_run() -> None:
    first, second, *rest = tasks_of(scenario("repetitions = 2\n[sweep]\nvcpus = [1, 2, 4]\n"))
    assert remaining_s([], rest) is None
    lines = [{"key": first.key, "took_s": 2.0}, {"key": second.key, "took_s": 10.0}]
    again = [dataclasses.replace(task, repetition=1) for task in (first, second)]
    assert remaining_s(lines, again) == 12.0
    new = [task for task in rest if task.case.digest not in (first.case.digest, second.case.digest)]
    assert remaining_s(lines, new[:1]) == 6.0
    assert remaining_s(lines, again, at_once=2) == 6.0
    assert remaining_s(lines, []) == 0
