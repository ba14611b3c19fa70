"""For every test: one other process that uses guest memory, and fewer hypothesis examples in the inner loop (`make quick`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from pagefire.guest_workload.linux import memfd
from tests.support.memory import fresh
from tests.support.memory_user import MemoryUser

settings.register_profile("quick", max_examples=20, deadline=None)

MemoryMaker = Callable[[int], memfd.Mapping]


@pytest.fixture(scope="session")
def user() -> Iterator[MemoryUser]:
    """A process that uses guest memory on command; each test maps memory of its own."""
    with MemoryUser() as one:
        yield one


@pytest.fixture
def make_memory() -> Iterator[MemoryMaker]:
    """Make memory of so many pages, all holes, that is unmapped with the test."""
    made: list[memfd.Mapping] = []

    def make(pages: int) -> memfd.Mapping:
        made.append(fresh(pages))
        return made[-1]

    yield make
    for memory in made:
        memory.close()
