"""What a migration has sent, counted by whoever watches it at any moment."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.connection import Connection
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.state import Phase, Role, Side
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.wire import Wire
from pagefire.source_host.accounting import moved_so_far
from pagefire.source_host.departure import Departure
from pagefire.source_host.link import Link
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.page_stream import PageStream
from tests.conftest import MemoryMaker

CONFIG = GuestConfig("guest0", 2 << 20, 2 << 20, 2 << 20, 1, "idle")


async def test_a_link_counts_once_while_it_is_closed(make_memory: MemoryMaker) -> None:
    memory, options = make_memory(512), MigrationOptions(to="127.0.0.1:1")
    memory.array[: 3 * PAGE_BYTES] = 7
    connection = Connection(Side.SOURCE, Role.PAGES)
    connection.phase = Phase.ACTIVE
    here, there = socket.socketpair()
    link = Link(options, CONFIG, memory)
    link.streams.append(PageStream(Wire(here), connection, memory))
    await link.streams[0].push(lambda stream: stream.send_pages(PageSet.span(0, 3)))
    guest: Any = SimpleNamespace(control=None)
    departure = Departure(guest, options, (b"", b""), Points(), lambda event: None)
    departure.link = link
    counted = [moved_so_far(None, departure, 0)]
    closing = asyncio.create_task(departure.close())
    while not closing.done():
        await asyncio.sleep(0)
        counted.append(moved_so_far(None, departure, 0))
    there.close()
    assert len(counted) > 2
    assert counted[0].pages == 3
    assert set(counted) == {counted[0]}
