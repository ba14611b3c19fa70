"""Compiled code of these tests goes where a guest's own goes; that must be settled before Numba is first imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from pagefire.guest_workload import jit_cache

if "numba" not in sys.modules:
    jit_cache.use()

from tests.guest_workload.machine import Machine

MachineMaker = Callable[..., Machine]


@pytest.fixture
def machine() -> Iterator[MachineMaker]:
    """Make machines that are ended with the test."""
    made: list[Machine] = []

    def make(workload: str, vcpus: int, other: Machine | None = None, **options: int) -> Machine:
        made.append(Machine(workload, vcpus, other=other, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
