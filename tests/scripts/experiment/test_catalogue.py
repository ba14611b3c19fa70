"""The experiments that come with pagefire: every file is a scenario, in both forms, of cases that can be made."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pagefire.protocol.errors import FeatureMissing, UsageError
from pagefire.scripts.cli import app
from pagefire.scripts.experiment import catalogue
from pagefire.scripts.experiment.lab_site import link_of
from pagefire.scripts.experiment.runner import work_of
from pagefire.scripts.experiment.sweep import cases_of, tasks_of

every_name = pytest.mark.parametrize("name", catalogue.NAMES)
#: What a kernel's owner has to allow: named by the error, and left out of `all` by name.
NEEDS = {("vsphere", False): "2 MiB pages"}


@every_name
@pytest.mark.parametrize("quick", [False, True])
def test_every_case_can_be_made(name: str, quick: bool) -> None:
    scenario = catalogue.load(name, quick=quick)
    assert scenario.name == name
    assert scenario.question.endswith("?")
    assert scenario.figures
    tasks = tasks_of(scenario)
    assert len({task.key for task in tasks}) == len(tasks)
    for case in {task.case.digest: task for task in tasks}.values():
        work, lacks = work_of(scenario, name, case), ""
        try:
            link_of(work.job())
        except FeatureMissing as missing:
            lacks = str(missing)
        assert not lacks or NEEDS[name, quick] in lacks


@every_name
def test_figures_are_of_parameters_that_differ(name: str) -> None:
    for quick in (False, True):
        scenario = catalogue.load(name, quick=quick)
        for figure in scenario.figures:
            axes = {figure.x, figure.by} - {""}
            assert axes <= set(scenario.swept), (figure.title, quick)
            admitted = [
                case
                for case in cases_of(scenario)
                if all(case.values.get(key, "default") in values for key, values in figure.where.items())
            ]
            assert admitted, (figure.title, quick)


@every_name
def test_the_short_form_is_short(name: str) -> None:
    assert len(tasks_of(catalogue.load(name, quick=True))) <= 12


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="there is no experiment 'mode': the catalogue has timeline, modes"):
        catalogue.load("mode", quick=False)


def test_the_list() -> None:
    shown = CliRunner().invoke(app, ["experiment", "list"])
    assert shown.exit_code == 0
    for name in catalogue.NAMES:
        assert name in shown.output
    one = CliRunner().invoke(app, ["experiment", "list", "modes"])
    assert one.output == catalogue.text_of("modes")
