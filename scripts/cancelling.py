"""Ctrl-C and SIGTERM in a command whose work a daemon does: the daemon is asked to cancel it, and its answer ends the command."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.transport.control_socket import request


class Cancelling:
    """Cancels what one daemon does with one guest. Past its commit point a migration ends well all the same."""

    def __init__(self, source_socket: Path, name: str, console: Console) -> None:
        self._source_socket = source_socket
        self._name = name
        self._console = console
        #: Somebody pressed Ctrl-C.
        self.wanted = False
        #: The cancel was refused: it is too late for it.
        self._refused = False

    @contextlib.contextmanager
    def on_signal(self) -> Iterator[None]:
        """Cancel on a signal while this lasts; a second one after a refusal raises PagefireError."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: object) -> None:
            if self._refused:
                raise PagefireError(
                    "this command has left the migration alone", "it goes on in its daemons", "see `pagefire status`"
                )
            self._console.print("Cancelling ...")
            self.wanted = True
            self._cancel()

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def again(self) -> None:
        """The daemon has begun: the signal came before that, so there was nothing to cancel yet."""
        self._cancel()

    def _cancel(self) -> None:
        try:
            request(self._source_socket, "cancel", timeout_s=10.0, name=self._name)
        except PagefireError as error:
            self._refused = True
            self._console.print(f"{error} A second signal leaves the migration to its daemons.", soft_wrap=True)
