"""What becomes of arriving pages: before the resume they just land; after it they are claimed, filled, received, published.

One `Intake` a migration; `resume_begins` changes its rule, once, while no page is under way (READY is sent only when every page
connection has brought its marker, and the source pushes only after HANDOVER).

What has come is shown to who waits for it, and nothing ahead of a fault: to show takes a call for each run, 50 us for 128 pages,
beside vCPUs that fault in the same memory; a guest that is shown pages runs sooner into one that is missing, and each of these is a
piece of the push's time; and what is not shown holds the guest up, by one short fault for all of a window (fault_handler.py), only
until the last page has come: from then on the kernel serves all of it by itself. Measured on two cores, in turn, medians. At full
rate, all 256 MiB of the working set left by hybrid, six migrations each, twice: with runs of 16 pages and more shown the last page
came after 254 and 269 ms, 398 and 393 faults waited for 222 and 232 ms in all, and 35 and 34 found their page here but not shown;
with none shown 151 and 149 ms, 148 and 114 faults, 80 and 71 ms, 124 and 114. Mode postcopy, 1 GiB, 50,000 stores/s in 256 MiB,
four each, twice: 1.01 and 1.07 s, 883 and 1,084 faults, 636 and 729 ms, 249 and 359; with none shown 0.99 and 0.97 s, 777 and 614
faults, 514 and 446 ms, 982 and 838. Some 4,500 scattered pages left, when all of them were shown: 58 to 63 ms, and without 17 to
22.
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

    def check_in_round(self, pages: PageSet) -> None:
        """Refuse differences to pages that may have changed here, or are outside the guest's memory, with RemoteProtocolError."""
        self.check_within(pages)
        if self._resumed:
            raise RemoteProtocolError("the peer sent differences after the resume", f"of page {int(pages.starts[0])}")

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

    def publish_ready(self, pages: PageSet) -> None:
        """Show the guest, before it runs, those of `pages` that are here and current; whole units around them."""
        shown = self._ledger.unpublished(self._whole_units(pages))
        self._publisher.publish_all(shown)
        self._ledger.mark_all_published(shown)

    def publish(self, start: int, stop: int) -> None:
        """Show the guest a run of pages that are here and current; whoever waits for one of them goes on."""
        self._publisher.publish(start, stop)
        self._ledger.mark_published(start, stop)
        self.settle_waits(start, stop)

    def show(self, page: int, window_pages: int = 1) -> bool:
        """Show the guest a page that it waits for, with its neighbours in an aligned window; False when it is not here."""
        start, stop = self._ledger.publishable_around(page, window_pages)
        if start < stop:
            self.publish(start, stop)
        elif self._ledger.is_zero(page):
            self._publisher.publish_zero(page)
            self.settle_waits(page, page + 1)
        else:
            return False
        return True

    def note_wait(self, page: int, since_ns: int) -> None:
        """A vCPU waits for this page since then; its latency is taken when the page is published."""
        with self._waiting_lock:
            self._waiting.setdefault(page, since_ns)

    def waited_for(self) -> list[int]:
        """Give the pages that vCPUs wait for, one for each fault that has not been answered."""
        with self._waiting_lock:
            return list(self._waiting)

    def _waited_for(self, pages: PageSet) -> list[int]:
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
        if self._waiting:
            for page in self._waited_for(self._whole_units(fresh)):
                self.show(page)
        self._published(fresh.pages)

    def _whole_units(self, pages: PageSet) -> PageSet:
        return pages.rounded(self._unit_pages, self._total_pages) if self._unit_pages > 1 else pages

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
