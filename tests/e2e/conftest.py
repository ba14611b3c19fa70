"""What the end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.place import Place, places


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A runtime and temporary directory of the test's own, and the list of what is left in them."""
    yield from places(monkeypatch)
