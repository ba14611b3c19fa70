"""The runtime directory: one file per running daemon, by which commands find it.

    source-NAME.control     control socket of the source daemon of guest NAME
    dest-PORT.control       control socket of the destination daemon that listens on PORT
    *.guest, *.log          a guest process's socket and its standard error

Mode 0700. A daemon that ends removes its files, and the directory when it is the last; a socket that nobody answers is the trace
of a daemon that was killed, and is swept by whoever meets it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from pagefire.protocol.errors import PagefireError, UsageError

_SUFFIX = ".control"
#: sun_path holds 108 bytes with its final zero.
_SOCKET_PATH_BYTES = 107


def default_directory() -> Path:
    """Give $PAGEFIRE_RUNTIME_DIR, else pagefire/ in $XDG_RUNTIME_DIR, else a directory of this user's in the temporary one."""
    if chosen := os.environ.get("PAGEFIRE_RUNTIME_DIR"):
        return Path(chosen)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "pagefire"
    return Path(tempfile.gettempdir()) / f"pagefire-{os.getuid()}"


def prepare(directory: Path) -> Path:
    """Make the directory, or check that it is this user's alone; raises PagefireError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise PagefireError(f"cannot use runtime directory {directory}", error.strerror or str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PagefireError(
            f"runtime directory {directory} belongs to somebody else", "", "name another with --runtime-dir"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        directory.chmod(0o700)
    return directory


def socket_path(directory: Path, file_name: str) -> Path:
    """Give the path of a socket in the directory; raises UsageError when the kernel could not bind it."""
    path = directory / file_name
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise UsageError(
            f"the socket path {path} is too long", f"{_SOCKET_PATH_BYTES} bytes at most", "use --runtime-dir"
        )
    return path


def control_path(directory: Path, role: str, name: str) -> Path:
    """Give the control socket's path for a new daemon; raises PagefireError when one of that name is alive."""
    path = socket_path(directory, f"{role}-{name}{_SUFFIX}")
    if answers(path):
        raise PagefireError(
            f"a {role} daemon named {name} is already running", str(path), "choose another --name, or end it"
        )
    path.unlink(missing_ok=True)
    return path


def leave(directory: Path, *paths: Path) -> None:
    """Remove a daemon's files, and the directory if nothing else is in it."""
    for path in paths:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def answers(path: Path) -> bool:
    """Tell whether a daemon listens on a control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def find(directory: Path, role: str, name: str | None) -> Path:
    """Find the one daemon that is meant; raises UsageError that lists the candidates when there are none or several."""
    prefix = f"{role}-"
    alive = {}
    for path in sorted(directory.glob(f"{prefix}*{_SUFFIX}")):
        if answers(path):
            alive[path.name[len(prefix) : -len(_SUFFIX)]] = path
        else:
            path.unlink(missing_ok=True)
    if name is not None and name in alive:
        return alive[name]
    running = ", ".join(alive) or "none"
    if name is not None:
        raise UsageError(f"no {role} daemon named {name}", f"running in {directory}: {running}")
    if len(alive) == 1:
        return next(iter(alive.values()))
    if not alive:
        raise UsageError(f"no {role} daemon runs here", f"looked in {directory}", f"start one with `pagefire {role}`")
    raise UsageError(f"several {role} daemons run here", running, "name the one that is meant")
