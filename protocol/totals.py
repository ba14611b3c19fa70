"""What a daemon's migrations come to, added up since it started: how they ended, and what they sent and served.

A migration counts while it goes on by its own figures, and is taken in when it ends: so that what is told to whoever watches never
falls. Pages and bytes are those of report.py. Gone with the daemon: one that takes its place begins at zero.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

#: How a migration may end.
OUTCOMES = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Moved:
    """What a source has sent: `pages` in all, `zero_pages` of them without payload, `compressed_pages` of them compressed.

    delta_pages of them went as differences. unchanged_pages were not sent, because the destination held them just so. wire_bytes:
    everything on all connections. recoveries: links that were lost after the resume and found again.
    """

    rounds: int = 0
    pages: int = 0
    zero_pages: int = 0
    unchanged_pages: int = 0
    compressed_pages: int = 0
    delta_pages: int = 0
    wire_bytes: int = 0
    recoveries: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Moved)))


@dataclass(frozen=True, slots=True)
class Served:
    """Faults that a destination has served: on pages that had to come from the source, and on those that were here already."""

    fetched_faults: int = 0
    minor_faults: int = 0

    def __add__(self, other: Served) -> Served:
        return Served(self.fetched_faults + other.fetched_faults, self.minor_faults + other.minor_faults)


@dataclass(slots=True)
class Totals:
    """The migrations that have ended: `outcomes` by (side, outcome), and of each guest's last one what is measured at its end."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    moved: Moved = Moved()
    served: Served = Served()
    last_stun_s: dict[str, float] = field(default_factory=dict)
    last_downtime_s: dict[str, float] = field(default_factory=dict)

    def left(self, guest: str, outcome: str, moved: Moved, stun_s: float | None, downtime_s: float | None) -> None:
        """A migration away from here has ended; times that were not measured leave those of an earlier one."""
        self.outcomes["source", outcome] += 1
        self.moved += moved
        if stun_s is not None:
            self.last_stun_s[guest] = stun_s
        if downtime_s is not None:
            self.last_downtime_s[guest] = downtime_s

    def came(self, outcome: str, served: Served) -> None:
        """A migration to here has ended; so has what only asked, and was never meant to come (`pagefire predict`): cancelled."""
        self.outcomes["destination", outcome] += 1
        self.served += served
