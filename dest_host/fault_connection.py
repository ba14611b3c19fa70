"""The fault connection at the destination: asks for pages that vCPUs wait for, and takes them by a thread of its own.

No loop in between, here or at the source: it has more to do just after the resume, and each of its turns was a part of the vCPU's
wait. And before every other thread where the host grants it, here and there: what two threads that move pages, two vCPUs and two
loops leave of two CPUs is not enough to be prompt. They do some 0.1 ms for each fault, and nothing else. Measured on two cores,
hybrid, 2 GiB, 50,000 stores/s in 256 MiB, 60 migrations each, the same pages left: p50, p90 and longest wait 1.99, 4.75 and 8.34 ms
by way of the loops, 0.92, 1.85 and 2.95 ms so. The handler that shows pages which are here must not have that priority alone: the
guest then runs into more missing pages (56 waits instead of 8 in 16 migrations) and the last one comes twice as late. While at
most 1 GiB is left, all of the daemon has one below it (priority_boost.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.landing import Landing
from pagefire.guest_workload.linux import scheduling
from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.messages import Failure, Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PageSet
from pagefire.protocol.transport.frame_stream import refusal
from pagefire.protocol.transport.frame_thread import FrameThread
from pagefire.protocol.transport.wire import Wire


class FaultConnection(FrameThread):
    """Takes fetched pages until the connection ends; `on_end(error)` is then called in its thread. `landing` reads the wire."""

    WHAT = "the fault connection"

    def __init__(
        self,
        wire: Wire,
        connection: Connection,
        landing: Landing,
        intake: Intake,
        on_end: Callable[[BaseException], object],
    ) -> None:
        super().__init__(wire, connection, on_end)
        self._landing = landing
        self._intake = intake

    def ask(self, pages: list[int]) -> None:
        """Ask the source for these pages. Any thread, one at a time; raises LinkLost, and so the receiving thread hears of it too.

        Waits for a peer only that reads nothing while more is asked for than the socket holds: a page takes 48 bytes.
        """
        wanted = PageSet.span(pages[0], pages[0] + 1) if len(pages) == 1 else PageSet.of_pages(np.array(pages))
        self._wire.send([self._connection.send(Fetch(wanted))])

    def _begin(self) -> None:
        scheduling.set_prompt()

    def _take(self, arrival: Arrival) -> None:
        match arrival.message:
            case Pages(pages):
                if arrival.check is not None:
                    self._wire.hold(arrival.payload_bytes, arrival.check)
                # Read whole before a page is claimed: what is claimed is filled at once.
                contents = bytearray(arrival.payload_bytes)
                self._wire.fill([memoryview(contents)])
                self._intake.take_fetched(pages, contents, self._landing)
            case ZeroPages(pages):
                self._intake.take_zero(pages, self._landing)
            case Failure() as failure:
                raise refusal(failure)
