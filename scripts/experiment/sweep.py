"""From a scenario to its migrations, in the order in which they run: pure functions.

Every repetition takes all cases once, with each seed, in an order of its own that the scenario's name and the repetition decide: a
machine that drifts hits all cases alike, none always follows the same other, and whoever repeats the experiment has the same order.

A key names one migration for good: it is made of the parameters, the repetition and the seed, and of nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

from pagefire.scripts.experiment.parameters import PARAMETERS, Value, label_of
from pagefire.scripts.experiment.scenario import Scenario

_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Case:
    """`values`: every parameter that is given, in the order of `PARAMETERS`; `swept`: those that tell it from the other cases."""

    values: Mapping[str, Value]
    swept: Mapping[str, Value]

    @property
    def label(self) -> str:
        return label_of(self.swept)

    @property
    def digest(self) -> str:
        """Name the case by its parameters."""
        text = json.dumps(dict(self.values), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True, slots=True)
class Task:
    """One migration that is to be made: a case, which time, and with which seed."""

    case: Case
    repetition: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.case.digest}-r{self.repetition}-s{self.seed}"


def cases_of(scenario: Scenario) -> list[Case]:
    """Give every combination of every sweep, in the order of the file; what two sweeps have in common is there once."""
    cases: dict[str, Case] = {}
    for sweep in scenario.sweeps:
        for combination in itertools.product(*sweep.values()):
            values = {**scenario.fixed, **dict(zip(sweep, combination, strict=True))}
            case = Case(
                {name: values[name] for name in PARAMETERS if name in values},
                {name: values[name] for name in scenario.swept if name in values},
            )
            cases.setdefault(case.digest, case)
    return list(cases.values())


def tasks_of(scenario: Scenario) -> list[Task]:
    """Give every migration of the experiment, in the order in which they run; repetitions count from 0."""
    cases, tasks = cases_of(scenario), list[Task]()
    for repetition in range(scenario.repetitions):
        turn = [Task(case, repetition, seed) for case in cases for seed in scenario.seeds]
        random.Random(f"{scenario.name} {repetition}").shuffle(turn)
        tasks += turn
    return tasks
