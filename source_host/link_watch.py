"""What one page connection carries, and how quick pages are in each way in which they go: seen by its thread as it sends batches.

One for all that packs on a connection: whole pages and differences take turns, and what the link carries is the same for both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pagefire.protocol.compression import LinkSpeed, Paces, Way
from pagefire.protocol.transport.wire import Wire


class LinkWatch:
    """Used by the connection's thread; `bps` is read by any."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._speed = LinkSpeed()
        self.paces = Paces()
        #: What it was last seen to carry, in bytes a second; None: not known.
        self.bps: float | None = None

    def begin(self) -> None:
        """Sending begins, after a pause or for the first time."""
        self._speed.begin()
        self.paces.begin()

    def look(self, now_s: float) -> float | None:
        """Give what it carries; None where that is not known, or not any more."""
        bps = self._speed.bps(now_s)
        if bps is not None:
            self.bps = bps
        return bps

    @contextmanager
    def sending(self, way: Way, share: float) -> Iterator[None]:
        """Watch the link while a batch is sent within, of which `share` is left."""
        self._speed.before_batch(time.perf_counter(), self._wire.sent_bytes, self._wire.queued_bytes())
        self.paces.before_batch(self._wire.sent_bytes, way)
        yield
        ended_s = time.perf_counter()
        sent_bytes, queued_bytes = self._wire.sent_bytes, self._wire.queued_bytes()
        self._speed.after_batch(ended_s, sent_bytes, queued_bytes, raw=way is Way.RAW)
        self.paces.after_batch(ended_s, sent_bytes, queued_bytes, share)
