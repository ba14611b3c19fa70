"""A few pages over HTTP, for a scraper: GET of a path, an answer, the end of the connection.

On the daemon's loop, not in a thread of its own: there an answer is made of one consistent state without a lock, and a thread
beside the switchover would take the interpreter from it, 0.1 ms at a time, when a scrape falls into a stun. Instead a scrape that
comes while a guest stands still waits until that is over, `LONGEST_HOLD_S` at most. What it costs then is an accepted connection.

Whoever reaches the port may read: there is nothing secret in an answer, and nothing can be changed. A caller has `PATIENCE_S` for
its request of `_HEAD_BYTES` at most, and so many may call at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

log = logging.getLogger("pagefire.http")

PATIENCE_S = 5.0
#: For how long a stun puts an answer off; a scraper's own patience is 10 s as a rule.
LONGEST_HOLD_S = 2.0
MAX_CALLERS = 16
_HEAD_BYTES = 8 << 10
_HOLD_STEP_S = 0.02
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


#: Makes a reply, given what the caller accepts.
Answer = Callable[[str], Reply]


class HttpAnswers:
    """Answers on `listener`, which it owns, from `start` to `close`; `busy` tells whether this is no moment for an answer."""

    def __init__(self, listener: socket.socket, answers: Mapping[str, Answer], busy: Callable[[], bool]) -> None:
        self._listener = listener
        self._answers = answers
        self._busy = busy
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._converse, sock=self._listener, limit=_HEAD_BYTES)

    async def close(self) -> None:
        """Stop answering, and drop whoever still asks."""
        if self._server is not None:
            self._server.close()
        for caller in self._callers:
            caller.cancel()
        self._listener.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._callers) < MAX_CALLERS:
                self._callers.add(task)
                async with asyncio.timeout(PATIENCE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                await self._wait_for_a_moment()
                async with asyncio.timeout(PATIENCE_S):
                    writer.write(self._reply_to(head))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        except asyncio.CancelledError:
            # By `close`; passed on, asyncio's streams would log it as a failure.
            log.debug("caller dropped")
        finally:
            self._callers.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _wait_for_a_moment(self) -> None:
        until_s = time.monotonic() + LONGEST_HOLD_S
        while self._busy() and time.monotonic() < until_s:
            await asyncio.sleep(_HOLD_STEP_S)

    def _reply_to(self, head: bytes) -> bytes:
        request, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _coded(Reply(400, b"HTTP/1.1 is spoken here\n"))
        if method not in ("GET", "HEAD"):
            return _coded(Reply(405, b"GET is answered here\n"))
        answer = self._answers.get(target.partition("?")[0])
        if answer is None:
            known = ", ".join(self._answers)
            return _coded(Reply(404, f"there are {known}\n".encode()), head_only=method == "HEAD")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return _coded(answer(headers.get("accept", "")), head_only=method == "HEAD")


def _coded(reply: Reply, *, head_only: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}\r\nContent-Type: {reply.content_type}\r\n"
        f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if head_only else reply.body)
