"""A vCPU touched a page that is not published: publish it, or fetch it.

Runs in a thread of its own, in another process than the guest (a Python thread that faulted on a missing page would wait with the
GIL). Three cases, by the ledger: the page is here and current, then it is published with its neighbours; it is zero, then a zero
page is; it is missing, then it is asked for once, and whoever receives it publishes it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.ledger import Ledger
from pagefire.guest_workload.linux import userfaultfd
from pagefire.protocol.errors import LinkLost
from pagefire.protocol.pages import PAGE_BYTES

#: Pages published together around one fault. The kernel's own fault-around takes 16; here a fault costs this process 40 to 100 us
#: beside a push (each traced), and each further page 0.2 (UFFDIO_CONTINUE of 2 GiB takes 120 ms). Of 64, 256 and 512 the second
#: had the guest back soonest, by little: 95% of its rate after 40-42, 31-37 and 25-36 ms, p50 of a fetch 1.4-1.7, 1.0-1.3 and
#: 1.8-1.9 ms.
PUBLISH_WINDOW_PAGES = 256

#: Asks the source for pages; raises LinkLost, of which somebody else hears too.
Ask = Callable[[list[int]], object]


class FaultHandler:
    """Serves the guest's faults between `start` and `stop`. Does not own the descriptor. `on_error` is called in its thread."""

    def __init__(
        self,
        uffd: int,
        address: int,
        ledger: Ledger,
        intake: Intake,
        on_error: Callable[[BaseException], object],
    ) -> None:
        self._uffd = uffd
        self._address = address
        self._ledger = ledger
        self._intake = intake
        self._on_error = on_error
        self._ask: Ask | None = None
        self._asking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop_fd = -1
        #: Faults on pages that were here already.
        self.minor_faults = 0

    def start(self) -> None:
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="FaultHandler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Serve no further fault, and wait until none is being served. More than once does nothing."""
        if self._thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            self._thread.join()
            os.close(self._stop_fd)
            self._thread = None

    def ask_by(self, ask: Ask | None) -> None:
        """From now on `ask` asks the source, at once for all that vCPUs wait for; None: there is no link. Any thread.

        What an earlier link was asked for has to be forgotten by the ledger before.
        """
        with self._asking:
            self._ask = ask
            for page in self._intake.waited_for():
                self._request(page)

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._uffd, self._stop_fd):
            poll.register(fd, select.POLLIN)
        try:
            while not any(fd == self._stop_fd for fd, _ in poll.poll()):
                self._serve()
        except BaseException as error:  # the migration decides what it means
            self._on_error(error)

    def _serve(self) -> None:
        now = time.monotonic_ns()
        for address in userfaultfd.read_faults(self._uffd)["address"].tolist():
            self._resolve((address - self._address) // PAGE_BYTES, now)

    def _resolve(self, page: int, now: int) -> None:
        if self._intake.show(page, PUBLISH_WINDOW_PAGES):
            self.minor_faults += 1
            return
        self._intake.note_wait(page, now)
        with self._asking:
            asked = self._request(page)
        if not asked:
            # It may have arrived between the two looks: whoever published it may not have seen that somebody waits for it.
            self._intake.show(page)

    def _request(self, page: int) -> bool:
        """Ask for a page and what goes with it; False where there is no link, or it was asked for, or has come."""
        if self._ask is None or not (wanted := self._ledger.request(page)):
            return False
        # Of a link that is lost the receiving thread hears as well, and the next one is asked again.
        with contextlib.suppress(LinkLost):
            self._ask(wanted)
        return True
