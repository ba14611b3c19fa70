"""What may answer, or call, instead of a pagefire: servers that a test gives a port, each until its context ends."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from pagefire.protocol.connection import Connection
from pagefire.protocol.messages import Hello, Message, Welcome
from pagefire.protocol.negotiation import CAPABILITIES, VERSIONS
from pagefire.protocol.state import Side

Conversation = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(converse: Conversation) -> Iterator[int]:
    """Serve every connection with `converse`, one at a time, and close it afterwards; gives the port on 127.0.0.1."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # the listener is shut down
            while True:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    converse(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@contextlib.contextmanager
def http_server() -> Iterator[int]:
    """Run Python's own HTTP server as a process."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline().split(" port ")[1].split()[0])
        finally:
            server.terminate()


def answers_http(sock: socket.socket) -> None:
    """Refuse whatever comes as most HTTP servers do, without waiting for a line."""
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def answers_noise(sock: socket.socket) -> None:
    sock.recv(4096)
    sock.sendall(bytes(range(256)))


def speaks_tls(sock: socket.socket) -> None:
    """Be a TLS server; what calls is no TLS client, so the handshake fails."""
    with contextlib.suppress(OSError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(sock, server_side=True).close()


def says_nothing(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def hangs_up(sock: socket.socket) -> None:
    sock.recv(16)


def welcoming(version: int = VERSIONS[0], capabilities: tuple[str, ...] = CAPABILITIES) -> Conversation:
    """Be a destination of another release: by the real protocol core, but with this version and these capabilities."""

    def converse(sock: socket.socket) -> None:
        connection = Connection(Side.DESTINATION)
        hello = receive(sock, connection)
        assert isinstance(hello, Hello)
        sock.sendall(connection.send(Welcome(version, list(capabilities), bytes(16), bytes(16), "fake", "fake", 10.0)))
        says_nothing(sock)

    return converse


def hello(versions: tuple[int, ...] = VERSIONS, capabilities: tuple[str, ...] = CAPABILITIES) -> Hello:
    """Make the first message of a source of another release."""
    return Hello(list(versions), list(capabilities), "control", 0, b"", b"", "fake", "fake0", 10.0)


def receive(sock: socket.socket, connection: Connection) -> Message:
    """Read one message; EOFError when there is none."""
    while True:
        received = sock.recv(connection.wanted)
        if not received:
            raise EOFError
        arrival = connection.receive(received)
        if arrival is not None:
            return arrival.message


def call(port: int, first: Message) -> Message:
    """Call a destination as a source would, with this first message; gives its answer."""
    connection = Connection(Side.SOURCE)
    with socket.create_connection(("127.0.0.1", port), timeout=10.0) as sock:
        sock.sendall(connection.send(first))
        return receive(sock, connection)
