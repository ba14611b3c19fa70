"""A connection's bytes on an asyncio loop: messages over one wire whose socket does not block.

Reads exactly what the protocol core wants, never a byte more, so that after the greeting the wire can be given to a thread
that reads payloads straight into guest memory (`detach`). One task reads, one writes. A read or write that was cancelled or
failed half-way leaves the stream in an unknown state: close it, never resync.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TypeVar

from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.errors import Cancelled, LinkLost, PagefireError, PeerRefused, RemoteProtocolError
from pagefire.protocol.frames import Check
from pagefire.protocol.messages import Alive, Failure, Message
from pagefire.protocol.state import Phase, Side
from pagefire.protocol.transport.security import CallerSecurity
from pagefire.protocol.transport.tls import NotTls
from pagefire.protocol.transport.wire import Wire

M = TypeVar("M", bound=Message)

#: When a silent peer is declared lost (tcp(7)).
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, SILENCE_S = 10, 5, 30
#: How long a refused peer is given to read why.
HANG_UP_S = 1.0
#: Of who has no keys, and was not told to do without.
PLAIN_ON_LOOPBACK = CallerSecurity()


class FrameStream:
    """One connection: a wire and the protocol core that says what may pass."""

    def __init__(self, wire: Wire, connection: Connection) -> None:
        sock = wire.sock
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that lost power says nothing: the kernel asks it after 10 s of silence, and gives up 30 s after unanswered bytes.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)
        self.wire = wire
        self.connection = connection
        self.sent_bytes = 0
        #: For how long `receive` waits without a single byte before it calls the link lost; None: for ever.
        self.silence_s: float | None = None
        self._writing = asyncio.Lock()
        self._watching: asyncio.AbstractEventLoop | None = None
        self._readable: asyncio.Future[None] | None = None
        self._check: Check | None = None

    @property
    def sock(self) -> socket.socket:
        return self.wire.sock

    async def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """Write a message and its payload in one go; raises LinkLost, and LocalProtocolError when it may not be sent now.

        The payload must not change any more. Where the peer had refused the connection by means of the wire, that is raised.
        """
        async with self._writing:
            head = self.connection.send(message, len(payload), [payload])
            try:
                for piece in self.wire.sealed(head, payload):
                    await asyncio.get_running_loop().sock_sendall(self.sock, piece)
                    self.sent_bytes += len(piece)
            except OSError as error:
                if said := self.wire.last_words():
                    raise said from error
                raise LinkLost(f"sending {type(message).__name__} failed", error.strerror or str(error)) from error

    async def receive(self) -> Arrival:
        """Wait for the next message but `Alive`; its payload is still on the stream. Raises LinkLost, RemoteProtocolError."""
        while True:
            received = await self._read(self.connection.wanted)
            if not received:
                self.connection.end_of_stream()
                raise LinkLost("the peer closed the connection")
            arrival = self.connection.receive(received)
            if arrival is not None and not isinstance(arrival.message, Alive):
                self._check = arrival.check
                return arrival

    async def stay_alive(self, peer_silence_s: float) -> None:
        """Say `Alive` four times as often as the peer needs it, until cancelled or the connection has broken.

        The kernel's own keep-alive is not enough: a tunnel, a proxy or a stopped process answers it for a peer that is gone.
        """
        with contextlib.suppress(LinkLost):
            while True:
                await asyncio.sleep(peer_silence_s / 4)
                await self.send(Alive())

    async def receive_payload(self, size_bytes: int) -> bytes:
        """Read the payload of the message that has just been received; raises RemoteProtocolError when either was damaged."""
        payload = bytearray(size_bytes)
        view = memoryview(payload)
        while view:
            count = await self._read_into(view)
            if not count:
                raise LinkLost("the peer closed the connection in the middle of a payload")
            view = view[count:]
        if self._check is not None:
            self._check.add(payload)
            self._check.verify()
        return bytes(payload)

    async def expect(self, kind: type[M], timeout_s: float | None = None) -> M:
        """Wait for one message of this kind; a Failure of the peer becomes PeerRefused, silence LinkLost."""
        try:
            async with asyncio.timeout(timeout_s):
                message = (await self.receive()).message
        except TimeoutError:
            raise LinkLost(f"no {kind.__name__} within {timeout_s:g} s", "the peer is silent") from None
        if isinstance(message, Failure):
            raise refusal(message)
        if not isinstance(message, kind):
            raise RemoteProtocolError(f"{kind.__name__} expected", f"{type(message).__name__} came")
        return message

    def detach(self) -> Wire:
        """Give the wire away, its socket in blocking mode, with what was sent in its count; the stream is of no more use."""
        self.stop_watching()
        self.wire.sent_bytes += self.sent_bytes
        self.sock.setblocking(True)
        return self.wire

    def close(self) -> None:
        """Close at once; whoever waits to receive gets LinkLost."""
        self.stop_watching()
        if self._readable is not None and not self._readable.done():
            self._readable.set_exception(LinkLost("the connection was closed here"))
        self.wire.close()

    async def _read(self, limit: int) -> bytes:
        while True:
            try:
                return self.wire.receive(limit)
            except BlockingIOError:
                await self._wait_readable()

    async def _read_into(self, view: memoryview) -> int:
        while True:
            try:
                return self.wire.receive_into(view)
            except BlockingIOError:
                await self._wait_readable()

    async def _wait_readable(self) -> None:
        """Wait until there is something to read.

        The loop goes on watching the socket from one wait to the next, and each read tries the socket first. `loop.sock_recv`
        begins to watch and ends it for every single read: about ten system calls and a turn of the loop, thrice for each message.
        """
        loop = asyncio.get_running_loop()
        if self._watching is None:
            loop.add_reader(self.sock.fileno(), self._on_readable)
            self._watching = loop
        self._readable = loop.create_future()
        try:
            async with asyncio.timeout(self.silence_s):
                await self._readable
        except TimeoutError:
            raise LinkLost(
                f"the peer has been silent for {self.silence_s:g} s", "", "check that it runs, and the network between"
            ) from None
        finally:
            self._readable = None

    def _on_readable(self) -> None:
        if self._readable is None or self._readable.done():
            # Nobody waits: the loop would call again at once, for ever.
            self.stop_watching()
        else:
            self._readable.set_result(None)

    def stop_watching(self) -> None:
        """Let somebody else wait on the socket."""
        if self._watching is not None:
            if not self._watching.is_closed():
                self._watching.remove_reader(self.sock.fileno())
            self._watching = None


async def hang_up(sock: socket.socket) -> None:
    """End our side of a connection and wait for the peer to end its, a second at most; closing is left to the caller.

    What the peer sent and nobody read would make the kernel reset the connection, and our last words could be lost with it.
    """
    with contextlib.suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(HANG_UP_S):
            while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
                pass


def refusal(failure: Failure) -> PagefireError:
    """Turn the peer's Failure into our exception, in the peer's words."""
    error = PeerRefused(_one_line(failure.what), _one_line(failure.why), _one_line(failure.do))
    if failure.outcome == "cancelled":
        error.exit_code = Cancelled.exit_code
    return error


def _one_line(text: str) -> str:
    """Leave nothing in a text that could forge a line of the peer's log or steer its terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:500]


def describe_failure(error: BaseException, outcome: str = "failed") -> Failure:
    """Turn our exception into the message that tells the peer."""
    if isinstance(error, PagefireError):
        return Failure(outcome, error.what, error.why, error.do)
    return Failure(outcome, "the peer failed unexpectedly", f"{type(error).__name__}: {error}", "read its log")


async def connect(
    host: str, port: int, connection: Connection, timeout_s: float, security: CallerSecurity = PLAIN_ON_LOOPBACK
) -> FrameStream:
    """Open a TCP connection, encrypted where it has to be.

    Raises LinkLost that says who is not listening, PeerRefused by the peer or of the peer, UsageError without keys that it takes.
    """
    loop = asyncio.get_running_loop()
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            failure: OSError | None = None
            for family, kind, number, _, address in addresses:
                security.encrypts(str(address[0]))
                sock = socket.socket(family, kind, number)
                sock.setblocking(False)
                try:
                    _choose_congestion_control(sock, str(address[0]))
                    await loop.sock_connect(sock, address)
                    return FrameStream(await security.secured(sock, str(address[0])), connection)
                except NotTls as answer:
                    try:
                        raise await _plain_answer(sock, answer.said) from None
                    finally:
                        sock.close()
                except OSError as error:
                    sock.close()
                    failure = error
                except BaseException:
                    sock.close()
                    raise
            raise failure or OSError("no address")
    except TimeoutError:
        raise LinkLost(
            f"no answer from {where} within {timeout_s:g} s", "", "check the address and the firewall"
        ) from None
    except socket.gaierror as error:
        raise LinkLost(f"cannot resolve {host}", error.strerror or str(error), "check the host's name") from error
    except OSError as error:
        raise LinkLost(
            f"cannot connect to {where}",
            error.strerror or str(error),
            "start `pagefire dest` there, or check the address",
        ) from error


async def _plain_answer(sock: socket.socket, said: bytes) -> PagefireError:
    """Read why a peer that was called by TLS answers in plaintext: a pagefire says so by a Failure, anybody else is named.

    Nothing authenticates it, so it is believed for one thing only: that there is no connection.
    """
    connection = Connection(Side.SOURCE)
    connection.phase = Phase.JOINING
    try:
        while said:
            wanted = connection.wanted
            arrival = connection.receive(said[:wanted])
            if arrival is not None and isinstance(arrival.message, Failure):
                return refusal(arrival.message)
            said = said[wanted:] or await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
    except PagefireError as error:
        return error
    except OSError as error:
        return LinkLost("the peer does not speak TLS", error.strerror or str(error), "check host and port")
    return LinkLost("the peer does not speak TLS", "it closed the connection", "check host and port")


def listen(host: str, port: int, option: str = "--listen") -> socket.socket:
    """Open a listening socket, which `option` asked for; raises PagefireError when the port is taken."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as on_failure:
            sock = on_failure.enter_context(socket.socket(family, kind, number))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _choose_congestion_control(sock, str(address[0]))
            sock.bind(address)
            sock.listen(64)
            on_failure.pop_all()
    except OSError as error:
        raise PagefireError(
            f"cannot listen on {host}:{port}",
            error.strerror or str(error),
            f"choose another port with {option} HOST:PORT",
        ) from error
    sock.setblocking(False)
    return sock


def _choose_congestion_control(sock: socket.socket, address: str) -> None:
    """Take cubic on loopback, else leave the system's choice.

    Loopback has no bottleneck to model, and bbr was the slower one there (measured, bare sockets: one stream 4 GB/s with
    bbr, 6 with cubic, same bytes, alternating). The report names what was used.
    """
    if address.startswith("127.") or address == "::1":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
