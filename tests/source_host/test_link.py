"""What a source hears of a destination that has ended the migration while it was about to say something."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, PeerRefused
from pagefire.protocol.messages import Failure, Foretold
from pagefire.protocol.state import Phase, Role, Side
from pagefire.protocol.transport.frame_stream import FrameStream
from pagefire.protocol.transport.wire import Wire
from pagefire.source_host.link import Link
from pagefire.source_host.options import MigrationOptions
from tests.conftest import MemoryMaker

CONFIG = GuestConfig("guest0", 2 << 20, 2 << 20, 2 << 20, 1, "idle")


def control_streams() -> tuple[FrameStream, FrameStream]:
    """Give both ends of a control connection on which rounds are sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    here = socket.create_connection(listener.getsockname())
    there, _ = listener.accept()
    listener.close()
    streams = (
        FrameStream(Wire(here), Connection(Side.SOURCE, Role.CONTROL)),
        FrameStream(Wire(there), Connection(Side.DESTINATION, Role.CONTROL)),
    )
    for stream in streams:
        stream.connection.phase = Phase.ACTIVE
    return streams


async def say_until_it_fails(link: Link) -> None:
    """What is sent first after a peer has closed is answered by a reset, what follows it fails."""
    for _ in range(50):
        await link.say(Foretold("compacted", 0), bytes(100))
        link.control.connection.phase = Phase.ACTIVE
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("says_why", [True, False])
async def test_who_sends_to_a_peer_that_has_closed_hears_why(make_memory: MemoryMaker, says_why: bool) -> None:
    link = Link(MigrationOptions(to="127.0.0.1:1"), CONFIG, make_memory(512))
    link.control, there = control_streams()
    if says_why:
        await there.send(Failure("cancelled", "the destination is shutting down", "", ""))
    there.close()
    with pytest.raises(PeerRefused if says_why else LinkLost) as raised:
        await say_until_it_fails(link)
    assert ("shutting down" in str(raised.value)) == says_why
    link.control.close()
