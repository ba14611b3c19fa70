"""Showing the guest pages that are here before it asks for them: those of the granules that it wrote while it was being moved.

Until the last page has come, the first touch of each page that is here costs a fault through this daemon. What a guest wrote it
goes on writing, and a later round than the first, or the switchover's bitmap, brings just that: their granules are published from
the resume on, by a thread of its own, all but the pages that are missing, which whoever receives them publishes. It is a hint and
no more: what is not shown ahead is shown at a fault, and a daemon that takes this one's place begins without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.ledger import Ledger
from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.linux.sparse import sparse_zeros
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import GRANULE_PAGES, PageSet

#: What is shown between two looks at whether to stop: some milliseconds.
_AT_ONCE_PAGES = 4 * GRANULE_PAGES


class ShowingAhead:
    """Knows where one guest writes; shows it that memory between `begin` and `stop`."""

    def __init__(self, ledger: Ledger, intake: Intake, total_pages: int) -> None:
        self._ledger = ledger
        self._intake = intake
        self._total_pages = total_pages
        self._written = sparse_zeros(-(-total_pages // GRANULE_PAGES)).view(np.bool_)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, pages: PageSet) -> None:
        """These have been written while the guest was being moved. Any thread."""
        first, last = pages.starts // GRANULE_PAGES, (pages.stops - 1) // GRANULE_PAGES
        self._written[first] = True
        self._written[last] = True
        for run in np.flatnonzero(last - first > 1).tolist():
            self._written[first[run] : last[run]] = True

    def begin(self, on_error: Callable[[BaseException], object]) -> None:
        """The guest runs here; `on_error` is called in the thread."""

        def show() -> None:
            scheduling.set_slice(scheduling.BULK_SLICE_NS)
            try:
                self._show()
            except (OSError, PagefireError) as error:
                on_error(error)

        self._thread = threading.Thread(target=show, name="showing-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show nothing more when this returns; blocks for some milliseconds. More than once does nothing."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        self.note(self._ledger.named())
        granules = PageSet.of_pages(np.flatnonzero(self._written))
        written = PageSet.of_runs(
            granules.starts * GRANULE_PAGES, np.minimum(granules.stops * GRANULE_PAGES, self._total_pages)
        )
        for some in written.batches(_AT_ONCE_PAGES):
            if self._stopped.is_set():
                return
            self._intake.publish_ready(some)
