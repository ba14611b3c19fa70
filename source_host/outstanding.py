"""What of a round is still worth sending, and in which order: the streams take chunk after chunk, and the round learns as it goes.

A page that is written while it waits for its turn has to be sent again whatever happens: sent now, it would be sent twice. So what
the guest writes while a round lasts is collected now and then and taken out of it: it goes in a later round, or after the resume.
Where a link is slower than the guest writes, that is most of the working set. And where something was written, more will be:
granules in which this round has seen a write come last.

A round that is over before the first look costs what it did: its pages are cut into chunks, in ascending order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from pagefire.protocol.pages import GRANULE_PAGES, PageSet
from pagefire.source_host.batch_size import BatchSize

#: What a stream takes at a time: 1 to 32 MiB, more only makes what is known older. A fast link takes the most: with less, streams
#: wait for each other's turn (trace_install.CHUNK_PAGES).
CHUNK = BatchSize(256, 16 * GRANULE_PAGES, 0.05)
#: How long a round goes on between two looks. Each look protects anew what was written since the last: a fire (half a microsecond)
#: for each page that is written in both times.
LOOK_S = 0.5


class Outstanding:
    """The pages of one round that nobody has begun to send. Any thread; its streams share it, each with its own iterator."""

    def __init__(self, pages: PageSet, streams: int) -> None:
        # A small round is divided evenly.
        self._share_pages = max(-(-pages.pages // streams), 1)
        self._lock = threading.Lock()
        self._pages = pages.pages
        self._limit = int(pages.stops[-1]) if pages else 0
        #: What was written in this round, by whole granules, and what is left outside of and inside them.
        self._warm_granules = PageSet.empty()
        self._cold, self._warm = pages, PageSet.empty()
        self._taken = 0
        #: Pages that were written while they waited, and were not sent.
        self.skipped_pages = 0
        #: What nobody had begun to send when the round was stopped.
        self.given_back = PageSet.empty()

    @property
    def to_send_pages(self) -> int:
        """Pages that were or will be sent, as it stands now."""
        return self._pages - self.skipped_pages - self.given_back.pages

    def chunks(self) -> Iterator[PageSet]:
        """Give chunk after chunk, to be sent at once, until nothing is left."""
        size_pages = CHUNK.least_pages
        while chunk := self._next(min(size_pages, self._share_pages)):
            began_s = time.monotonic()
            yield chunk
            size_pages = CHUNK.next(chunk.pages, time.monotonic() - began_s)

    def rewritten(self, pages: PageSet) -> None:
        """Leave out what the guest has written, and put last what lies beside it."""
        with self._lock:
            left = self._left()
            still = left - pages
            self.skipped_pages += left.pages - still.pages
            self._warm_granules |= pages.rounded(GRANULE_PAGES, self._limit)
            self._warm = still & self._warm_granules
            self._cold, self._taken = still - self._warm_granules, 0

    def stop(self) -> None:
        """Give out nothing more: what nobody has begun to send is given back. More than once does nothing."""
        with self._lock:
            self.given_back |= self._left()
            self._cold = self._warm = PageSet.empty()
            self._taken = 0

    def _left(self) -> PageSet:
        return self._cold.part(self._taken, self._cold.pages) | self._warm

    def _next(self, most_pages: int) -> PageSet:
        with self._lock:
            if self._taken >= self._cold.pages:
                self._cold, self._warm, self._taken = self._warm, PageSet.empty(), 0
            chunk = self._cold.part(self._taken, self._taken + most_pages)
            self._taken += chunk.pages
            return chunk


class Looks:
    """How fast the guest writes, by what the looks at one round found; the round begins when this is made."""

    def __init__(self) -> None:
        self._began_s = self._last_s = time.monotonic()
        #: Different pages a second between two looks: of the last ones that were at least `LOOK_S` apart, or of the first.
        self.dirty_pages_per_s = 0.0
        self._looked = False

    @property
    def after_s(self) -> float | None:
        """When the last look was, since the beginning of the round; None where there was none yet."""
        return self._last_s - self._began_s if self._looked else None

    def note(self, pages: int) -> None:
        """Take in how many pages a look found."""
        now_s = time.monotonic()
        since_s, self._last_s = now_s - self._last_s, now_s
        if since_s >= LOOK_S or not self._looked:
            self.dirty_pages_per_s = pages / max(since_s, 1e-6)
        self._looked = True
