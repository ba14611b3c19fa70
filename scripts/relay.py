"""A link that can be cut, for tests and experiments: a relay between source and destination, for every connection of a migration.

What it forwards may be cut (both ends see the connection end), cut in one direction only (the bytes vanish, as behind a broken
cable or a firewall: nobody is told), stalled (nothing moves, both kernels go on answering keep-alives: a frozen tunnel), slowed to
a rate, and given back. Real sockets on loopback; threads, so that whoever uses it can stay a plain function.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from types import TracebackType

_CHUNK_BYTES = 1 << 18


class Relay:
    """Listens on `port` while its context lasts and forwards to `target_port`, both on 127.0.0.1."""

    def __init__(self, target_port: int, bytes_per_s: float | None = None) -> None:
        self.target_port = target_port
        self._bytes_per_s = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        #: Connections that have been made through it.
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._refusing = False
        self._stalled = False
        self._swallowed: set[str] = set()
        self._ended = False
        self._due_s = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # -- what is done to the link -----------------------------------------------------------------------------------------------

    def cut(self, *, for_good: bool = False) -> None:
        """End every connection at once; `for_good`: new ones are refused until `mend`."""
        with self._lock:
            self._refusing = for_good
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                _break(sock)

    def swallow(self, direction: str) -> None:
        """Let what goes `there` (to the destination) or `back` vanish; new connections carry nothing that way either."""
        self._swallowed.add(direction)

    def stall(self) -> None:
        """Forward nothing more, in neither direction, and close nothing."""
        self._stalled = True

    def mend(self) -> None:
        """Be a good link again. What was swallowed is gone, so the connections that it was taken from are cut."""
        damaged = bool(self._swallowed)
        self._swallowed.clear()
        self._stalled = self._refusing = False
        if damaged:
            self.cut()

    # -- forwarding ----------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._listener.settimeout(0.05)
        while not self._ended:
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            if self._refusing:
                _break(near)
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target_port), timeout=2.0)
            except OSError:
                _break(near)
                near.close()
                continue
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((near, far))
                self.connections += 1
            threading.Thread(target=self._connect, args=(near, far), daemon=True).start()

    def _connect(self, near: socket.socket, far: socket.socket) -> None:
        """Forward both ways until both have ended; only then nobody uses the sockets, and their numbers may be others'."""
        with near, far:
            back = threading.Thread(target=self._forward, args=(far, near, "back"), daemon=True)
            back.start()
            self._forward(near, far, "there")
            back.join()

    def _forward(self, here: socket.socket, there: socket.socket, direction: str) -> None:
        selector = selectors.DefaultSelector()
        with contextlib.suppress(OSError, ValueError), selector:
            selector.register(here, selectors.EVENT_READ)
            while not self._ended:
                # Looked at again behind the wait: it may have been stalled meanwhile.
                if not selector.select(0.05) or self._stalled:
                    time.sleep(0.005 if self._stalled else 0)
                    continue
                received = here.recv(_CHUNK_BYTES)
                if direction in self._swallowed:
                    if not received:
                        return
                    continue
                if not received:
                    there.shutdown(socket.SHUT_WR)
                    return
                self._wait_turn(len(received))
                there.sendall(received)

    def _wait_turn(self, size_bytes: int) -> None:
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._due_s = max(self._due_s, time.monotonic()) + size_bytes / self._bytes_per_s
            wait_s = self._due_s - time.monotonic()
        time.sleep(max(wait_s, 0))

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._thread.join()
        self._listener.close()
        self.cut()


def _break(sock: socket.socket) -> None:
    """End a connection as a cut does: who is on the other end is told; what was on its way is lost when it is closed."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
