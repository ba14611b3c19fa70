"""`pagefire migrate` as seen by a person: ask the source daemon, show the rounds as they come, measure from outside, report."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rich.console import Console

from pagefire.protocol.addresses import parse_address
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.control_socket import request
from pagefire.scripts.cancelling import Cancelling
from pagefire.scripts.migration_view import MigrationView
from pagefire.scripts.observer import Observer
from pagefire.source_host.policy import judge_named

Json = dict[str, Any]


class Migration:
    """One migration by way of a source daemon's control socket."""

    def __init__(self, source_socket: Path, name: str, options: Json, console: Console) -> None:
        self._source_socket = source_socket
        self._name = name
        self._options = options
        self._console = console
        self._view = MigrationView(console, judge_named(options.get("policy")))
        self._cancelling = Cancelling(source_socket, name, console)
        #: What had been measured when a migration ended with an error.
        self.report_of_failure: Json | None = None

    @property
    def cancel_wanted(self) -> bool:
        """Somebody pressed Ctrl-C; past the commit point a migration ends well all the same."""
        return self._cancelling.wanted

    def run(self) -> Json:
        """Migrate and give the report; Ctrl-C and SIGTERM cancel. Raises the error that ended it."""
        with contextlib.ExitStack() as stack:
            observer = self._observer(stack)
            stack.enter_context(self._cancelling.on_signal())
            stack.enter_context(self._view.shown())
            report: Json = request(self._source_socket, "migrate", self._show, name=self._name, **self._options)[
                "report"
            ]
            if observer is not None:
                seen = observer.result()
                report["observer_stun_s"] = seen.stun_s if seen is not None else None
        return report

    def _observer(self, stack: contextlib.ExitStack) -> Observer | None:
        """Start the observer where the destination daemon is on this machine too, in the same runtime directory."""
        _, port = parse_address(self._options["to"])
        destination_socket = self._source_socket.with_name(f"dest-{port}.control")
        if not runtime_directory.answers(destination_socket):
            return None
        observer = stack.enter_context(Observer(self._source_socket, destination_socket, self._name))
        return observer if observer.watching else None

    def _show(self, event: Json) -> None:
        if event["event"] == "ended":
            self.report_of_failure = event["report"]
            return
        if event["event"] == "phase" and event["phase"] == "setup" and self._cancelling.wanted:
            self._cancelling.again()
        self._view.take(event)
