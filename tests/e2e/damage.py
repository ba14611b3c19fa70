"""Between two daemons: a relay of TCP connections that may change one byte on its way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Relays each connection to a destination. One byte of the `damaged` connection is changed, towards the destination."""

    def __init__(self, to: tuple[str, int], damaged: int, at_byte: int) -> None:
        self._to, self._damaged, self._at_byte = to, damaged, at_byte
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads[0].start()

    def _accept(self) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
                self._socks += [near, far]
                at_byte = self._at_byte if number == self._damaged else -1
                for one, other, at in ((near, far, at_byte), (far, near, -1)):
                    thread = threading.Thread(target=_pass_on, args=(one, other, at))
                    self._threads.append(thread)
                    thread.start()
                number += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._socks):
            sock.close()


def _pass_on(one: socket.socket, other: socket.socket, at_byte: int) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while received := bytearray(one.recv(1 << 16)):
            if passed <= at_byte < passed + len(received):
                received[at_byte - passed] ^= 0x10
            passed += len(received)
            other.sendall(received)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def damaging(port: int, connection: int, at_byte: int) -> Iterator[str]:
    """Relay to a port of 127.0.0.1 and change one byte of a connection, by order of opening; gives HOST:PORT to call."""
    relay = Relay(("127.0.0.1", port), connection, at_byte)
    try:
        yield relay.address
    finally:
        relay.close()
