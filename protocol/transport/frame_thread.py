"""A thread that takes what comes on one connection, message by message, until the connection ends.

For what must not wait for a loop's turn: pages, which come faster than a loop takes them, and faults, which vCPUs wait for.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.errors import LinkLost
from pagefire.protocol.transport.wire import Wire


class FrameThread(ABC):
    """Calls `_take` for each message, in its thread, and at the end `on_end(error)`. Owns the wire from `start` to `abort`."""

    #: The connection, in the words of an error.
    WHAT = "a connection"

    def __init__(self, wire: Wire, connection: Connection, on_end: Callable[[BaseException], object]) -> None:
        self._wire = wire
        self._connection = connection
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def shut_down(self) -> None:
        """End the connection under whoever uses it, who gets LinkLost; `abort` follows. Any thread."""
        self._wire.shut_down()

    def abort(self) -> None:
        """End the connection under the thread, wait until it has noticed, and close it then. More than once does nothing."""
        self.shut_down()
        self._thread.join()
        self._wire.close()

    def _begin(self) -> None:  # noqa: B027
        """Do what comes before the first message, in the thread: nothing, unless there is something."""

    @abstractmethod
    def _take(self, arrival: Arrival) -> None:
        """Take one message, and read its payload off the wire. Raises what ends the connection."""

    def _run(self) -> None:
        try:
            self._begin()
            while True:
                self._take(self._next())
        except BaseException as error:  # the thread's only exit: whoever owns it decides what it means
            self._on_end(error)

    def _next(self) -> Arrival:
        while True:
            received = self._wire.receive(self._connection.wanted)
            if not received:
                raise LinkLost(f"the peer closed {self.WHAT}")
            arrival = self._connection.receive(received)
            if arrival is not None:
                return arrival
