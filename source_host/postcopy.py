"""After the resume: one set of remaining pages, pulled on demand and pushed in the background.

Each page leaves the set once, and is pushed or fetched. A fetch for a page that the push has taken already is answered all the
same: what was pushed may lie behind megabytes in the sockets' buffers, the memory here does not change any more, and the
destination takes a page's first copy and drops the other. Cost: one page on the wire for each such fault.

The faults come first. A vCPU's first transaction needs the few pages that it always writes, one after another, and those are in the
set: 0.8-1.5 ms each in the one traced run that had no push beside it. So the push waits until no fetch has come for `QUIET_S`, but
`GRACE_S` at most; and it begins with what was written last, because that is likely to be written next. Neither the wait nor that
order has been measured against its absence.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.messages import Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PAGE_BYTES, Int64s, PageSet
from pagefire.protocol.transport.frame_stream import FrameStream
from pagefire.protocol.transport.tasks import in_thread
from pagefire.source_host.page_stream import PageStream

#: Pages that one push takes at a time (1 MiB): what a fault may have to wait for behind it on the link.
PUSH_PAGES = 256
QUIET_S = 0.003
GRACE_S = 0.02


class Remaining:
    """The pages that the destination still needs; every method is safe in any thread.

    Made while the guest waits for its first pages, so making it costs a cleared byte for each page of their span and nothing else.
    """

    def __init__(self, pages: PageSet) -> None:
        self._pages = pages
        self._first = int(pages.starts[0]) if pages else 0
        self._taken = np.zeros(int(pages.stops[-1]) - self._first if pages else 0, np.bool_)
        self._batches: Iterator[PageSet] = iter(())
        self._lock = threading.Lock()
        self.count = pages.pages
        self.last_fetch_s = time.monotonic()

    def fetch(self, wanted: PageSet) -> list[int]:
        """Remove what is `wanted` and still in the set; gives the pages of `wanted` that ever were in it, to be sent."""
        self.last_fetch_s = time.monotonic()
        ours = [page for page in wanted.page_numbers().tolist() if page in self._pages]
        with self._lock:
            self._take(np.array(ours, np.int64))
        return ours

    def begin_push(self, recent: PageSet) -> None:
        """Order the set for `take_next`: those that are `recent` first."""
        first = self._pages & recent
        self._batches = itertools.chain(first.batches(PUSH_PAGES), (self._pages - first).batches(PUSH_PAGES))

    def take_next(self) -> PageSet:
        """Remove the next pages to push; empty when nothing is left."""
        with self._lock:
            for batch in self._batches:
                numbers = batch.page_numbers()
                left = self._take(numbers)
                if left.size:
                    return batch if left.size == numbers.size else PageSet.of_pages(left)
            return PageSet.empty()

    def _take(self, numbers: Int64s) -> Int64s:
        """Remove those of some pages of the set that are still in it; gives them."""
        left = numbers[~self._taken[numbers - self._first]]
        self._taken[left - self._first] = True
        self.count -= left.size
        return left


async def push(remaining: Remaining, recent: PageSet, streams: list[PageStream]) -> None:
    """Send what remains on all page connections until nothing is left, after the grace that the first faults are given."""
    latest_s = time.monotonic() + GRACE_S
    while (quiet_at_s := min(remaining.last_fetch_s + QUIET_S, latest_s)) > (now_s := time.monotonic()):
        await asyncio.sleep(quiet_at_s - now_s)
    await in_thread(remaining.begin_push, recent)

    async def drive(stream: PageStream) -> None:
        while batch := remaining.take_next():
            await stream.send_batch(batch)

    async with asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(drive(stream))


async def serve_faults(remaining: Remaining, faults: FrameStream, memory: Mapping) -> None:
    """Answer demand fetches until cancelled; raises LinkLost when the connection ends."""
    contents = memory.array.data
    words = memory.array.view(np.uint64).reshape(-1, PAGE_BYTES // 8)
    while True:
        request = await faults.expect(Fetch)
        for page in remaining.fetch(request.pages):
            single = PageSet.span(page, page + 1)
            if words[page].any():
                await faults.send(Pages(single), contents[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            else:
                await faults.send(ZeroPages(single))
