"""Real daemons for the end-to-end tests: a destination, a source with a guest, and what a test asks of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pagefire.guest_workload.observation import open_control
from pagefire.protocol.transport.control_socket import request
from pagefire.scripts.daemons import Pair
from pagefire.source_host.migration import MigrationOptions

Json = dict[str, Any]


class HostPair(Pair):
    """A `Pair` with the operations that a test needs; sizes small, so that a test takes seconds."""

    def migrate(self, **options: Any) -> Json:
        """Migrate with these options and give the report."""
        chosen = MigrationOptions(**{"to": self.destination, "settle_s": 0.2, **options})
        report: Json = request(self.source_socket, "migrate", timeout_s=60.0, **dataclasses.asdict(chosen))["report"]
        return report

    def on_source(self, op: str, **fields: Any) -> Json:
        return request(self.source_socket, op, timeout_s=60.0, **fields)

    def on_dest(self, op: str, **fields: Any) -> Json:
        return request(self.dest_socket, op, timeout_s=60.0, **fields)

    def source_commits(self) -> int:
        return int(self.on_source("status")["commits"])

    def transactions(self, socket_path: Path) -> int:
        """Count what the guest's registers say it has done since it was born, at either end."""
        control = open_control(request(socket_path, "guests", timeout_s=10.0)[self.name])
        try:
            return control.transactions()
        finally:
            control.close()


def guest_arguments(memory: str = "64MiB", workload: str = "oltp", vcpus: int = 2, **options: Any) -> list[str]:
    """Give `pagefire source` arguments; options by their names with underscores."""
    arguments = ["--memory", memory, "--workload", workload, "--vcpus", str(vcpus)]
    for option, value in options.items():
        if value is not None:
            arguments += [f"--{option.replace('_', '-')}", str(value)]
    return arguments
