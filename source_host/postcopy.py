"""After the resume: one set of remaining pages, pulled on demand and pushed in the background.

Each page leaves the set once, and is pushed or fetched. A fetch for a page that the push has taken already is answered all the
same: what was pushed may lie behind megabytes in the sockets' buffers, the memory here does not change any more, and the
destination takes a page's first copy and drops the other. Cost: one page on the wire for each such fault.

The faults come first. A vCPU's first transaction needs the few pages that it always writes, one after another, and those are in
the set: 0.8-1.5 ms each in the one traced run that had no push beside it. So the push waits until no fetch has come for `QUIET_S`,
but `GRACE_S` at most; and not at all where little remains, which is there as soon as those are: hybrid, 2,000 to 3,000 pages over
loopback, 25 to 40 ms from the resume to the last page, and 67 to 85 with the grace (two runs of five each way, in turn). Then it
goes in ascending order. To begin with what was written last looks better and is not: scattered pages cost both hosts a run each,
and the guest stalled 0.44-0.58 s instead of 0.13-0.24 (oltp; hotspot 0.7-1.4 instead of 0.2-0.4; three alternating pairs each,
256 MiB to move).

What lies around a fault is pushed next (`prefetch_pages`): the guest comes back for its neighbours. Mode postcopy, 1 GiB, 50,000
stores/s into random pages of 256 MiB, without and with a window of 256 pages, eight migrations each, in turn, medians: 1,307 and
532 pages were waited for, 1.06 and 0.59 s in all, and the last page came after 1.23 and 0.88 s (64 pages 1.15 s, 512 and 2,048
0.52 and 0.48 s of waiting); at 125 MB/s 8,512 and 3,210 pages, 5.5 and 2.9 s, 8.3 and 8.5 s. The guest's time below half its rate
is a little longer, 0.21 and 0.24 s, 1.05 and 1.29 s: fewer waits, but one after another. Of what hybrid leaves no page has a
neighbour: no difference.

The push takes as many pages at a time as the link moves in 2 ms (`BATCH`): what lies around a fault waits for the batch before
it, and a page of a batch that the destination has begun to read is not taken from the fault connection (intake.py). On loopback
the size makes no difference that could be seen: 256, 1,024 or 2,048 pages each time gave 580-777, 495-704 and 562-613 MB/s (three
to five runs each, one after another).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from pagefire.guest_workload.linux.sparse import sparse_zeros
from pagefire.protocol.pages import PageSet
from pagefire.protocol.transport.tasks import together
from pagefire.source_host.batch_size import BatchSize
from pagefire.source_host.page_stream import PageStream

#: What one push takes at a time: 0.5 to 8 MiB.
BATCH = BatchSize(128, 2048, 0.002)
#: Up to so many pages are looked up one by one, which costs nothing that grows with the set.
_FEW_PAGES = 64
#: Faults whose neighbours are still to be pushed; older ones are forgotten.
_FAULTS_REMEMBERED = 64
QUIET_S = 0.003
GRACE_S = 0.02
#: Fewer pages than this are pushed at once (32 MiB).
LITTLE_PAGES = 8192


class Remaining:
    """The pages that the destination still needs; every method is safe in any thread. Those of `last` are pushed after all others.

    Made while the guest waits for its first pages, so making it costs a cleared byte for each page of their span and nothing else.
    """

    def __init__(self, pages: PageSet, last: PageSet | None = None, prefetch_pages: int = 0) -> None:
        self._pages = pages
        #: Where faults were since the last turn of a push: the aligned windows of so many pages around them go next.
        self._prefetch_pages = prefetch_pages
        self._faulted: deque[int] = deque(maxlen=_FAULTS_REMEMBERED)
        #: What is still to be pushed, in this order.
        self._turns = [pages - last, last] if last else [pages]
        self._first = int(pages.starts[0]) if pages else 0
        self._taken = sparse_zeros(int(pages.stops[-1]) - self._first if pages else 0).view(np.bool_)
        self._position = 0
        self._lock = threading.Lock()
        self.count = pages.pages
        self.last_fetch_s = time.monotonic()

    def fetch(self, wanted: PageSet) -> list[int]:
        """Remove what is `wanted` and still in the set; gives the pages of `wanted` that ever were in it, to be sent."""
        self.last_fetch_s = time.monotonic()
        ours: list[int]
        if wanted.pages == 1:
            return self._fetch_one(int(wanted.starts[0]))
        if wanted.pages > _FEW_PAGES:
            ours = (wanted & self._pages).page_numbers().tolist()
        else:
            ours = [page for page in wanted.page_numbers().tolist() if page in self._pages]
        with self._lock:
            self._take(PageSet.of_pages(ours))
            if self._prefetch_pages and ours:
                self._faulted.append(ours[0])
        return ours

    def _fetch_one(self, page: int) -> list[int]:
        """Do what `fetch` does for the one page that a vCPU waits for: 2 us instead of 30."""
        if page not in self._pages:
            return []
        with self._lock:
            if not self._taken[page - self._first]:
                self._taken[page - self._first] = True
                self.count -= 1
            if self._prefetch_pages:
                self._faulted.append(page)
        return [page]

    def take_next(self, most_pages: int) -> PageSet:
        """Remove the next pages to push, so many at most; empty when nothing is left."""
        with self._lock:
            while self._faulted:
                # The last one first: what lies around earlier ones has been waited for already, or never will be.
                first = self._faulted.pop() // self._prefetch_pages * self._prefetch_pages
                if left := self._take(self._pages.within(first, first + self._prefetch_pages)):
                    return left
            while self._turns:
                while batch := self._turns[0].part(self._position, self._position + most_pages):
                    self._position += batch.pages
                    if left := self._take(batch):
                        return left
                self._turns.pop(0)
                self._position = 0
            return PageSet.empty()

    def _take(self, pages: PageSet) -> PageSet:
        """Remove those of some pages of the set that are still in it; gives them."""
        if not pages:
            return pages
        taken = self._taken[pages.index(self._first)]
        left = PageSet.of_pages(pages.page_numbers()[~taken]) if taken.any() else pages
        self._taken[left.index(self._first)] = True
        self.count -= left.pages
        return left


async def push(remaining: Remaining, streams: list[PageStream], after_batch: Callable[[], None] = lambda: None) -> None:
    """Send what remains on all page connections until nothing is left, after the grace that the first faults are given.

    Raises the LinkLost of the first connection that breaks.
    `after_batch` is called in the stream's thread.
    """
    latest_s = time.monotonic() + (GRACE_S if remaining.count > LITTLE_PAGES else 0.0)
    while (quiet_at_s := min(remaining.last_fetch_s + QUIET_S, latest_s)) > (now_s := time.monotonic()):
        await asyncio.sleep(quiet_at_s - now_s)

    def drive(stream: PageStream) -> None:
        batch_pages = BATCH.least_pages
        while batch := remaining.take_next(batch_pages):
            began_s = time.monotonic()
            stream.send_pages(batch)
            batch_pages = BATCH.next(batch.pages, time.monotonic() - began_s)
            after_batch()

    first, *others = (stream.push(drive) for stream in streams)
    await together(first, *others)
