"""A resumed guest's memory with its fault handler, as the destination wires them, and the source's end of the fault connection."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

from pagefire.dest_host.fault_connection import FaultConnection
from pagefire.dest_host.fault_handler import FaultHandler
from pagefire.dest_host.intake import Intake
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.pages import PageSet
from pagefire.protocol.transport.frame_stream import FrameStream
from tests.support.memory_user import MemoryUser
from tests.support.page_link import fault_ends


class ServedGuest:
    """Memory that a process maps, of which `missing` is still at the source. Who answers the fetches is the subclass's business.

    What is `filled` holds 1. `source` is the other end of the fault connection; `errors` is what the handler told, `ends` with what
    the connection ended.
    """

    def __init__(self, user: MemoryUser, memory: memfd.Mapping, filled: PageSet, missing: PageSet) -> None:
        self.user, self.memory = user, memory
        user.map(memory)
        features = userfaultfd.DEMAND_PAGING if memory.unit_pages == 1 else userfaultfd.DEMAND_PAGING_HUGETLB
        self.uffd = user.open_uffd(features, keep=True)
        self.publisher = Publisher(self.uffd, user.address, memory.size_bytes, memory.unit_pages)
        self.publisher.arm()
        self.ledger = Ledger(memory.pages, memory.unit_pages)
        self.intake = Intake(self.ledger, self.publisher, memory.pages, memory.unit_pages)
        memory.array[: filled.size_bytes] = 1
        self.ledger.mark_filled(filled)
        self.complete = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.intake.resume_begins(missing, lambda: loop.call_soon_threadsafe(self.complete.set))
        self.errors: list[BaseException] = []
        self.handler = FaultHandler(self.uffd, user.address, self.ledger, self.intake, on_error=self.errors.append)
        ours, (wire, connection) = fault_ends()
        self.source = FrameStream(*ours)
        self.landing = Landing(wire, memory, self.ledger)
        self.ends: list[BaseException] = []
        self.connection = FaultConnection(wire, connection, self.landing, self.intake, self.ends.append)
        self.connection.start()
        self.handler.ask_by(self.connection.ask)
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, *beside: Coroutine[Any, Any, None]) -> None:
        """Serve faults, and do what else a test needs beside it."""
        self.handler.start()
        self.tasks = [asyncio.create_task(each) for each in beside]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.handler.stop()
        await asyncio.to_thread(self.connection.abort)
        self.source.close()
        os.close(self.uffd)
