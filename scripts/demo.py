"""`pagefire demo`: a destination, a source and a guest on this machine, one migration, one report; nothing is left behind.

`pagefire lab` is the same with the daemons elsewhere (`Place`): in two network namespaces.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.daemons import Pair
from pagefire.scripts.migrating import Migration
from pagefire.source_host.options import MigrationOptions


@dataclass(frozen=True)
class Place:
    """Where a demo's daemons live: on loopback, or where the `before` words put them, with what the destination has to be told."""

    source_before: tuple[str, ...] = ()
    dest_before: tuple[str, ...] = ()
    dest_host: str = "127.0.0.1"
    dest_arguments: tuple[str, ...] = ()
    within: Path | None = None


LOOPBACK = Place()


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


def pair_for(
    config: GuestConfig,
    pins: Mapping[str, str | None],
    place: Place = LOOPBACK,
    both: Sequence[str] = (),
    comes_back: bool = False,
) -> Pair:
    """Give two daemons with this guest, not started yet.

    `pins` are by the options of the command line. `both` is among the arguments of each daemon. `comes_back`: the source takes the
    guest in as well.
    """
    pinned = {
        option: [option, cpus] if (cpus := pins.get(option)) is not None else []
        for option in ("--cpus-source", "--cpus-dest", "--cpus-guest")
    }
    # Both hosts are this one, where what the guest holds is known to fit; a sparse guest may be larger than that.
    takes_in = ["--max-guest-memory", str(config.memory_bytes)]
    allowed = [part for workload in config.user_workloads for part in ("--allow-workload", workload)]
    back = ["--listen", "127.0.0.1:0", *takes_in] if comes_back else []
    return Pair(
        [*source_arguments(config), *pinned["--cpus-source"], *pinned["--cpus-guest"], *back, *both],
        [*takes_in, *allowed, *pinned["--cpus-dest"], *pinned["--cpus-guest"], *place.dest_arguments, *both],
        config.name,
        place.source_before,
        place.dest_before,
        place.dest_host,
        place.within,
    )


def run_demo(
    config: GuestConfig,
    options: MigrationOptions,
    warmup_s: float,
    pins: dict[str, str | None],
    console: Console,
    place: Place = LOOPBACK,
) -> dict[str, Any]:
    """Run the whole of it; gives the report."""
    pair = pair_for(config, pins, place)
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
