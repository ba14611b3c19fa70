"""The runtime directory: whose it is, who is alive in it, which daemon is meant."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.transport import runtime_directory as rd

Bind = Callable[[str], socket.socket]


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rd.prepare(tmp_path_factory.mktemp("run"))


@pytest.fixture
def bind(directory: Path) -> Iterator[Bind]:
    """Start the sockets of daemons; closed, they are the traces of daemons that were killed."""
    bound: list[socket.socket] = []

    def start(file_name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        bound.append(sock)
        sock.bind(str(directory / file_name))
        sock.listen()
        return sock

    yield start
    for sock in bound:
        sock.close()


# -- the directory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PAGEFIRE_RUNTIME_DIR": "/a", "XDG_RUNTIME_DIR": "/b"}, Path("/a")),
        ({"XDG_RUNTIME_DIR": "/b"}, Path("/b/pagefire")),
        ({"TMPDIR": "/c"}, Path(f"/c/pagefire-{os.getuid()}")),
    ],
)
def test_where_it_is(variables: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGEFIRE_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: os.environ["TMPDIR"])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rd.default_directory() == expected


@pytest.mark.parametrize("before", [None, 0o700, 0o750, 0o777])
def test_prepared_for_this_user_alone(before: int | None, tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    if before is not None:
        directory.mkdir(parents=True)
        directory.chmod(before)
    assert rd.prepare(directory) == directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    tmp_path.chmod(0o755)
    with pytest.raises(PagefireError, match=r"belongs to somebody else.*--runtime-dir"):
        rd.prepare(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(PagefireError, match="cannot use runtime directory"):
        rd.prepare(tmp_path / "run")


def test_leave_removes_what_is_ours(directory: Path) -> None:
    ours, others = directory / "source-a.control", directory / "source-b.control"
    ours.touch()
    others.touch()
    rd.leave(directory, ours, directory / "never-made")
    assert list(directory.iterdir()) == [others]
    rd.leave(directory, others)
    assert not directory.exists()
    rd.leave(directory, others)


# -- paths -------------------------------------------------------------------------------------------------------------


def test_a_path_that_can_just_be_bound(directory: Path) -> None:
    file_name = "x" * (107 - len(os.fsencode(directory)) - 1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(rd.socket_path(directory, file_name)))
    with pytest.raises(UsageError, match=r"too long.*--runtime-dir"):
        rd.socket_path(directory, file_name + "x")


def test_the_length_is_counted_in_bytes(directory: Path) -> None:
    with pytest.raises(UsageError, match="too long"):
        rd.socket_path(directory, "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * (106 - len(os.fsencode(directory))))


def test_a_new_daemon_takes_over_from_a_killed_one(directory: Path, bind: Bind) -> None:
    bind("source-a.control").close()
    path = rd.control_path(directory, "source", "a")
    assert path == directory / "source-a.control"
    assert not path.exists()


def test_a_living_daemon_keeps_its_name(directory: Path, bind: Bind) -> None:
    bind("source-a.control")
    with pytest.raises(PagefireError, match=r"a source daemon named a is already running.*--name"):
        rd.control_path(directory, "source", "a")
    assert rd.control_path(directory, "dest", "a") == directory / "dest-a.control"


# -- finding -----------------------------------------------------------------------------------------------------------


def test_who_answers_is_running_and_traces_of_killed_daemons_are_swept(directory: Path, bind: Bind) -> None:
    bind("source-dead.control").close()
    bind("source-alive.control")
    bind("dest-1.control")
    (directory / "source-dead.log").touch()
    assert rd.running(directory) == [directory / "dest-1.control", directory / "source-alive.control"]
    assert not (directory / "source-dead.control").exists()
    assert (directory / "source-dead.log").exists()


def test_nobody_runs_in_an_empty_directory(directory: Path, tmp_path: Path) -> None:
    assert rd.running(directory) == rd.running(tmp_path / "never-made") == []


def test_a_guest_whose_daemon_answers_is_no_orphan(directory: Path, bind: Bind) -> None:
    bind("source-a.control")
    bind("dest-1.control").close()
    for stem, label in (("source-a", "born"), ("dest-1", "0123"), ("dest-2", "4567"), ("source-x~y", "born")):
        bind(rd.guest_path(directory, stem, label).name)
    assert [path.name for path in rd.orphans(directory)] == [
        "dest-1~0123.guest",
        "dest-2~4567.guest",
        "source-x~y~born.guest",
    ]
    assert [path.name for path in rd.orphans(directory, "dest-1")] == ["dest-1~0123.guest"]
    assert rd.orphans(directory, "source-a") == []
