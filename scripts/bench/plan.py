"""What a run of the benchmarks is to measure, as it was asked for, and the guests that they migrate."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
from rich.console import Console

from pagefire.guest_workload.guest_config import Backing, GuestConfig
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.units import format_size

RATE_PER_S = 50_000.0
VCPUS = 2
WORKING_SET_BYTES = 256 << 20
#: What daemons, guest processes and references take beside the guests' memory.
_BESIDE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes in bytes, rates in transactions per second of the whole guest.

    `memory_bytes` is that of a guest whose size is not varied, `round_bytes` of one of which a single round is measured.
    `repetitions` are pairs of each case, `migrations` those of a distribution. `quick`: no more than it takes to see that it works.
    """

    memory_bytes: int
    round_bytes: int
    streams: tuple[int, ...]
    backings: tuple[str, ...]
    repetitions: int
    migrations: int
    sizes_bytes: tuple[int, ...]
    rates_per_s: tuple[float, ...]
    vcpus: tuple[int, ...]
    hold_memory: bool
    quick: bool = False


def page_store_guest(
    memory_bytes: int,
    *,
    rate_per_s: float | None = RATE_PER_S,
    vcpus: int = VCPUS,
    working_set_bytes: int = WORKING_SET_BYTES,
    resident_bytes: int | None = None,
) -> GuestConfig:
    """Describe a guest that stores into random pages of its working set, at most half of its memory; None: as fast as it can.

    At a rate of 0 it commits 50,000 times a second as well, else there would be no stun to be seen, but each vCPU into one page.
    """
    resident_bytes = resident_bytes or memory_bytes
    working_set_bytes = min(working_set_bytes, resident_bytes // 2)
    if rate_per_s == 0:
        rate_per_s, working_set_bytes = RATE_PER_S, vcpus * PAGE_BYTES
    return GuestConfig("guest0", memory_bytes, resident_bytes, working_set_bytes, vcpus, "random", rate=rate_per_s)


def idle_guest(memory_bytes: int, backing: str) -> GuestConfig:
    """Describe a guest all of whose pages are distinct and incompressible, and of which next to nothing is written."""
    return GuestConfig("guest0", memory_bytes, memory_bytes, memory_bytes // 4, 1, "idle", backing=backing)


def sizes_that_fit(plan: Plan, console: Console) -> list[int]:
    """Give those guest sizes of which this machine's memory holds two, and say which are left out; none may be asked for.

    Raises PagefireError when none of those that were fits.
    """
    available_bytes = psutil.virtual_memory().available
    fit = [size for size in plan.sizes_bytes if 2 * size + _BESIDE_BYTES <= available_bytes]
    if left_out := [format_size(size) for size in plan.sizes_bytes if size not in fit]:
        console.print(
            f"  left out: {', '.join(left_out)}: two such guests do not fit into {format_size(available_bytes)}",
            soft_wrap=True,
        )
    if plan.sizes_bytes and not fit:
        raise PagefireError("no guest of these sizes fits into this machine twice", "", "give smaller --sizes")
    return fit


def host() -> dict[str, object]:
    """Describe the machine as it is now."""
    return {
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": os.uname().release,
        "load": os.getloadavg()[0],
    }


BACKINGS = tuple(one.value for one in Backing)
