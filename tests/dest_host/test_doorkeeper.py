"""Who calls a destination: limits on number and time, and that each refusal costs the caller and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest

from pagefire.dest_host.doorkeeper import MAX_SESSIONS, Doorkeeper, WaitingRoom, require_room
from pagefire.protocol import messages as m
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import PeerRefused
from pagefire.protocol.state import Role, Side
from pagefire.protocol.transport import tls
from pagefire.protocol.transport.frame_stream import FrameStream, connect, listen
from pagefire.protocol.transport.security import CallerSecurity, ListenerSecurity
from tests.protocol.golden.conversation import simple
from tests.support.secured import KeyRing
from tests.support.waiting import eventually

PATIENCE_S = 20.0


def test_the_oldest_of_the_busiest_address_goes() -> None:
    room: WaitingRoom[str] = WaitingRoom(4)
    assert [room.enter(name, name[0]) for name in ("a1", "b1", "b2", "c1")] == [None] * 4
    assert room.enter("c2", "c") == "b1"
    assert "b1" not in room
    # One address with many pushes out its own, whoever else waits longer.
    assert room.enter("c3", "c") == "c1"
    assert room.enter("c4", "c") == "c2"
    room.leave("a1")
    room.leave("a1")
    assert room.enter("d1", "d") is None
    assert len(room) == 4


def test_sessions_are_bounded() -> None:
    require_room(MAX_SESSIONS - 1)
    with pytest.raises(PeerRefused, match=f"has {MAX_SESSIONS} guests"):
        require_room(MAX_SESSIONS)


class Place:
    """A listening reception and what it let in."""

    def __init__(self, reception: Doorkeeper) -> None:
        self.listener = listen("127.0.0.1", 0)
        self.port = int(self.listener.getsockname()[1])
        self.admitted: list[FrameStream] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._reception = reception
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            sock, address = await self._reception.accept(self.listener)
            self.tasks.add(asyncio.create_task(self._reception.receive(sock, address, self._admit)))

    async def _admit(self, stream: FrameStream, hello: m.Hello, peer: str) -> None:
        self.admitted.append(stream)
        if hello.role == "fault":
            raise PeerRefused("no such session")
        await stream.send(simple(m.Welcome))

    def stranger(self, said: bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.sendall(said)
        sock.settimeout(PATIENCE_S)
        return sock

    async def greet(self, security: CallerSecurity | None = None, role: Role = Role.CONTROL) -> m.Welcome:
        stream = await connect(
            "127.0.0.1", self.port, Connection(Side.SOURCE, role), PATIENCE_S, security or CallerSecurity()
        )
        try:
            await stream.send(simple(m.Hello, role))
            return await stream.expect(m.Welcome, PATIENCE_S)
        finally:
            stream.close()

    async def close(self) -> None:
        for task in (self._accepting, *self.tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self.tasks, return_exceptions=True)
        self.listener.close()
        for stream in self.admitted:
            stream.close()


@contextlib.asynccontextmanager
async def opened(reception: Doorkeeper) -> AsyncIterator[Place]:
    place = Place(reception)
    try:
        yield place
    finally:
        await place.close()


def answers(sock: socket.socket) -> m.Message:
    """Read what a caller in plaintext is told."""
    connection = Connection(Side.SOURCE)
    connection.send(simple(m.Hello))
    while received := sock.recv(connection.wanted):
        if (arrival := connection.receive(received)) is not None:
            return arrival.message
    raise EOFError


async def test_who_says_nothing_or_not_enough_is_dropped_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """A slow-loris: one that goes on sending a byte now and then gets no more time than one that is silent."""
    with caplog.at_level(logging.WARNING):
        async with opened(Doorkeeper(ListenerSecurity(), authenticate_s=0.3)) as place:
            silent, slow = place.stranger(), place.stranger(b"PGF2")
            for byte in b"\x01\0\0\0":
                await asyncio.sleep(0.05)
                slow.send(bytes([byte]))
            for sock in (silent, slow):
                answer = await asyncio.to_thread(answers, sock)
                assert isinstance(answer, m.Failure)
                assert answer.what == "the caller did not say who it is within 0.3 s"
                sock.close()
            await eventually(lambda: all(task.done() for task in place.tasks))
    assert caplog.text.count("did not say who it is") == 2


async def test_a_stalled_tls_handshake_is_dropped_in_time(ring: KeyRing) -> None:
    security = ListenerSecurity(tls.context(ring.good, server=True))
    async with opened(Doorkeeper(security, authenticate_s=0.2)) as place:
        with place.stranger(b"\x16\x03\x01\x02\x00\x01") as sock:
            await asyncio.to_thread(sock.recv, 1000)
            await eventually(lambda: all(task.done() for task in place.tasks))


async def test_strangers_push_out_strangers_and_keep_nobody_out(
    ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    security = ListenerSecurity(tls.context(ring.good, server=True))
    callers = CallerSecurity(tls.context(ring.also_good, server=False), always=True)
    with caplog.at_level(logging.WARNING):
        async with opened(Doorkeeper(security, most=4)) as place:
            strangers = [place.stranger(said) for said in (b"", b"P", b"\x16", b"\x16\x03\x01", b"", b"")]
            await eventually(lambda: len(place.tasks) == 6)
            assert (await place.greet(callers)).session
            assert (await place.greet()).session
            # Two were pushed out when the strangers came; the first of the others took the place of one, and gave it up again.
            await eventually(lambda: caplog.text.count("too many callers") == 3)
            for sock in strangers[:3]:
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(sock.recv, 1) == b""
            for sock in strangers:
                sock.close()


async def test_a_plain_caller_is_told_although_it_said_more_than_was_read(ring: KeyRing) -> None:
    """Without reading on, its kernel would be told of a reset, and the answer be lost."""
    async with opened(Doorkeeper(ListenerSecurity())) as place:
        with place.stranger(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n" * 100) as sock:
            answer = await asyncio.to_thread(answers, sock)
            assert isinstance(answer, m.Failure)
            assert answer.what == "the peer is not a pagefire daemon"


async def test_who_is_not_admitted_is_told(ring: KeyRing) -> None:
    async with opened(Doorkeeper(ListenerSecurity())) as place:
        with pytest.raises(PeerRefused, match="no such session"):
            await place.greet(role=Role.FAULT)


async def test_accepting_outlasts_a_lack_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, failures = asyncio.get_running_loop(), [OSError(24, "Too many open files")]
    real = loop.sock_accept

    async def accept(listener: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return await real(listener)

    monkeypatch.setattr(loop, "sock_accept", accept)
    async with opened(Doorkeeper(ListenerSecurity())) as place:
        assert (await place.greet()).session
    assert not failures
