"""What a destination daemon waits for, and refuses, at the switchover. The test itself is the source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from pagefire.guest_workload.control_block import REGISTERS
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.bitmap import encode_bitmap
from pagefire.protocol.errors import Cancelled, PeerRefused
from pagefire.protocol.messages import Failure, Ready, RoundReceived, Switchover
from pagefire.protocol.pages import PageSet
from pagefire.source_host.link import Link
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.tracking import Collected
from tests.conftest import MemoryMaker
from tests.e2e.host_pair import HostPair, guest_arguments
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

MEMORY_BYTES = 64 << 20
NONE = PageSet.empty()


@pytest.fixture(scope="module")
def pair() -> Iterator[HostPair]:
    need_pagemap_scan()
    with HostPair(guest_arguments(vcpus=1), ["--max-guest-memory", "128MiB", "--link-timeout", "1s"]) as one:
        yield one


@asynccontextmanager
async def linked(pair: HostPair, memory: Mapping) -> AsyncIterator[Link]:
    """Give the connections of a migration whose destination has a shell guest and one round; nothing is left there afterwards."""
    config = GuestConfig("fake0", MEMORY_BYTES, MEMORY_BYTES, MEMORY_BYTES, 1, "idle")
    link = Link(MigrationOptions(f"127.0.0.1:{pair.port}"), config, memory)
    try:
        await link.open()
        await link.end_round(link.begin_round(Collected(PageSet.span(0, 64), NONE)))
        yield link
    finally:
        await link.abort(Cancelled("the test is over"), "cancelled")
        await asyncio.to_thread(pair.nothing_at_destination)


async def switch_over(link: Link, last_round: int, missing: PageSet = NONE, hot: PageSet = NONE) -> None:
    registers = np.zeros(REGISTERS, "<u8").tobytes()
    bitmap = encode_bitmap("raw", missing, MEMORY_BYTES // 4096)
    message = Switchover(len(registers), "raw", missing.pages, [0], last_round, hot, 0, 0)
    await link.control.send(message, registers + bitmap)


async def test_ready_waits_for_the_marker_of_the_last_round(pair: HostPair, make_memory: MemoryMaker) -> None:
    memory = make_memory(MEMORY_BYTES // 4096)
    memory.array[:] = 1
    async with linked(pair, memory) as link:
        # The round has begun before the switchover is sent, its marker comes long after.
        await switch_over(link, last_round=2, missing=PageSet.span(100, 200))
        answer = asyncio.create_task(link.control.receive())
        done, _ = await asyncio.wait({answer}, timeout=0.3)
        assert not done, f"{answer.result().message} without the round's marker"
        begun = link.begin_round(Collected(PageSet.span(0, 4), NONE))
        assert (await answer).message == RoundReceived(begun.number)
        ready = await link.control.expect(Ready, 10.0)
        assert ready.drain_s > 0.25


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_source_that_is_gone_is_not_waited_for(pair: HostPair, make_memory: MemoryMaker, says_so: bool) -> None:
    # Its last pages are lost on their way, and nothing tells of a connection's end: a link that stalls.
    async with linked(pair, make_memory(MEMORY_BYTES // 4096)) as link:
        await switch_over(link, last_round=2)
        if says_so:
            await link.control.send(Failure("cancelled", "the test gives up", "", ""))
        else:
            assert link._alive is not None
            link._alive.cancel()
        await asyncio.to_thread(pair.nothing_at_destination)


@pytest.mark.parametrize("last_round", [0, 3])
async def test_another_last_round_is_refused(pair: HostPair, make_memory: MemoryMaker, last_round: int) -> None:
    async with linked(pair, make_memory(MEMORY_BYTES // 4096)) as link:
        await switch_over(link, last_round)
        with pytest.raises(PeerRefused, match="switches over before its pages have arrived"):
            await link.control.expect(Ready, 10.0)


async def test_a_hot_page_that_the_bitmap_names_is_refused(pair: HostPair, make_memory: MemoryMaker) -> None:
    async with linked(pair, make_memory(MEMORY_BYTES // 4096)) as link:
        await switch_over(link, 1, missing=PageSet.span(5, 9), hot=PageSet.span(8, 10))
        with pytest.raises(PeerRefused, match="the bitmap names pages that the switchover calls present"):
            await link.control.expect(Ready, 10.0)
