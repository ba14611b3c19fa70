"""What tests of the wires share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pagefire.protocol.transport.wire import Wire
from tests.support.secured import KeyRing, wire_pair


@pytest.fixture(params=["plain", "encrypted"])
def wires(request: pytest.FixtureRequest, ring: KeyRing) -> Iterator[tuple[Wire, Wire]]:
    """Give the source's and the destination's end of a connection, blocking."""
    pair = wire_pair(ring if request.param == "encrypted" else None)
    yield pair
    for wire in pair:
        wire.close()
