"""`pagefire migrate` as seen by a person: ask the source daemon, show the rounds as they come, measure from outside, report."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from pagefire.protocol.addresses import parse_address
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.cancelling import Cancelling
from pagefire.scripts.observer import Observer

Json = dict[str, Any]

_PHASES = {
    "setup": "Setup: negotiating with the destination, installing write tracking",
    "device": "Switchover: the guest stands still",
    "postcopy-active": "The guest runs at the destination; its last pages follow",
}


class Migration:
    """One migration by way of a source daemon's control socket."""

    def __init__(self, source_socket: Path, name: str, options: Json, console: Console) -> None:
        self._source_socket = source_socket
        self._name = name
        self._options = options
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(40),
            TextColumn("{task.percentage:>3.0f}%"),
            TransferSpeedColumn(),
            console=console,
            transient=True,
        )
        self._round: TaskID | None = None
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
            stack.enter_context(self._progress)
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
        match event["event"]:
            case "phase" if event["phase"] == "setup" and self._cancelling.wanted:
                self._cancelling.again()
            case "ended":
                self.report_of_failure = event["report"]
            case "phase" if event["phase"] in _PHASES:
                self._end_round()
                self._console.print(_PHASES[event["phase"]])
            case "progress":
                if self._round is None:
                    self._round = self._progress.add_task(f"  round {event['round']}", total=None)
                sent_bytes = event["sent_pages"] * PAGE_BYTES
                self._progress.update(self._round, completed=sent_bytes, total=max(event["pages"] * PAGE_BYTES, 1))
            case "round":
                self._end_round()
                self._console.print(
                    f"  round {event['round']}: {format_count(event['pages'])} pages "
                    f"({format_size(event['wire_bytes'])} on the wire) in {format_duration(event['duration_s'])}, "
                    f"{format_count(event['dirty_pages_after'])} pages left"
                )
                self._console.print(f"  {event['verdict']}", style="dim")
            case "resumed":
                self._console.print(f"  {format_count(event['remaining_pages'])} pages left to move")
            case "paused":
                self._console.print(
                    f"  post-copy is paused, {format_count(event['remaining_pages'])} pages are only at the source: "
                    f"{event['error']} Trying to reach the destination again.",
                    soft_wrap=True,
                )
            case "recovered":
                self._console.print(f"  recovered: {format_count(event['remaining_pages'])} pages left to move")

    def _end_round(self) -> None:
        if self._round is not None:
            self._progress.remove_task(self._round)
            self._round = None
