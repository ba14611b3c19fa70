"""What an incoming migration has of the daemon that it comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagefire.dest_host.journal import Journal
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.transport.logbook import Logbook
from pagefire.protocol.transport.points import Points


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What this daemon's owner allows a guest that comes here, and how long its source may be silent.

    `stem` names this daemon's files in the runtime directory.
    """

    runtime_dir: Path
    stem: str
    max_guest_memory_bytes: int
    guest_cpus: tuple[int, ...]
    user_workloads: tuple[str, ...]
    silence_s: float


@dataclass(frozen=True, slots=True)
class House:
    """`name_taken` tells whether a guest of that name is here. `arrived` takes a guest over that is whole, checked, and runs."""

    limits: HostLimits
    journal: Journal
    points: Points
    logbook: Logbook
    name_taken: Callable[[str], bool]
    arrived: Callable[[GuestProcess], None]
