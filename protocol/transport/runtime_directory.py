"""The runtime directory: one file per running daemon, by which commands find it.

    source-NAME.control     control socket of a daemon that was started with guest NAME
    dest-PORT.control       control socket of a daemon that was started to take guests in on PORT
    STEM~*.guest, *.log     a guest process's socket and its standard error; STEM.control is its daemon's
    session-*.said          last words that a source has not noted yet (dest_host/journal.py)

Mode 0700. A daemon that ends removes its files, and the directory when it is the last; a control socket that nobody answers is the
trace of a daemon that was killed, and is swept by whoever meets it. Guests outlive their daemon: whoever takes its place (the same
stem), or is told to adopt, finds them by their sockets.
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
_GUEST_SUFFIX = ".guest"
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


def guest_path(directory: Path, stem: str, label: str) -> Path:
    """Give the path of a guest's socket for the daemon `stem`; raises UsageError when the kernel could not bind it."""
    return socket_path(directory, f"{stem}~{label}{_GUEST_SUFFIX}")


def orphans(directory: Path, stem: str | None = None) -> list[Path]:
    """Find the sockets of guests whose daemon answers no more: those of the daemon `stem`, or of any."""
    found = []
    for path in sorted(directory.glob(f"*~*{_GUEST_SUFFIX}")):
        its_stem = path.name.rpartition("~")[0]
        if stem in (None, its_stem) and not answers(directory / f"{its_stem}{_SUFFIX}"):
            found.append(path)
    return found


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


def answers(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Tell whether a daemon listens on a control socket, or (SOCK_SEQPACKET) a guest on its own."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def running(directory: Path) -> list[Path]:
    """Find the control sockets of the daemons that answer; those of daemons that were killed are swept."""
    alive = []
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        if answers(path):
            alive.append(path)
        else:
            path.unlink(missing_ok=True)
    return alive
