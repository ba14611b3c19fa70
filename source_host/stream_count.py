"""How many of a migration's page connections are at work: `--streams auto` finds it while it sends.

More of them carry more where one is bounded by its window, its losses or the CPU of its threads, and cost CPU where it is not: on
two CPUs a second one may gain half or nothing. So all are opened, one begins, and another joins as long as the last one that did
has brought a tenth. Whoever is not at work gives its turn away, and sends the round's marker when the round is over.

What is counted is what has left the sockets, so that a buffer that fills is not taken for speed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from pagefire.protocol.pages import PageSet

#: Page connections that `auto` opens.
AUTO_STREAMS = 4
#: What one more has to bring.
LEAST_GAIN = 1.1
#: For how long each number is watched.
WINDOW_S = 0.2


class StreamCount:
    """Gives out turns to the threads of several page connections, between `begin` and `end` of each round; any thread.

    `carried_bytes` counts what all of them have carried; `changed` is called when another number is at work, by the thread whose
    turn it was.
    """

    def __init__(
        self, connections: int, *, automatic: bool, carried_bytes: Callable[[], int], changed: Callable[[], None]
    ) -> None:
        self._connections = connections
        self._carried_bytes = carried_bytes
        self._changed = changed
        #: How many are at work.
        self.at_work = 1 if automatic else connections
        self._settled = not automatic
        self._turn = threading.Condition()
        self._over = True
        self._window: tuple[float, int] | None = None
        #: Bytes a second with one fewer at work; 0 where nothing was tried yet.
        self._before_bps = 0.0

    def begin(self) -> None:
        """A round begins: turns may be taken."""
        with self._turn:
            self._over, self._window = False, None

    def turns(self, index: int, chunks: Iterator[PageSet]) -> Iterator[PageSet]:
        """Give chunks to the connection of this index whenever it is its turn, until there is none left for anybody."""
        while self._wait(index):
            chunk = next(chunks, None)
            if chunk is None:
                break
            yield chunk
            self._judge(time.monotonic())
        self.end()

    def end(self) -> None:
        """Nothing is left to be sent, or a connection has failed: nobody waits for a turn any more. More than once does nothing."""
        with self._turn:
            self._over = True
            self._turn.notify_all()

    def _wait(self, index: int) -> bool:
        with self._turn:
            self._turn.wait_for(lambda: self._over or index < self.at_work)
            return index < self.at_work

    def _judge(self, now_s: float) -> None:
        """At the end of a window: has the last one to join brought enough?"""
        if self._settled:
            return
        with self._turn:
            carried_bytes = self._carried_bytes()
            if self._window is None:
                self._window = now_s, carried_bytes
                return
            began_s, began_bytes = self._window
            if now_s - began_s < WINDOW_S or self._settled:
                return
            bps = (carried_bytes - began_bytes) / (now_s - began_s)
            if bps >= LEAST_GAIN * self._before_bps:
                self._before_bps = bps
                self._settled = self.at_work == self._connections
                self.at_work += not self._settled
            else:
                self.at_work -= 1
                self._settled = True
            self._window = now_s, carried_bytes
            self._turn.notify_all()
        self._changed()
