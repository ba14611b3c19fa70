"""The local control socket: events, then one answer; errors as what they were; whatever a client sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pagefire.protocol import credentials
from pagefire.protocol.credentials import require_own_user
from pagefire.protocol.errors import Cancelled, GuestError, PagefireError, UsageError
from pagefire.protocol.transport.control_socket import ControlServer, Emit, Json, request

ERRORS = {
    "usage": UsageError("no such guest", "running: a, b", "name one"),
    "cancelled": Cancelled("the migration was cancelled", "the guest runs on here"),
    "guest": GuestError("the guest died", "", "read its log"),
    "bug": RuntimeError("something else"),
    "key": KeyError("steps"),
}


async def _echo(request: Json, emit: Emit) -> Json:
    return request


async def _count(request: Json, emit: Emit) -> Json:
    for number in range(request["to"]):
        emit({"event": "number", "number": number})
        await asyncio.sleep(0)
    return {"counted": request["to"]}


async def _fail(request: Json, emit: Emit) -> Json:
    raise ERRORS[request["how"]]


async def _wait(request: Json, emit: Emit) -> Json:
    emit({"event": "waiting"})
    await asyncio.sleep(3600)
    return {}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "source-guest0.control"
    server = ControlServer(path, {"echo": _echo, "count": _count, "fail": _fail, "wait": _wait})
    await server.start()
    yield path
    await server.close(0)


async def ask(path: Path, op: str, **options: Any) -> Json:
    return await asyncio.to_thread(request, path, op, **options)


async def ask_bare(path: Path, line: bytes) -> Any:
    """Send a line that `request` would not, and give the error of the answer."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    writer.write_eof()
    answer = json.loads(await reader.readline())
    writer.close()
    # The daemon need not have read all of the line.
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
        await writer.wait_closed()
    return answer["error"]


async def test_only_this_user_may_talk_to_it(server: Path) -> None:
    assert stat.S_IMODE(server.stat().st_mode) == 0o600


async def test_an_answer(server: Path) -> None:
    assert await ask(server, "echo", name="\N{LATIN SMALL LETTER U WITH DIAERESIS}\n", number=2**60) == {
        "op": "echo",
        "name": "\N{LATIN SMALL LETTER U WITH DIAERESIS}\n",
        "number": 2**60,
    }


async def test_events_then_the_answer(server: Path) -> None:
    events: list[Json] = []
    assert await ask(server, "count", on_event=events.append, to=100) == {"counted": 100}
    assert events == [{"event": "number", "number": number} for number in range(100)]


async def test_events_may_be_ignored(server: Path) -> None:
    assert await ask(server, "count", to=3) == {"counted": 3}


async def test_a_large_answer(server: Path) -> None:
    assert len((await ask(server, "echo", text="x" * 900_000))["text"]) == 900_000


@pytest.mark.parametrize(
    ("how", "kind", "exit_code"), [("usage", UsageError, 2), ("cancelled", Cancelled, 3), ("guest", PagefireError, 1)]
)
async def test_errors_arrive_as_what_they_were(
    server: Path, how: str, kind: type[PagefireError], exit_code: int
) -> None:
    with pytest.raises(kind) as raised:
        await ask(server, "fail", how=how)
    assert str(raised.value) == str(ERRORS[how])
    assert raised.value.exit_code == exit_code


async def test_a_bug_in_the_daemon_is_answered(server: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And logged there: an answer that never comes would say that the daemon is gone."""
    with pytest.raises(PagefireError, match=r"RuntimeError: something else. Read its log") as raised:
        await ask(server, "fail", how="bug")
    with pytest.raises(PagefireError, match=r"KeyError: 'steps'"):
        await ask(server, "fail", how="key")
    assert raised.value.exit_code == 1
    assert "operation failed" in caplog.text
    assert await ask(server, "echo") == {"op": "echo"}


async def test_an_unknown_operation_lists_the_known(server: Path) -> None:
    with pytest.raises(UsageError, match="no operation 'dance': known: echo, count, fail, wait"):
        await ask(server, "dance")


@pytest.mark.parametrize(
    "line", [b"{not json\n", b"[1]\n", b"null\n", b'"op"\n', b"\xff\xfe\n", b"x" * (2 << 20) + b"\n"], ids=range(6)
)
async def test_lines_that_are_no_request(server: Path, line: bytes) -> None:
    error = await ask_bare(server, line)
    assert "the request is not a" in error["what"]
    assert error["exit_code"] == 2
    assert await ask(server, "echo") == {"op": "echo"}


@pytest.mark.parametrize("line", [b"", b"{}\n"])
async def test_no_operation(server: Path, line: bytes) -> None:
    assert "no operation None" in (await ask_bare(server, line))["what"]


async def test_a_command_that_leaves_does_not_hurt_the_daemon(server: Path) -> None:
    with socket.socket(socket.AF_UNIX) as command:
        command.setblocking(False)
        command.connect(str(server))
        command.send(b'{"op": "count", "to": 2000}\n')
    assert await ask(server, "echo") == {"op": "echo"}


async def test_operations_go_on_side_by_side(server: Path) -> None:
    began = asyncio.Event()
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(
        ask(server, "wait", on_event=lambda event: loop.call_soon_threadsafe(began.set), timeout_s=0.2)
    )
    await began.wait()
    assert await ask(server, "echo") == {"op": "echo"}
    with pytest.raises(PagefireError, match="cannot talk"):
        await waiting


async def test_close_lets_an_answer_leave_and_drops_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.control"
    began, may_end = asyncio.Semaphore(0), asyncio.Event()

    async def finish(request: Json, emit: Emit) -> Json:
        began.release()
        await may_end.wait()
        return {}

    async def stay(request: Json, emit: Emit) -> Json:
        began.release()
        return await _wait(request, emit)

    server = ControlServer(path, {"finish": finish, "stay": stay})
    await server.start()
    finishing, endless = asyncio.create_task(ask(path, "finish")), asyncio.create_task(ask(path, "stay"))
    await began.acquire()
    await began.acquire()
    closing = asyncio.create_task(server.close(0.3))
    await asyncio.sleep(0)
    may_end.set()
    assert await finishing == {}
    await closing
    with pytest.raises(PagefireError, match="ended without an answer"):
        await endless
    with pytest.raises(PagefireError, match="cannot talk to the daemon"):
        await ask(path, "stay")


async def test_closing_what_never_started(tmp_path: Path) -> None:
    await ControlServer(tmp_path / "a.control", {}).close()


async def test_a_daemon_that_is_silent(server: Path) -> None:
    with pytest.raises(PagefireError, match="cannot talk to the daemon"):
        await ask(server, "wait", timeout_s=0.05)


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(PagefireError, match=r"nobody\.control: No such file"):
        request(tmp_path / "nobody.control", "status")


async def test_it_is_born_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode is there before the file is: nobody can connect in between."""
    modes: list[int] = []
    monkeypatch.setattr(asyncio, "start_unix_server", lambda *args, sock, **kwargs: _note_mode(sock, modes))
    umask = os.umask(0)
    try:
        await ControlServer(tmp_path / "a.control", {}).start()
    finally:
        os.umask(umask)
    assert modes == [0o600]


async def _note_mode(sock: socket.socket, modes: list[int]) -> None:
    modes.append(stat.S_IMODE(os.stat(sock.getsockname()).st_mode))
    sock.close()


async def test_another_user_is_refused_by_name(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "require_own_user", _refuse)
    with pytest.raises(PagefireError, match="user 8 may not use a socket of user 7"):
        await ask(server, "echo")


def _refuse(ucred: bytes, own_uid: int) -> None:
    require_own_user(struct.pack("=iII", 1, 8, 8), 7)


def test_another_user_is_refused_on_uvloop() -> None:
    """A command that runs as somebody else and has got as far as the socket, which the file's mode would have stopped."""
    if os.getuid() != 0:
        pytest.skip("another user cannot be had: it needs root")
    caller = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    caller += "s.sendall(b'{}\\n'); print(s.recv(4096).decode())"

    async def main(directory: Path) -> str:
        path = directory / "a.control"
        server = ControlServer(path, {"echo": _echo})
        await server.start()
        path.chmod(0o666)
        command = ["/usr/bin/env", "python3", "-c", caller, os.fspath(path)]
        ended = await asyncio.to_thread(
            subprocess.run, command, user=65534, timeout=20, text=True, stdout=subprocess.PIPE, check=False
        )
        await server.close(0)
        return str(ended.stdout)

    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        assert "user 65534 may not use a socket of user 0" in uvloop.run(main(Path(directory)))


async def test_a_path_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(PagefireError, match=r"cannot listen at .*no/a\.control: No such file.*--runtime-dir"):
        await ControlServer(tmp_path / "no" / "a.control", {}).start()
