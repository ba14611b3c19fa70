"""Starting daemons as child processes, for `pagefire demo`, benchmarks and tests, and ending them by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from pagefire.protocol.errors import PagefireError

_END_S = 30.0


class DaemonProcess:
    """One daemon and the line that it printed when it was ready. Its log goes to `log_path`.

    `before` is a command that runs it, for instance in a network namespace; it has to become the daemon (exec), because it is
    its process that is signalled and waited for.
    """

    def __init__(
        self, arguments: list[str], log_path: Path, timeout_s: float = 120.0, before: Sequence[str] = ()
    ) -> None:
        """Start `pagefire ARGUMENTS` and wait until it is ready; raises PagefireError with what it said if it ends instead."""
        self.log_path = log_path
        timer: threading.Timer | None = None
        try:
            with log_path.open("ab") as log, signals_deferred():
                # A session of its own: a Ctrl-C at the terminal is the command's to handle, not the daemons'.
                self.process = subprocess.Popen(
                    [*before, sys.executable, "-m", "pagefire.scripts.cli", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            assert self.process.stdout is not None
            timer = threading.Timer(timeout_s, self.process.kill)
            timer.start()
            self.ready_line = self.process.stdout.readline().strip()
        except BaseException:
            # A Ctrl-C while it starts: nobody holds this object yet, so nobody else would end the process.
            if hasattr(self, "process"):
                self.end()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not self.ready_line:
            self.end()
            said = log_path.read_text(errors="replace").strip().splitlines()
            message = next((line for line in reversed(said) if line.startswith("pagefire: ")), said[-1] if said else "")
            raise PagefireError(
                f"`pagefire {arguments[0]}` did not start", message.removeprefix("pagefire: ").rstrip(".")
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> int:
        """Ask it to end and wait; a daemon that does not is forced. Gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.returncode

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait: Popen, interrupted between fork and return, has started a process that nobody knows."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in arrived:
        signal.raise_signal(late)


class Pair:
    """A destination and a source with one guest, in a private runtime directory; everything is gone when the context ends.

    `dest_host` is the address that the destination listens on, of the network that `dest_before` puts it into. `within` is the
    folder that the runtime directory is made in.
    """

    def __init__(
        self,
        source_arguments: list[str],
        dest_arguments: list[str] | None = None,
        name: str = "guest0",
        source_before: Sequence[str] = (),
        dest_before: Sequence[str] = (),
        dest_host: str = "127.0.0.1",
        within: Path | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="pagefire-", dir=within)
        self.directory = Path(self._temporary.name)
        self.name = name
        self._source_arguments, self._dest_arguments = source_arguments, dest_arguments or []
        self._source_before, self._dest_before = source_before, dest_before
        self._dest_host = dest_host
        self._here = ["--runtime-dir", os.fspath(self.directory)]

    def __enter__(self) -> Pair:
        try:
            self.port = 0
            self.start_dest()
            self.port = int(self.dest.ready_line.split("listening on ")[1].split(",")[0].rpartition(":")[2])
            self.start_source()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start_dest(self) -> None:
        """Start the destination daemon: on a free port, or again on the one that it had."""
        self.dest = DaemonProcess(
            ["dest", "--listen", f"{self._dest_host}:{self.port}", *self._here, *self._dest_arguments],
            self.directory / "dest.log",
            before=self._dest_before,
        )

    def start_source(self, *more: str) -> None:
        """Start the source daemon with a newborn guest; with `--adopt` as `more`, again, with what one that died has left."""
        self.source = DaemonProcess(
            ["source", "--name", self.name, *self._here, *self._source_arguments, *more],
            self.directory / "source.log",
            before=self._source_before,
        )

    @property
    def source_socket(self) -> Path:
        return self.directory / f"source-{self.name}.control"

    @property
    def dest_socket(self) -> Path:
        return self.directory / f"dest-{self.port}.control"

    @property
    def destination(self) -> str:
        return f"{self._dest_host}:{self.port}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for daemon in ("source", "dest"):
            if hasattr(self, daemon):
                getattr(self, daemon).end()
        self._temporary.cleanup()
