"""A host's hold on a guest process: start or adopt it, ask it things, end it or leave it running.

Blocking, for daemons to call in a thread. The guest does not die with the daemon: closing a handle with `leave` lets it run on, and
`adopt` finds it again by its socket's path. Pausing and resuming are not requests: they go through `control`, which is memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pagefire.guest_workload import channel
from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.guest_config import Backing, GuestConfig
from pagefire.guest_workload.linux import memfd
from pagefire.protocol.errors import GuestError

_QUIT_S = 1.0
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a guest's `check` found; as `workload.Check`, which a host cannot import (it would import Numba)."""

    invariant: str
    committed: int
    problems: list[str]
    counted: dict[str, int]


class GuestProcess:
    """One guest process. Owns the connection, the mappings and their descriptors until `terminate` or `leave`."""

    def __init__(self, socket_path: Path, connection: socket.socket, child: subprocess.Popen[bytes] | None) -> None:
        """Hold a process whose socket is connected; use `spawn` or `adopt`."""
        self.socket_path = socket_path
        self._connection = connection
        self._child = child
        self._one_request = threading.Lock()
        self._closed = False
        self.name = socket_path.stem
        self.pid = child.pid if child else -1
        self.pidfd = os.pidfd_open(self.pid) if child else -1

    config: GuestConfig
    #: Guest memory as this host maps it; stores through it are not seen by write tracking.
    memory: memfd.Mapping
    control: ControlBlock
    #: Where guest memory lies in the guest: the addresses of PAGEMAP_SCAN and userfaultfd ranges.
    address: int
    #: Names under which an earlier host left descriptors (`kept_fds`).
    kept: tuple[str, ...]

    @classmethod
    def spawn(cls, socket_path: Path, config: GuestConfig, cpus: Sequence[int] | None = None) -> GuestProcess:
        """Start a guest, filled and parked, listening at `socket_path`; its stderr goes to the same path with .log.

        `cpus` replaces the config's. Takes as long as the fill does. Raises UsageError for what cannot be asked for, GuestError
        when it did not start; then nothing of it is left but the log.
        """
        if cpus is not None:
            config = replace(config, cpus=tuple(cpus))
        log_path = _log_path(socket_path)
        listener = _listen(socket_path)
        try:
            log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                child = subprocess.Popen(
                    _command(listener.fileno(), config.name),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(listener.fileno(),),
                    # Its own session: Ctrl-C signals the daemon's whole process group, and the guest must outlive that.
                    start_new_session=True,
                )
            finally:
                os.close(log)
            connection = _connect(socket_path)
        except OSError as error:
            socket_path.unlink(missing_ok=True)
            raise GuestError(f"the guest {config.name} could not be started", error.strerror or str(error)) from error
        finally:
            listener.close()
        guest = cls(socket_path, connection, child)
        guest.name = config.name
        try:
            guest._take(*guest._exchange({"op": "configure", "config": config.as_message()}))
        except BaseException:
            guest.terminate(keep_log=True)
            raise
        return guest

    @classmethod
    def adopt(cls, socket_path: Path, timeout_s: float = 5.0) -> GuestProcess:
        """Connect to a guest whose daemon is gone; GuestError if none listens, or another host still holds it."""
        try:
            connection = _connect(socket_path)
        except OSError as error:
            raise GuestError(f"no guest listens at {socket_path}", error.strerror or str(error)) from error
        guest = cls(socket_path, connection, None)
        try:
            guest._take(*guest._exchange({"op": "describe"}, timeout_s=timeout_s))
        except BaseException:
            guest.leave()
            raise
        return guest

    def _take(self, reply: channel.Message, fds: list[int]) -> None:
        memory_fd, control_fd = fds
        try:
            self.control = ControlBlock.attach(control_fd)
        except BaseException:
            os.close(memory_fd)
            raise
        self.config = GuestConfig.of_message(reply["config"])
        self.memory = memfd.Mapping(memory_fd)
        self.address, self.kept, self.name = int(reply["address"]), tuple(reply["kept"]), self.config.name
        if self._child is None:
            self.pid = int(reply["pid"])
            self.pidfd = os.pidfd_open(self.pid)

    def request(
        self, op: str, fds: Sequence[int] = (), timeout_s: float | None = None, **arguments: Any
    ) -> tuple[channel.Message, list[int]]:
        """Ask and wait for the reply; the descriptors that come with it belong to the caller.

        The guest's errors arrive as the named errors they were. GuestError when the process is dead or does not answer in time;
        after a timeout only `terminate` and `leave` make sense.
        """
        return self._exchange({"op": op, **arguments}, fds, timeout_s)

    def open_uffd(self, features: int, *, keep: bool) -> int:
        """Open a userfaultfd in the guest; the caller owns it. `keep`: the guest keeps a copy (destination, never source)."""
        _, (uffd,) = self.request("open_uffd", features=int(features), keep=keep)
        return uffd

    def close_uffd(self) -> None:
        """Let the guest drop the copy that `open_uffd(keep=True)` left there."""
        self.request("close_uffd")

    def keep_fds(self, name: str, fds: Sequence[int]) -> None:
        """Leave copies of descriptors in the guest for a later adopter, replacing what has that name; none removes it."""
        self.request("keep_fds", fds, name=name)

    def kept_fds(self, name: str) -> list[int]:
        """Get copies of what was left under a name ("uffd": the userfaultfd that the guest keeps); the caller owns them."""
        return self.request("kept_fds", name=name)[1]

    def give_back_huge_mappings(self) -> int:
        """Map the memory of a guest that is backed by huge pages by them again, after tracing or paging has split the mappings.

        Gives the granules that could not be. Changes nothing for a guest that is backed by 4 KiB pages. To be called when no
        userfaultfd is registered any more.
        """
        return int(self.request("collapse")[0]["left"]) if self.config.backing == Backing.THP.value else 0

    def check(self) -> CheckReport:
        """Run the workload's own check; GuestError unless the guest is parked. Every page must be here."""
        reply, _ = self.request("check")
        return CheckReport(reply["invariant"], reply["committed"], list(reply["problems"]), dict(reply["counted"]))

    def digest(self) -> dict[str, str]:
        """Hash all of guest memory; GuestError unless every vCPU is parked or finished. Every page must be here.

        `memory` is a hash in which holes and zero pages are equal, `registers` all of them in hex.
        """
        return self.request("digest")[0]

    @property
    def alive(self) -> bool:
        """Say whether the process still runs."""
        return not self.ends_within(0)

    def ends_within(self, timeout_s: float) -> bool:
        """Say whether the process ends in that time. Its memory is gone some moments before: a call on it says so first."""
        return self._wait(timeout_s)

    def terminate(self, *, keep_log: bool = False) -> None:
        """End the process, politely or after a second by SIGKILL; reap it, close everything, unlink its socket and log."""
        if self._closed:
            return
        # Somebody may be waiting for a reply (a fill takes seconds); then politeness would wait for them.
        if self._one_request.acquire(timeout=0.1):
            try:
                self._connection.settimeout(_QUIT_S)
                with contextlib.suppress(OSError):
                    channel.send(self._connection, {"op": "quit"})
                    channel.receive(self._connection)
            finally:
                self._one_request.release()
        if self.pidfd >= 0 and not self._wait(_QUIT_S):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._wait(None)
        if self._child is not None:
            self._child.wait()
        self._close()
        self.socket_path.unlink(missing_ok=True)
        if not keep_log:
            _log_path(self.socket_path).unlink(missing_ok=True)

    def leave(self) -> None:
        """Let go of the guest, which runs on (or stays parked) and waits for an adopter; closes everything on this side."""
        if self._child is not None:
            # It is to outlive this process, and init reaps it then; without this Popen would warn of a forgotten child.
            self._child.returncode = 0
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._connection.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if hasattr(self, "control"):
            self.control.close()
        if hasattr(self, "memory"):
            self.memory.close()

    def _wait(self, timeout_s: float | None) -> bool:
        """Wait for the process to end; False when it has not."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def _exchange(
        self, request: channel.Message, fds: Sequence[int] = (), timeout_s: float | None = None
    ) -> tuple[channel.Message, list[int]]:
        with self._one_request:
            try:
                self._connection.settimeout(timeout_s)
                channel.send(self._connection, request, fds)
                received = channel.receive(self._connection)
            except TimeoutError as error:
                raise GuestError(
                    f"the guest {self.name} did not answer",
                    f"{request['op']} took more than {timeout_s} s",
                    "look at its log",
                ) from error
            except OSError as error:
                raise self._death(request, str(error)) from error
        if received is None:
            raise self._death(request, "it closed its socket")
        reply, given = received
        if "error" in reply:
            channel.close_all(given)
            channel.raise_error(reply)
        return received

    def _death(self, request: channel.Message, symptom: str) -> GuestError:
        """Make the error of a guest that does not speak any more: how it ended, and the last it wrote."""
        why = symptom
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                why = f"it ended with status {self._child.wait(_QUIT_S)}"
        with contextlib.suppress(OSError):
            tail = _log_path(self.socket_path).read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
            why += f"; its last words: {tail}" if tail else "; it wrote nothing"
        return GuestError(f"the guest {self.name} died before it answered {request['op']}", why)


def _log_path(socket_path: Path) -> Path:
    return socket_path.with_suffix(".log")


def _command(listen_fd: int, name: str) -> list[str]:
    return [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "pagefire.guest_workload",
        "--listen-fd",
        str(listen_fd),
        "--name",
        name,
    ]


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _listen(path: Path) -> socket.socket:
    """Make the listening socket, for this user alone; takes the place of a socket that nobody listens on any more."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Before bind: the file is born with these rights, without a moment in which others could connect.
        os.fchmod(listener.fileno(), 0o600)
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _somebody_listens(path):
                raise
            path.unlink()
            listener.bind(str(path))
        listener.listen(4)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise GuestError(f"a guest cannot listen at {path}", why, "choose another name or directory") from error
    return listener


def _somebody_listens(path: Path) -> bool:
    try:
        _connect(path).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True
