"""The few pages over HTTP: what is answered to whom, what malformed and slow callers get, and when an answer waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from pagefire.protocol.transport import http_answers
from pagefire.protocol.transport.frame_stream import listen
from pagefire.protocol.transport.http_answers import HttpAnswers, Reply


class Place:
    """A server with two pages, on a port of its own."""

    def __init__(self) -> None:
        self.busy = False
        self.accepted: list[str] = []
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.server = HttpAnswers(
            self.listener, {"/page": self.page, "/ill": lambda _: Reply(503, b"ill\n")}, self.is_busy
        )

    def page(self, accepted: str) -> Reply:
        self.accepted.append(accepted)
        return Reply(200, b"text\n")

    def is_busy(self) -> bool:
        return self.busy

    async def ask(self, request: bytes) -> tuple[str, bytes]:
        """Send bytes; gives the status line and the body."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(request)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            # Closed before it was read.
            answer = b""
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0].decode(), body


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    one = Place()
    await one.server.start()
    yield one
    await one.server.close()


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        ("GET /page HTTP/1.1", "HTTP/1.1 200 OK", b"text\n"),
        ("GET /page?name=x HTTP/1.0", "HTTP/1.1 200 OK", b"text\n"),
        ("HEAD /page HTTP/1.1", "HTTP/1.1 200 OK", b""),
        ("GET /ill HTTP/1.1", "HTTP/1.1 503 Service Unavailable", b"ill\n"),
        ("GET /other HTTP/1.1", "HTTP/1.1 404 Not Found", b"there are /page, /ill\n"),
        ("POST /page HTTP/1.1", "HTTP/1.1 405 Method Not Allowed", b"GET is answered here\n"),
        ("GET /page", "HTTP/1.1 400 Bad Request", b"HTTP/1.1 is spoken here\n"),
        ("\x16\x03\x01", "HTTP/1.1 400 Bad Request", b"HTTP/1.1 is spoken here\n"),
    ],
)
async def test_what_is_asked_is_answered(place: Place, request_line: str, status: str, body: bytes) -> None:
    assert await place.ask(f"{request_line}\r\nHost: here\r\nAccept: text/plain\r\n\r\n".encode()) == (status, body)
    assert place.accepted == (["text/plain"] if "200" in status else [])


async def test_a_request_without_an_end_is_dropped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_answers, "PATIENCE_S", 0.05)
    assert await place.ask(b"GET /page HTTP/1.1\r\n") == ("", b"")


async def test_a_request_that_is_too_long_is_dropped(place: Place) -> None:
    with socket.create_connection(place.address) as caller:
        caller.setblocking(False)
        loop = asyncio.get_running_loop()
        with pytest.raises(OSError, match=r"[Rr]eset|[Pp]ipe"):  # noqa: PT012
            for _ in range(100):
                await loop.sock_sendall(caller, b"x" * 65_536)
                await asyncio.sleep(0.001)
    assert (await place.ask(b"GET /page HTTP/1.1\r\n\r\n"))[1] == b"text\n"


async def test_no_more_callers_than_are_allowed(place: Place) -> None:
    held = [await asyncio.open_connection(*place.address) for _ in range(http_answers.MAX_CALLERS)]
    await asyncio.sleep(0.05)
    assert await place.ask(b"GET /page HTTP/1.1\r\n\r\n") == ("", b"")
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.05)
    assert (await place.ask(b"GET /page HTTP/1.1\r\n\r\n"))[1] == b"text\n"


async def test_an_answer_waits_for_a_stun_to_end(place: Place) -> None:
    place.busy = True
    asked = asyncio.create_task(place.ask(b"GET /page HTTP/1.1\r\n\r\n"))
    await asyncio.sleep(0.1)
    assert not asked.done()
    assert not place.accepted
    place.busy = False
    assert (await asked)[1] == b"text\n"


async def test_a_stun_that_does_not_end_puts_off_no_answer_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_answers, "LONGEST_HOLD_S", 0.05)
    place.busy = True
    assert (await place.ask(b"GET /page HTTP/1.1\r\n\r\n"))[1] == b"text\n"
