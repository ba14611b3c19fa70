"""The local control socket: one JSON object a line, request in, events and one answer out.

    request   {"op": NAME, ...}
    event     {"event": NAME, ...}        any number, while the operation goes on
    answer    {"result": {...}}  or  {"error": {"what", "why", "do", "exit_code"}}

Only for commands on the same machine and of the same user, or root: the socket is born 0600 in a directory that is 0700, and the
kernel is asked who calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from pagefire.protocol import credentials
from pagefire.protocol.errors import Cancelled, PagefireError, UsageError

log = logging.getLogger("pagefire.control")

Json = dict[str, Any]
Emit = Callable[[Json], None]
#: Does what one request asks, may emit events, gives the result.
Operation = Callable[[Json, Emit], Awaitable[Json]]

_LINE_LIMIT_BYTES = 64 << 20
_ERRORS: dict[int, type[PagefireError]] = {2: UsageError, 3: Cancelled}


class ControlServer:
    """Serves a daemon's operations to local commands until it is closed."""

    def __init__(self, path: Path, operations: Mapping[str, Operation]) -> None:
        self._path = path
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, for this user alone; raises PagefireError where the path cannot be had."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before bind: the file is born with these rights, without a moment in which others could connect.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(self._path))
        except OSError as error:
            listener.close()
            raise PagefireError(
                f"cannot listen at {self._path}", error.strerror or str(error), "choose another --runtime-dir"
            ) from error
        self._server = await asyncio.start_unix_server(self._converse, sock=listener, limit=1 << 20)

    async def close(self, patience_s: float = 1.0) -> None:
        """Stop listening, give answers under way `patience_s` to leave, then drop them."""
        if self._server is None:
            return
        self._server.close()
        if self._conversations:
            _, late = await asyncio.wait(self._conversations, timeout=patience_s)
            for task in late:
                task.cancel()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)

        def emit(event: Json) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(event).encode() + b"\n")

        try:
            request = await _read_request(reader)
            # After its request has been read: a caller that is refused while it still writes would see a broken pipe, not why.
            _require_own_user(writer)
            operation = self._operations.get(str(request.get("op")))
            if operation is None:
                raise UsageError(f"no operation {request.get('op')!r}", f"known: {', '.join(self._operations)}")
            emit({"result": await operation(request, emit)})
        except PagefireError as error:
            emit({"error": {"what": error.what, "why": error.why, "do": error.do, "exit_code": error.exit_code}})
        except Exception as error:
            # The daemon goes on, and the command is told: a connection that just ends would say that the daemon is gone.
            log.exception("operation failed", exc_info=error)
            why = f"{type(error).__name__}: {error}"
            emit(
                {"error": {"what": "the daemon failed unexpectedly", "why": why, "do": "read its log", "exit_code": 1}}
            )
        except asyncio.CancelledError:
            # By `close`: the command sees the connection end. Passed on, asyncio's streams would log it as a failure.
            log.debug("conversation dropped")
        finally:
            self._conversations.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _require_own_user(writer: asyncio.StreamWriter) -> None:
    """Raise PeerRefused for the command of another user."""
    # A socket object of our own: uvloop's gives no options.
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as peer:
        credentials.require_own_user(
            peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.UCRED_BYTES), os.getuid()
        )


async def _read_request(reader: asyncio.StreamReader) -> Json:
    try:
        request = json.loads(await reader.readline() or b"{}")
    except ValueError as error:  # no JSON, no UTF-8, or a line that is too long
        raise UsageError("the request is not a line of JSON", str(error)) from error
    if not isinstance(request, dict):
        raise UsageError("the request is not a JSON object", f"it is {type(request).__name__}")
    return request


def request(path: Path, op: str, on_event: Emit | None = None, timeout_s: float | None = None, **fields: Any) -> Json:
    """Ask a daemon and wait for its answer; its error is raised as the exception that it was. Blocking."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(os.fspath(path))
            sock.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                while line := lines.readline(_LINE_LIMIT_BYTES):
                    reply = json.loads(line)
                    if "event" in reply:
                        if on_event is not None:
                            on_event(reply)
                    elif "error" in reply:
                        failure = reply["error"]
                        kind = _ERRORS.get(failure["exit_code"], PagefireError)
                        raise kind(failure["what"], failure["why"], failure["do"])
                    else:
                        result: Json = reply["result"]
                        return result
        except OSError as error:
            raise PagefireError(f"cannot talk to the daemon at {path}", error.strerror or str(error)) from error
    raise PagefireError("the daemon ended without an answer", str(path), "read its terminal or its log")
