"""Who calls: from a bare TCP connection to a greeted one, within limits on number and time.

Until a caller has said its Hello it is a stranger, whatever it holds back: its TLS, its greeting, half of a frame. Strangers are
bounded: a time for all of it, and a number. Where there is no room for another, the oldest stranger of the address that has most of
them goes, so that a host that opens connections without end pushes out its own. Each costs one socket and one task meanwhile, and
no migration waits for any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar

from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, PagefireError, PeerRefused
from pagefire.protocol.messages import Hello
from pagefire.protocol.state import Side
from pagefire.protocol.transport.frame_stream import FrameStream, describe_failure, hang_up
from pagefire.protocol.transport.security import ListenerSecurity, TlsFailed
from pagefire.protocol.transport.wire import Wire

log = logging.getLogger("pagefire.dest")

#: How long a caller may take for TLS and its Hello together.
AUTHENTICATE_S = 10.0
MAX_STRANGERS = 64
#: Guests that are here or on their way.
MAX_SESSIONS = 64
#: How long accepting rests where this process or host can have no more sockets.
_EXHAUSTED_S = 0.1

T = TypeVar("T")
#: Takes over a greeted connection; it is told who calls.
Admit = Callable[[FrameStream, Hello, str], Awaitable[None]]


class WaitingRoom(Generic[T]):
    """Strangers in the order in which they came, `most` at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[T, str] = {}

    def enter(self, stranger: T, address: str) -> T | None:
        """Let a stranger in; gives the one that has to go for it, which is no longer here."""
        gone = self._least_welcome() if len(self._waiting) >= self._most else None
        if gone is not None:
            del self._waiting[gone]
        self._waiting[stranger] = address
        return gone

    def leave(self, stranger: T) -> None:
        """The stranger is known now, or gone."""
        self._waiting.pop(stranger, None)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, stranger: T) -> bool:
        return stranger in self._waiting

    def _least_welcome(self) -> T:
        # Of addresses that have equally many, that of the oldest stranger: Counter keeps the order of arrival.
        (busiest, _), *_ = Counter(self._waiting.values()).most_common(1)
        return next(stranger for stranger, address in self._waiting.items() if address == busiest)


class Doorkeeper:
    """Greets who calls, by the listener's security, and hands over whoever may come in."""

    def __init__(
        self, security: ListenerSecurity, most: int = MAX_STRANGERS, authenticate_s: float = AUTHENTICATE_S
    ) -> None:
        self._security = security
        self._authenticate_s = authenticate_s
        self._strangers: WaitingRoom[asyncio.Task[Any]] = WaitingRoom(most)

    async def accept(self, listener: socket.socket) -> tuple[socket.socket, Any]:
        """Wait for the next caller; outlasts callers that left at once, and a lack of sockets."""
        while True:
            try:
                return await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                log.warning("accepting failed why=%s", error.strerror or error)
                await asyncio.sleep(_EXHAUSTED_S)

    async def receive(self, sock: socket.socket, address: Any, admit: Admit) -> None:
        """Find out who calls, within the limits, and let `admit` take it over; whoever is refused is told why. Owns the socket."""
        task, peer = asyncio.current_task(), f"{address[0]}:{address[1]}"
        assert task is not None
        if (pushed_out := self._strangers.enter(task, str(address[0]))) is not None:
            pushed_out.cancel()
        stream: FrameStream | None = None
        admitted = False
        try:
            try:
                async with asyncio.timeout(self._authenticate_s):
                    wire = await self._security.secured(sock, str(address[0]))
                    stream = FrameStream(wire, Connection(Side.DESTINATION))
                    hello = await stream.expect(Hello)
            except TimeoutError:
                raise LinkLost(f"the caller did not say who it is within {self._authenticate_s:g} s") from None
            self._strangers.leave(task)
            admitted = True
            await admit(stream, hello, peer)
        except Exception as error:
            log.warning("peer=%s refused why=%s", peer, error, exc_info=not isinstance(error, PagefireError))
            with _closing(stream, sock):
                await _refuse(sock, stream, error)
        except asyncio.CancelledError:
            if admitted:
                raise
            (stream or sock).close()
            if task in self._strangers:
                raise  # not pushed out: the daemon ends
            log.warning("peer=%s refused why=too many callers have not said who they are", peer)
        finally:
            self._strangers.leave(task)


@contextlib.contextmanager
def _closing(stream: FrameStream | None, sock: socket.socket) -> Iterator[None]:
    """Close a refused connection, whatever happens while the peer is told."""
    try:
        yield
    finally:
        (stream or sock).close()


async def _refuse(sock: socket.socket, stream: FrameStream | None, error: Exception) -> None:
    """Tell a caller why it may not come in, in a last frame where it understands one, and see to it that this arrives."""
    if not isinstance(error, TlsFailed):
        # Before there is a stream nothing has been read: what is said to it is said in plaintext, to TLS clients as well.
        teller = stream or FrameStream(Wire(sock), Connection(Side.DESTINATION))
        with contextlib.suppress(PagefireError, TimeoutError):
            async with asyncio.timeout(1.0):
                await teller.send(describe_failure(error))
    if stream is not None:
        stream.stop_watching()
    await hang_up(sock)


def require_room(sessions: int) -> None:
    """Raise PeerRefused where one guest more would be too many."""
    if sessions >= MAX_SESSIONS:
        raise PeerRefused(
            f"the destination has {sessions} guests, here or on their way",
            "it takes no more",
            "use another destination",
        )
