"""`pagefire demo`: a destination, a source and a guest on this machine, one migration, one report; nothing is left behind."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from rich.console import Console

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.daemons import Pair
from pagefire.scripts.migrating import Migration
from pagefire.source_host.options import MigrationOptions


def source_arguments(config: GuestConfig) -> list[str]:
    """Give the arguments of `pagefire source` that describe this guest."""
    arguments = {
        "--memory": str(config.memory_bytes),
        "--resident": str(config.resident_bytes),
        "--working-set": str(config.working_set_bytes),
        "--vcpus": str(config.vcpus),
        "--workload": config.workload,
        "--seed": str(config.seed),
        "--backing": config.backing,
        "--scattered": str(config.scattered_pages),
        "--rate": str(config.rate) if config.rate is not None else None,
    }
    return [part for option, value in arguments.items() if value is not None for part in (option, value)]


def run_demo(
    config: GuestConfig,
    options: MigrationOptions,
    warmup_s: float,
    pins: dict[str, str | None],
    console: Console,
) -> dict[str, Any]:
    """Run the whole of it; gives the report."""
    pinned = {
        option: [option, cpus] if (cpus := pins.get(option)) is not None else []
        for option in ("--cpus-source", "--cpus-dest", "--cpus-guest")
    }
    allowed = [part for workload in config.user_workloads for part in ("--allow-workload", workload)]
    pair = Pair(
        [*source_arguments(config), *pinned["--cpus-source"], *pinned["--cpus-guest"]],
        # Both hosts are this one, where what the guest holds is known to fit; a sparse guest may be larger than that.
        ["--max-guest-memory", str(config.memory_bytes), *allowed, *pinned["--cpus-dest"], *pinned["--cpus-guest"]],
        config.name,
    )
    console.print(
        f"Starting two daemons and guest {config.name}: {format_size(config.memory_bytes)}, {config.vcpus} vCPUs, "
        f"workload {config.workload}"
    )
    with pair:
        console.print(f"  {pair.dest.ready_line}", style="dim", soft_wrap=True)
        console.print(f"  {pair.source.ready_line}", style="dim", soft_wrap=True)
        time.sleep(warmup_s)
        commits = request(pair.source_socket, "guest")["commits"]
        console.print(
            f"After {format_duration(warmup_s)} of warm-up the guest has committed {format_count(commits)} transactions"
        )
        chosen = dataclasses.asdict(dataclasses.replace(options, to=pair.destination))
        return Migration(pair.source_socket, config.name, chosen, console).run()
