"""A vCPU touched a page that is not published: publish it, or fetch it.

Runs on the loop, in another process than the guest (a Python thread that faulted on a missing page would wait with the GIL). Three
cases, by the ledger: the page is here and current, then it is published with its neighbours; it is zero, then a zero page is; it is
missing, then it is fetched once, and whoever receives it publishes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import userfaultfd
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.messages import Failure, Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.frame_stream import FrameStream, refusal

#: Pages published together around one fault. The kernel's own fault-around takes 16; here a fault costs this process some 250 us
#: (0.26 s for 1,038 of them, beside a push), and each further page less than one. Of 64, 256 and 512 the second had the guest back
#: soonest, by little: 95% of its rate after 40-42, 31-37 and 25-36 ms, p50 of a fetch 1.4-1.7, 1.0-1.3 and 1.8-1.9 ms.
PUBLISH_WINDOW_PAGES = 256


class FaultHandler:
    """Serves the guest's faults between `start` and `stop`. Does not own the descriptor."""

    def __init__(
        self,
        uffd: int,
        address: int,
        ledger: Ledger,
        intake: Intake,
        publisher: Publisher,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._uffd = uffd
        self._address = address
        self._ledger = ledger
        self._intake = intake
        self._publisher = publisher
        self._on_error = on_error
        self._to_fetch: asyncio.Queue[list[int]] = asyncio.Queue()
        #: Faults on pages that were here already.
        self.minor_faults = 0

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._uffd, self._serve)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._uffd)

    def ask_again(self) -> None:
        """The link is a new one, and the ledger has forgotten what was asked for: ask for all that vCPUs wait for."""
        self._to_fetch = asyncio.Queue()
        for page in self._intake.waited_for():
            if wanted := self._ledger.request(page):
                self._to_fetch.put_nowait(wanted)

    async def fetch(self, stream: FrameStream) -> None:
        """Ask the source for what faults need, until cancelled; raises LinkLost."""
        while True:
            pages = list(await self._to_fetch.get())
            while not self._to_fetch.empty():
                pages += self._to_fetch.get_nowait()
            await stream.send(Fetch(PageSet.of_pages(np.array(pages))))

    async def receive(self, stream: FrameStream, landing: Landing) -> None:
        """Take fetched pages until the connection ends; raises LinkLost. `landing` reads the stream's socket."""
        while True:
            message = (await stream.receive()).message
            match message:
                case Pages(pages):
                    contents = await stream.receive_payload(pages.pages * PAGE_BYTES)
                    self._intake.take_fetched(pages, contents, landing)
                case ZeroPages(pages):
                    self._intake.take_zero(pages, landing)
                case Failure() as failure:
                    raise refusal(failure)

    def _serve(self) -> None:
        now = time.monotonic_ns()
        try:
            for address in userfaultfd.read_faults(self._uffd)["address"].tolist():
                self._resolve((address - self._address) // PAGE_BYTES, now)
        except (OSError, PagefireError) as error:
            self.stop()
            self._on_error(error)

    def _resolve(self, page: int, now: int) -> None:
        if self._publish(page, PUBLISH_WINDOW_PAGES):
            self.minor_faults += 1
            return
        self._intake.note_wait(page, now)
        if wanted := self._ledger.request(page):
            self._to_fetch.put_nowait(wanted)
        else:
            # It may have arrived between the two looks: whoever published it may not have seen that somebody waits for it.
            self._publish(page, 1)

    def _publish(self, page: int, window_pages: int) -> bool:
        """Publish a page that is here, with its neighbours in the window; False when it is not here."""
        start, stop = self._ledger.publishable_around(page, window_pages)
        if start < stop:
            self._intake.publish(start, stop)
        elif self._ledger.is_zero(page):
            self._publisher.publish_zero(page)
            self._intake.settle_waits(page, page + 1)
        else:
            return False
        return True
