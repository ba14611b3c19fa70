"""What a state of the explored world is: two hosts, the links between them, and what the adversary may still do.

All of it is immutable and hashable; the same state reached in two ways is one state. Pages are bits of a mask, their contents
version numbers. A host's script stands at a place (`S`, `D`): between two places nothing else of that host happens, at each of them
it may be killed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

from pagefire.protocol.ownership import Owner
from pagefire.protocol.state import Phase, Role, Side

#: Contents of a page that is not there, and of one that is half-filled.
HOLE, HALF = -1, -2


class Kind(enum.IntEnum):
    """Who takes a step. Only the first two are there to help a migration to its end."""

    SCRIPT = 0
    PERSON = 1
    ADVERSARY = 2


class S(enum.Enum):
    """Where the source's script stands."""

    IDLE = "idle"
    GREETING = "greeting"
    OFFERED = "offered"
    JOINED = "joined"
    ACTIVE = "active"
    ROUND = "round"
    FORETOLD = "foretold"
    STOPPED = "stopped"
    SWITCHING = "switching"
    READY = "ready"
    VERIFYING = "verifying"
    RELINQUISHED = "relinquished"
    HANDED = "handed over"
    ASKING = "asking"
    ASKED = "asked"
    MOVING = "moving"
    LOST_THERE = "lost there"
    KEPT = "kept"
    OURS = "ours again"
    ABORTING = "aborting"
    FORGETTING = "forgetting"
    FREEING = "freeing"
    RELEASING = "releasing"
    RELEASED = "released"
    REASKING = "asking to release"
    REASKED = "asked to release"
    ENDED = "ended"
    DOWN = "down"


BEFORE_COMMIT = frozenset(
    {S.GREETING, S.OFFERED, S.JOINED, S.ACTIVE, S.ROUND, S.FORETOLD, S.STOPPED, S.SWITCHING, S.READY, S.VERIFYING}
)


class D(enum.Enum):
    """Where the destination's script stands."""

    OPEN = "open"
    GREETED = "greeted"
    SHELL = "shell"
    RECEIVING = "receiving"
    INSTALLING = "installing"
    INSTALLED = "installed"
    ARMED = "armed"
    READY = "ready"
    HANDOVER = "handover"
    OWNED = "owned"
    TAKEN = "taken"
    POSTCOPY = "postcopy"
    WHOLE = "whole"
    TELLING = "telling"
    TOLD = "told"
    AFTER = "after"
    ARRIVED = "arrived"
    FENCING = "fencing"
    PERISHING = "perishing"
    SAYING = "saying"
    SAID = "said"
    ENDING = "ending"
    FOUND = "found"
    DOWN = "down"


class Source(NamedTuple):
    """The source. `memory`: the guest's memory can be read here; `freed`: it was given up by the script, not lost."""

    versions: tuple[int, ...]
    unsent: int
    writes_left: int
    rounds_left: int
    at: S = S.IDLE
    guest: bool = True
    word: Owner = Owner.OWNER
    running: bool = True
    memory: bool = True
    freed: bool = False
    #: The DEPARTURE keepsake.
    kept: bool = False
    slot: int = -1
    round: int = 0
    #: The pages that were foretold.
    foretold: int = 0
    unknown: bool = False
    taken_back: bool = False

    @property
    def up(self) -> bool:
        return self.at is not S.DOWN


class Filling(NamedTuple):
    """A page that a filler has claimed and not yet filled; one filler a connection."""

    slot: int
    fetched: bool
    page: int
    version: int


class Dest(NamedTuple):
    """The destination. `ran`, `wrote`: the guest has run here, has written these pages since; `died`: its process was killed."""

    contents: tuple[int, ...]
    ledger: bytes
    at: D = D.OPEN
    guest: bool = False
    word: Owner = Owner.NONE
    running: bool = False
    #: The session's identity in the control block.
    session: bool = False
    #: The ARRIVAL keepsake.
    kept: bool = False
    #: The journal's word on the session.
    journal: str = ""
    slot: int = -1
    acknowledged: int = 0
    #: (last round, missing pages, hot pages) of a Switchover that came.
    switchover: tuple[int, int, int] | None = None
    filling: tuple[Filling, ...] = ()
    wrote: int = 0
    ran: bool = False
    died: bool = False

    @property
    def up(self) -> bool:
        return self.at is not D.DOWN


class Frame(NamedTuple):
    """One frame on its way: the very bytes of its head, the payload, and its length on the wire."""

    name: str
    head: bytes
    payload: object = None
    payload_bytes: int = 0


Frames = tuple[Frame, ...]


class Link(NamedTuple):
    """The connections of one attempt: control (or recovery) both ways; pages and faults once they have joined.

    `cut`: nothing passes any more but what is on its way. Either side may notice at any later time; what had not been read is lost.
    """

    role: Role
    source_phase: Phase = Phase.GREETING
    dest_phase: Phase = Phase.GREETING
    source_open: bool = True
    dest_open: bool = True
    cut: bool = False
    to_dest: Frames = ()
    to_source: Frames = ()
    joined: bool = False
    #: The source has closed all but the control connection.
    stripped: bool = False
    pages: Frames = ()
    fetches: Frames = ()
    fetched: Frames = ()
    #: What the reception does on it: "", "queued" for the migration, "waiting" for its end, "said" its last word.
    served: str = ""

    @property
    def gone(self) -> bool:
        """Whether nothing that is sent arrives any more, and either side may notice."""
        return self.cut or not (self.source_open and self.dest_open)


Links = tuple[Link | None, ...]


class Budget(NamedTuple):
    """What the adversary may still do."""

    cuts: int
    kills: int
    deaths: int


class World(NamedTuple):
    source: Source
    dest: Dest
    links: Links
    budget: Budget


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a world is explored. `slots`: links that exist at once; `kills` of either daemon, `deaths` of either guest."""

    pages: int = 2
    writes: int = 1
    rounds: int = 1
    slots: int = 2
    cuts: int = 1
    kills: int = 1
    deaths: int = 0
    fetches: bool = True
    verify: bool = False

    def beginning(self) -> World:
        every = (1 << self.pages) - 1
        source = Source((0,) * self.pages, every, self.writes, self.rounds)
        return World(
            source, Dest((HOLE,) * self.pages, b""), (None,) * self.slots, Budget(self.cuts, self.kills, self.deaths)
        )


class Step(NamedTuple):
    """What one side, or the adversary, may do now; `actor` and `links` are how it leaves things."""

    label: str
    actor: Source | Dest
    links: Links
    kind: Kind = Kind.SCRIPT


def put(links: Links, slot: int, link: Link | None) -> Links:
    return (*links[:slot], link, *links[slot + 1 :])


def at(links: Links, slot: int) -> Link:
    link = links[slot]
    assert link is not None
    return link


def having(link: Link, name: str, value: Any) -> Link:
    """Give the link with one field changed that is known by name only."""
    return link._replace(**{name: value})


def close(links: Links, slot: int, side: Side) -> Links:
    """One side closes its ends: what was on its way to it is lost, what it had sent is not."""
    if slot < 0 or links[slot] is None:
        return links
    link = at(links, slot)
    if side is Side.SOURCE:
        link = link._replace(source_open=False, source_phase=Phase.OVER, to_source=(), fetches=())
    else:
        link = link._replace(dest_open=False, dest_phase=Phase.OVER, to_dest=(), pages=(), fetched=(), served="")
    return put(links, slot, link if link.source_open or link.dest_open else None)


def pages_in(mask: int) -> list[int]:
    return [page for page in range(mask.bit_length()) if mask >> page & 1]


def changed(values: tuple[int, ...], page: int, value: int) -> tuple[int, ...]:
    return (*values[:page], value, *values[page + 1 :])
