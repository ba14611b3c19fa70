"""What the end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.namespaces import Namespaces, two_namespaces
from tests.e2e.place import Place, places


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A runtime and temporary directory of the test's own, and the list of what is left in them.

    After `tmp_path`, which pytest makes in the temporary directory that it finds.
    """
    yield from places(monkeypatch)


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Two hosts with a link between them."""
    with two_namespaces() as pair:
        yield pair
