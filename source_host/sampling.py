"""A sample of a guest's pages that is sent as a round: from all over its memory, for so long and no longer.

What a round's first pages are says little of the rest: memory begins with what was filled first, and where half of it is zero or
compresses well that half may come last. So granules are given out by multiples of the golden ratio: wherever the time ends, what
was sent lies evenly over all of it. A granule is sent whole, which a long run of pages is sent as well (2 MiB by 2 MiB).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np

from pagefire.protocol.pages import GRANULE_PAGES, PageSet
from pagefire.source_host.outstanding import CHUNK

_GOLDEN = (5**0.5 - 1) / 2


class Sample:
    """Gives out pages chunk by chunk until the time or the set has come to its end. Any thread; streams share it."""

    def __init__(self, pages: PageSet, streams: int, lasts_s: float, most_share: float = 1.0) -> None:
        """Take at most so much of `pages`; `lasts_s` counts from now."""
        pieces = pages.steps(GRANULE_PAGES)
        granules = pieces.starts // GRANULE_PAGES
        begins = np.append(True, granules[1:] != granules[:-1]) if granules.size else np.zeros(0, bool)
        rank = np.argsort(np.argsort(np.arange(int(begins.sum())) * _GOLDEN % 1.0))
        turn = np.argsort(rank[np.cumsum(begins) - 1], kind="stable") if granules.size else granules
        self._starts, self._counts = pieces.starts[turn], pieces.counts[turn]
        self._ends = np.cumsum(self._counts)
        self._next_piece = 0
        self._most_pages = most_share * pages.pages
        self._share_pages = max(int(self._most_pages / streams), 1)
        self._until_s = time.monotonic() + lasts_s
        self._lock = threading.Lock()
        #: What was given out.
        self.sent = PageSet.empty()

    def chunks(self) -> Iterator[PageSet]:
        """Give chunk after chunk, to be sent at once."""
        size_pages = CHUNK.least_pages
        while chunk := self._next(min(size_pages, self._share_pages)):
            began_s = time.monotonic()
            yield chunk
            size_pages = CHUNK.next(chunk.pages, time.monotonic() - began_s)

    def _next(self, most_pages: int) -> PageSet:
        with self._lock:
            first = self._next_piece
            given_pages = int(self._ends[first - 1]) if first else 0
            if first >= self._starts.size or given_pages >= self._most_pages or time.monotonic() >= self._until_s:
                return PageSet.empty()
            # One piece at least.
            last = max(int(self._ends.searchsorted(given_pages + most_pages, "right")), first + 1)
            self._next_piece = last
            starts = self._starts[first:last]
            chunk = PageSet.of_runs(starts, starts + self._counts[first:last])
            self.sent |= chunk
            return chunk
