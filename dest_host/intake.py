"""What becomes of arriving pages: before the resume they just land; after it they are claimed, filled, received, published.

One `Intake` a migration; `resume_begins` changes its rule, once, while no page is under way (READY is sent only when every page
connection has brought its marker, and the source pushes only after HANDOVER).

Of what has come long runs are shown, single pages only to who waits for them, and nothing ahead of a fault: to show takes a call
for each run, beside vCPUs that fault in the same memory, and what is not shown holds the guest up only until the last page has
come; from then on the kernel serves all of it by itself. Measured on two cores, hybrid, 2 GiB, 50,000 stores/s in 256 MiB, some
4,500 scattered pages left, twelve migrations each, three times, in turn, medians: with every page shown the last had come 58, 62
and 63 ms after the resume, 8 to 15 faults had waited for 16 to 21 ms in all, and 473 to 557 found their page here but not shown;
with long runs alone 17, 19 and 22 ms, 1 or 2 faults for 2 to 6 ms, and 79 to 100. Earlier, and worse still: the pages around each
that came (units of 16), 140 and 147 ms, without 70 and 76; what the guest had been writing, by a thread of its own, 84 and 98 ms,
without 25 and 36. In mode postcopy, 1 GiB, units of 16 took 1.45 and 1.64 s, without 1.13 and 1.25.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import numpy as np

from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.publishing import Publisher
from pagefire.protocol.errors import GuestError, RemoteProtocolError
from pagefire.protocol.pages import PAGE_BYTES, PageSet

_ZERO_PAGES_AT_ONCE = 1 << 16
#: After each so many pages of a batch it is asked whether somebody waits: 512 pages took up to 1.5 ms, and a page that one of them
#: is cannot be taken from the fault connection meanwhile.
_PART_PAGES = 128
#: Shorter runs of what has been pushed are left to a fault, or to the kernel once the last page is here. As many as the kernel maps
#: at one fault; what hybrid leaves lies alone and what postcopy leaves in long runs, so that other limits were not tried.
SHOWN_RUN_PAGES = 16


class Intake:
    """Takes pages from any number of connections, each with its own thread and `Landing`."""

    def __init__(self, ledger: Ledger, publisher: Publisher, total_pages: int, unit_pages: int = 1) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._total_pages = total_pages
        self._unit_pages = unit_pages
        self._resumed = False
        self._waiting: dict[int, int] = {}
        self._waiting_lock = threading.Lock()
        self._on_complete: Callable[[], object] = lambda: None
        #: Waits of vCPUs, fault read to page published, in ns.
        self.waits_ns: list[int] = []

    def foretell(self, missing: PageSet) -> None:
        """These will be missing at the resume, but for what the switchover says; blocks for as long as that takes to note."""
        self.check_within(missing)
        self._ledger.foretell(missing)

    def resume_begins(
        self, missing: PageSet, on_complete: Callable[[], object], present: PageSet | None = None
    ) -> None:
        """From now on pages are those of the bitmap; `on_complete` is called, in any thread, when none is missing.

        `missing` is what the bitmap names beside what was foretold, `present` what of this has come.
        """
        self.check_within(missing)
        self._ledger.set_missing(missing, present)
        self.resume_goes_on(on_complete)

    def resume_goes_on(self, on_complete: Callable[[], object]) -> None:
        """Begin in the middle: the ledger knows what is missing; as after `resume_begins`."""
        self._on_complete = on_complete
        self._resumed = True

    def check_within(self, pages: PageSet) -> None:
        """Refuse pages outside the guest's memory with RemoteProtocolError."""
        if pages and int(pages.stops[-1]) > self._total_pages:
            raise RemoteProtocolError(
                "the peer sent a page outside the guest's memory", f"page {int(pages.stops[-1]) - 1}"
            )

    def take(self, pages: PageSet, landing: Landing) -> None:
        """Take contents of `pages`, of a round or pushed, from the landing's socket."""
        self.check_within(pages)
        if not self._resumed:
            landing.fill(pages)
            return
        fresh = self._ledger.claim(pages)
        if fresh.pages < pages.pages:
            landing.fill(pages, pages - fresh)
            self._received(fresh)
            return
        # Who waits for a page of a batch that is being filled waits for no more of it than a part.
        part_at = filled = 0
        for part in pages.batches(_PART_PAGES):
            landing.fill(part)
            filled += part.pages
            if self._waiting:
                self._received(pages.part(part_at, filled))
                part_at = filled
        if part_at < filled:
            self._received(pages.part(part_at, filled))

    def take_fetched(self, pages: PageSet, contents: bytes | bytearray, landing: Landing) -> None:
        """Take the fetched `contents` of `pages`, which have been read already; after the resume only."""
        self.check_within(pages)
        if self._unit_pages > 1:
            fresh = self._ledger.claim(pages)
            landing.place(fresh, pages, contents)
            self._received(fresh)
            return
        for page, at in zip(pages.page_numbers().tolist(), range(0, len(contents), PAGE_BYTES), strict=True):
            if self._ledger.claim_page(page):
                landing.place_page(page, contents[at : at + PAGE_BYTES])
                self._page_received(page)

    def take_zero(self, pages: PageSet, landing: Landing) -> None:
        """Make `pages` zero."""
        self.check_within(pages)
        # They cost the peer nothing, so a frame may name all of a guest: looked at in parts, it takes no memory to speak of.
        for part in pages.batches(_ZERO_PAGES_AT_ONCE):
            if not self._resumed:
                landing.zero(part)
                continue
            fresh = self._ledger.claim(part)
            landing.zero(fresh)
            self._received(fresh)

    def publish_ready(self, pages: PageSet, least_run_pages: int = 1) -> None:
        """Show the guest those of `pages` that are here and current and were not shown yet; whole units around them.

        Of shorter runs only pages that somebody waits for.
        """
        whole = pages.rounded(self._unit_pages, self._total_pages) if self._unit_pages > 1 else pages
        # First those for which somebody waits: to show all of a batch takes as long as to fetch a page.
        for page in self._waited_for(whole):
            start, stop = self._ledger.publishable_around(page, self._unit_pages)
            if start < stop:
                self.publish(start, stop)
        shown = self._ledger.unpublished(whole.long_runs(least_run_pages)).long_runs(least_run_pages)
        self._publisher.publish_all(shown)
        self._ledger.mark_all_published(shown)
        for page in self._waited_for(shown):
            self.settle_waits(page, page + 1)

    def publish(self, start: int, stop: int) -> None:
        """Show the guest a run of pages that are here and current; whoever waits for one of them goes on."""
        self._publisher.publish(start, stop)
        self._ledger.mark_published(start, stop)
        self.settle_waits(start, stop)

    def note_wait(self, page: int, since_ns: int) -> None:
        """A vCPU waits for this page since then; its latency is taken when the page is published."""
        with self._waiting_lock:
            self._waiting.setdefault(page, since_ns)

    def waited_for(self) -> list[int]:
        """Give the pages that vCPUs wait for, one for each fault that has not been answered."""
        with self._waiting_lock:
            return list(self._waiting)

    def _waited_for(self, pages: PageSet) -> list[int]:
        if not self._waiting:
            return []
        with self._waiting_lock:
            return [page for page in self._waiting if page in pages]

    def settle_waits(self, start: int, stop: int) -> None:
        """The run is published: whoever waited for a page of it goes on."""
        if not self._waiting:
            return
        now = time.monotonic_ns()
        with self._waiting_lock:
            for page in [page for page in self._waiting if start <= page < stop]:
                self.waits_ns.append(now - self._waiting.pop(page))

    def _page_received(self, page: int) -> None:
        """Do what `_received` does, for a single page with contents."""
        self._ledger.page_received(page)
        if page in self._waiting:
            self.publish(page, page + 1)
        self._published(1)

    def _received(self, fresh: PageSet) -> None:
        """Pages that were claimed are here: with contents, or as holes, which read as zero.

        Order: full, then received, then published; a fault that finds it received and not published publishes it itself.

        `note_wait` comes before the handler's second look at the ledger, `mark_received` before ours at the waits: one of the two
        sees the other.

        A page stops being missing only when what is to be shown is: told earlier, the script would close the userfaultfd under a
        thread that still publishes with it.
        """
        self._ledger.mark_received(fresh)
        self.publish_ready(fresh, SHOWN_RUN_PAGES)
        for page in self._waited_for(fresh):
            if self._ledger.is_zero(page):
                self._publisher.publish_zero(page)
                self.settle_waits(page, page + 1)
        self._published(fresh.pages)

    def _published(self, pages: int) -> None:
        """So many pages more are not missing any longer; with the last one the kernel serves the guest's faults by itself.

        That is not left to the script, whose turn came late: it took 2 to 3 ms of the 8 to 13 that 1,500 pages needed, and half of
        the faults on pages that were here fell into them (nine migrations, each step traced).
        """
        if self._ledger.count_published(pages):
            # What is wrong with the guest's memory the script is told, which does it again.
            with contextlib.suppress(OSError, GuestError):
                self._publisher.disarm()
            self._on_complete()


def percentiles_us(waits_ns: list[int]) -> list[float]:
    """Give p50, p99 and max of waits in microseconds; empty when there were none."""
    if not waits_ns:
        return []
    return [float(x) for x in np.percentile(np.array(waits_ns) / 1000, [50, 99, 100])]
