"""One guest, back and forth between two daemons: each is source and destination in turn, and none is started for a migration."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.observation import open_control
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.transport.control_socket import request
from pagefire.scripts.compare_figures import problems_of
from pagefire.scripts.daemons import Pair
from pagefire.scripts.demo import source_arguments
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Station:
    """One of the two daemons: its control socket, the address where guests come in, its process."""

    control: Path
    address: str
    pid: int


class Shuttle(Pair):
    """A context: two daemons and a guest, which is at `here` and goes to `there`."""

    def __init__(self, config: GuestConfig) -> None:
        limit = ["--max-guest-memory", str(config.memory_bytes)]
        super().__init__([*source_arguments(config), "--listen", "127.0.0.1:0", *limit], limit, config.name)
        self.config = config

    def __enter__(self) -> Shuttle:
        super().__enter__()
        listening = request(self.source_socket, "status")["listen"]
        self.here = Station(self.source_socket, listening, self.source.pid)
        self.there = Station(self.dest_socket, self.destination, self.dest.pid)
        return self

    def migrate(self, options: MigrationOptions, on_event: Callable[[Json], None] | None = None) -> Json:
        """Migrate the guest to the other daemon; gives the report. Raises PagefireError where it was damaged or did not get there.

        The destination in `options` is not looked at.
        """
        chosen = asdict(replace(options, to=self.there.address))
        report: Json = request(self.here.control, "migrate", on_event, name=self.name, **chosen)["report"]
        self.here, self.there = self.there, self.here
        if problems := problems_of(report):
            raise PagefireError(
                "a migration of the benchmark cannot be counted", "; ".join(problems), "run it alone: pagefire demo"
            )
        return report

    @contextlib.contextmanager
    def guest_stopped(self) -> Iterator[None]:
        """Keep the guest off the CPUs while something else is measured."""
        pid = request(self.here.control, "guests")[self.name]["guest_pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def commits_per_s(self, seconds: float) -> float:
        """Measure the guest's throughput for so long."""
        control = open_control(request(self.here.control, "guests")[self.name])
        try:
            began_s, commits = time.monotonic(), control.commits()
            time.sleep(seconds)
            return (control.commits() - commits) / (time.monotonic() - began_s)
        finally:
            control.close()
