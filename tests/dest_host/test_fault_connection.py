"""Both ends of a fault connection, each with its own thread: what is asked for arrives, plain, summed and encrypted."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest

from pagefire.dest_host.fault_connection import FaultConnection
from pagefire.dest_host.intake import Intake
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.publishing import Publisher
from pagefire.protocol.errors import LinkLost, PeerRefused
from pagefire.protocol.messages import Failure
from pagefire.protocol.pages import PageSet
from pagefire.source_host.fault_stream import FaultStream
from pagefire.source_host.postcopy import Remaining
from tests.conftest import MemoryMaker
from tests.support.memory import contents
from tests.support.page_link import fault_ends
from tests.support.secured import KeyRing
from tests.support.waiting import PATIENCE_S, eventually

PAGES = 1 << 11


@pytest.mark.parametrize("how", ["plain", "summed", "encrypted"])
async def test_everything_that_is_asked_for_arrives(make_memory: MemoryMaker, ring: KeyRing, how: str) -> None:
    """One thread asks while another takes: of an encrypted connection both use the same OpenSSL object."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    here.array[:] = np.random.default_rng(1).integers(0, 256, here.size_bytes, np.uint8)
    here.array.reshape(PAGES, -1)[::5] = 0
    ours, (wire, connection) = fault_ends(ring if how == "encrypted" else None, checksum=how == "summed")
    ledger, everything = Ledger(PAGES), PageSet.span(0, PAGES)
    intake = Intake(ledger, Publisher(-1, 0, 0), PAGES)
    complete, loop = asyncio.Event(), asyncio.get_running_loop()
    intake.resume_begins(everything, lambda: loop.call_soon_threadsafe(complete.set))
    source, ends = FaultStream(*ours, here), list[BaseException]()
    fetched = FaultConnection(wire, connection, Landing(wire, there, ledger), intake, ends.append)
    fetched.start()
    if os.geteuid() == 0:
        for thread in (source._thread, fetched._thread):
            assert thread.native_id
            await eventually(lambda thread=thread: os.sched_getscheduler(thread.native_id) == os.SCHED_FIFO)  # type: ignore[misc]
    source.serve(Remaining(everything))

    def ask() -> None:
        for page in np.random.default_rng(2).permutation(PAGES).tolist():
            fetched.ask([page])

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.to_thread(ask)
        await complete.wait()
    assert not ledger.missing
    assert not ledger.duplicates
    assert np.array_equal(contents(here), contents(there))
    assert source.sent_bytes > PAGES * 4096 * 4 // 5
    await source.close()
    await eventually(lambda: len(ends) == 1)
    assert isinstance(ends[0], LinkLost)
    fetched.shut_down()
    with pytest.raises(LinkLost):
        fetched.ask([1])
    fetched.abort()


async def test_a_refusal_is_told_in_the_peers_words(make_memory: MemoryMaker) -> None:
    (sender, speaker), (wire, connection) = fault_ends()
    memory, ledger, ends = make_memory(8), Ledger(8), list[BaseException]()
    intake = Intake(ledger, Publisher(-1, 0, 0), 8)
    fetched = FaultConnection(wire, connection, Landing(wire, memory, ledger), intake, ends.append)
    fetched.start()
    sender.send([speaker.send(Failure("failed", "the source gives up", "", ""))])
    await eventually(lambda: len(ends) == 1)
    assert isinstance(ends[0], PeerRefused)
    assert ends[0].what == "the source gives up"
    fetched.abort()
    sender.close()
