"""Which message may pass when: one table for both ends of the control connection.

A phase is what both ends agree on after the messages so far. The table maps (phase, who sends) to the messages that may be sent
and the phase that each leads to; whoever breaks it is told by name. Page and fault connections have fixed sets instead, because
their messages have no order of their own. The names of a migration's status are QEMU's, see `Status`.
"""

from __future__ import annotations

import enum

from pagefire.protocol import messages as m


class Side(enum.Enum):
    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def peer(self) -> Side:
        return Side.DESTINATION if self is Side.SOURCE else Side.SOURCE


class Role(enum.Enum):
    """What a connection carries."""

    CONTROL = "control"
    PAGES = "pages"
    FAULT = "fault"


class Status(enum.Enum):
    """What a person is told, in QEMU's words."""

    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_PAUSED = "postcopy-paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Phase(enum.Enum):
    """How far the control connection has come."""

    GREETING = "greeting"
    JOINING = "joining"
    SETUP = "setup"
    OFFERED = "offered"
    ACTIVE = "active"
    POPULATING = "populating"
    SWITCHING = "switching"
    READY = "ready"
    COMMITTED = "committed"
    POSTCOPY = "postcopy"
    RESIDENT = "resident"
    RELEASED = "released"
    OVER = "over"


_S, _D = Side.SOURCE, Side.DESTINATION

#: (phase, sender) -> message -> phase afterwards. HANDOVER is the commit point's only trace on the wire. A Failure of the
#: destination that crosses it says "not taken, session fenced": the one answer that makes the source the owner again.
CONTROL: dict[tuple[Phase, Side], dict[type[m.Message], Phase]] = {
    (Phase.GREETING, _S): {m.Hello: Phase.JOINING},
    (Phase.JOINING, _D): {m.Welcome: Phase.SETUP},
    (Phase.SETUP, _S): {m.ClockProbe: Phase.SETUP, m.Offer: Phase.OFFERED},
    (Phase.SETUP, _D): {m.ClockReading: Phase.SETUP},
    (Phase.OFFERED, _D): {m.Accept: Phase.ACTIVE},
    (Phase.ACTIVE, _S): {m.Populate: Phase.POPULATING, m.Switchover: Phase.SWITCHING},
    (Phase.ACTIVE, _D): {m.RoundReceived: Phase.ACTIVE},
    (Phase.POPULATING, _D): {m.Populated: Phase.ACTIVE},
    (Phase.SWITCHING, _D): {m.RoundReceived: Phase.SWITCHING, m.Ready: Phase.READY},
    (Phase.READY, _S): {m.PageDigests: Phase.READY, m.Handover: Phase.COMMITTED},
    (Phase.READY, _D): {m.DigestsCompared: Phase.READY},
    (Phase.COMMITTED, _D): {m.Resumed: Phase.POSTCOPY, m.Failure: Phase.OVER},
    (Phase.POSTCOPY, _D): {m.Resident: Phase.RESIDENT},
    (Phase.RESIDENT, _S): {m.Released: Phase.RELEASED},
    (Phase.RELEASED, _D): {m.Aftermath: Phase.OVER},
}
#: Where either side may still end the migration and the guest stays at the source.
BEFORE_COMMIT = frozenset(
    {
        Phase.GREETING,
        Phase.JOINING,
        Phase.SETUP,
        Phase.OFFERED,
        Phase.ACTIVE,
        Phase.POPULATING,
        Phase.SWITCHING,
        Phase.READY,
    }
)
for _phase in BEFORE_COMMIT:
    for _side in Side:
        CONTROL.setdefault((_phase, _side), {})[m.Failure] = Phase.OVER

#: What the other connections carry once they have been greeted.
STREAMS: dict[tuple[Role, Side], frozenset[type[m.Message]]] = {
    (Role.PAGES, _S): frozenset({m.Pages, m.ZeroPages, m.RoundEnd}),
    (Role.PAGES, _D): frozenset(),
    (Role.FAULT, _S): frozenset({m.Pages, m.ZeroPages}),
    (Role.FAULT, _D): frozenset({m.Fetch}),
}

#: Messages that may bring a payload.
WITH_PAYLOAD: frozenset[type[m.Message]] = frozenset({m.Pages, m.Switchover, m.PageDigests})
