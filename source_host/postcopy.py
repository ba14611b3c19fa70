"""After the resume: one set of remaining pages, pushed in the background and pulled on demand.

Each page leaves the set once, and is pushed or fetched. A fetch for a page that the push has taken already is answered all the same:
what was pushed may lie behind megabytes in the sockets' buffers (100 ms and more were measured), the memory here does not change any
more, and the destination takes a page's first copy and drops the other. Cost: one page on the wire for each such fault.
"""

from __future__ import annotations

import asyncio
import itertools
import threading

import numpy as np

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.messages import Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.frame_stream import FrameStream
from pagefire.source_host.page_stream import PageStream

#: Pages that one push takes at a time (1 MiB): what a fault may have to wait for behind it on the link.
PUSH_PAGES = 256
#: The push waits so long after the resume. Every vCPU's first transaction needs the few pages that it always writes, and those are
#: in the bitmap; fetched alone they take 0.2 ms each, behind a push that fills the link and both cores 2-5 ms (measured).
PUSH_GRACE_S = 0.005


class Remaining:
    """The pages that the destination still needs; every method is safe in any thread."""

    def __init__(self, pages: PageSet, recent: PageSet) -> None:
        """Hold `pages`; those of them that are `recent` are pushed first: what was written last is what the guest writes next."""
        self._all = pages
        first = pages & recent
        self._batches = itertools.chain(first.batches(PUSH_PAGES), (pages - first).batches(PUSH_PAGES))
        self._numbers = pages.page_numbers()
        self._left = np.ones(pages.pages, np.bool_)
        self._lock = threading.Lock()
        self.count = pages.pages

    def named(self, pages: PageSet) -> PageSet:
        """Give those pages that were ever in the set."""
        return pages & self._all

    def take(self, wanted: PageSet) -> PageSet:
        """Remove `wanted` from the set; gives those of them that were still in it."""
        with self._lock:
            return self._take(wanted)

    def take_next(self) -> PageSet:
        """Remove the next pages to push; empty when nothing is left."""
        with self._lock:
            for batch in self._batches:
                taken = self._take(batch)
                if taken:
                    return taken
            return PageSet.empty()

    def _take(self, wanted: PageSet) -> PageSet:
        numbers = wanted.page_numbers()
        places = np.searchsorted(self._numbers, numbers)
        known = places < self._numbers.size
        places, numbers = places[known], numbers[known]
        here = self._numbers[places] == numbers
        here &= self._left[places]
        self._left[places[here]] = False
        taken = PageSet.of_pages(numbers[here])
        self.count -= taken.pages
        return taken


async def push(remaining: Remaining, streams: list[PageStream]) -> None:
    """Send what remains on all page connections until nothing is left; begins `PUSH_GRACE_S` after the resume."""
    await asyncio.sleep(PUSH_GRACE_S)

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
        remaining.take(request.pages)
        for page in remaining.named(request.pages).page_numbers().tolist():
            single = PageSet.span(page, page + 1)
            if words[page].any():
                await faults.send(Pages(single), contents[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            else:
                await faults.send(ZeroPages(single))
