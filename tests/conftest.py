"""For every test: one other process that uses guest memory, and fewer hypothesis examples in the inner loop (`make quick`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from pagefire.guest_workload.linux import memfd
from tests.support.memory import fresh
from tests.support.memory_user import MemoryUser
from tests.support.secured import KeyRing

settings.register_profile("quick", max_examples=20, deadline=None)

MemoryMaker = Callable[[int], memfd.Mapping]


@pytest.fixture(scope="session")
def user() -> Iterator[MemoryUser]:
    """A process that uses guest memory on command; each test maps memory of its own."""
    with MemoryUser() as one:
        yield one


@pytest.fixture(scope="session", autouse=True)
def no_keys_by_default() -> Iterator[None]:
    """Whoever runs the tests may have keys: they are none of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAGEFIRE_KEYS", "/nonexistent")
        yield


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    """Keys of hosts that know each other, and of some that do not."""
    return KeyRing.made(tmp_path_factory.mktemp("keys"))


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
