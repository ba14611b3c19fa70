"""The fault connection at the source: what vCPUs wait for is sent at once, by a thread of its own that does nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import numpy as np

from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.errors import LinkLost
from pagefire.protocol.messages import Failure, Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.frame_stream import refusal
from pagefire.protocol.transport.frame_thread import FrameThread
from pagefire.protocol.transport.tasks import in_thread
from pagefire.protocol.transport.wire import Wire
from pagefire.source_host.postcopy import Remaining


class FaultStream(FrameThread):
    """Answers demand fetches, from `serve` on. Made on a running loop; its thread waits from the beginning, warm."""

    WHAT = "the fault connection"

    def __init__(self, wire: Wire, connection: Connection, memory: Mapping) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(wire, connection, lambda error: loop.call_soon_threadsafe(self._note_end, error))
        self._bytes = memory.array.data
        self._words = memory.array.view(np.uint64).reshape(-1, PAGE_BYTES // 8)
        self._remaining: Remaining | None = None
        self._before_answer: Callable[[], object] = lambda: None
        self._serving = threading.Event()
        self._ended: asyncio.Future[None] = loop.create_future()
        self.start()

    @property
    def sock(self) -> socket.socket:
        return self._wire.sock

    @property
    def sent_bytes(self) -> int:
        return self._wire.sent_bytes

    def serve(self, remaining: Remaining, before_answer: Callable[[], object] = lambda: None) -> None:
        """Answer out of this set from now on, and what was asked before. `before_answer` is called in the thread."""
        self._before_answer, self._remaining = before_answer, remaining
        self._serving.set()

    def abort(self) -> None:
        self._serving.set()
        super().abort()

    async def ended(self) -> None:
        """Wait for the end of the connection, and raise it: LinkLost, or what the destination did wrong."""
        await asyncio.shield(self._ended)

    async def close(self) -> None:
        """End the connection and wait for the thread; more than once does nothing."""
        await in_thread(self.abort)

    def _note_end(self, error: BaseException) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
            self._ended.exception()  # nobody has to ask

    def _begin(self) -> None:
        scheduling.set_prompt()

    def _take(self, arrival: Arrival) -> None:
        match arrival.message:
            case Fetch(pages):
                self._answer(pages)
            case Failure() as failure:
                raise refusal(failure)

    def _answer(self, wanted: PageSet) -> None:
        self._serving.wait()
        if self._remaining is None:
            raise LinkLost("the fault connection was closed here")
        self._before_answer()
        for start, stop in runs_of(self._remaining.fetch(wanted)):
            run = PageSet.span(start, stop)
            if self._words[start:stop].any():
                contents = self._bytes[start * PAGE_BYTES : stop * PAGE_BYTES]
                self._wire.send([self._connection.send(Pages(run), run.size_bytes, [contents]), contents])
            else:
                self._wire.send([self._connection.send(ZeroPages(run))])


def runs_of(pages: list[int]) -> list[tuple[int, int]]:
    """Put ascending pages that lie together into one answer, [start, stop): all of a 2 MiB page that a vCPU waits for."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][1] == page:
            runs[-1] = runs[-1][0], page + 1
        else:
            runs.append((page, page + 1))
    return runs
