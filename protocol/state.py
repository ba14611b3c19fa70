"""Which message may pass when: one table for both ends of the control connection.

A phase is what both ends agree on after the messages so far. The table maps (phase, who sends) to the messages that may be sent
and the phase that each leads to; whoever breaks it is told by name. Page and fault connections have fixed sets instead, because
their messages have no order of their own. The names of a migration's status are QEMU's, see `Status`.

A recovery connection is a control connection that begins in the middle: the source asks what became of a session, and where the
destination has the guest the two go on after the resume.
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
    RECOVERY = "recovery"
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
    POSTCOPY_RECOVER = "postcopy-recover"
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
    FORETOLD = "foretold"
    SWITCHING = "switching"
    READY = "ready"
    COMMITTED = "committed"
    ASKED = "asked"
    SETTLED = "settled"
    POSTCOPY = "postcopy"
    RESIDENT = "resident"
    RELEASED = "released"
    OVER = "over"


_S, _D = Side.SOURCE, Side.DESTINATION

#: Where a connection of each role stands after `Welcome`.
AFTER_WELCOME = {
    Role.CONTROL: Phase.SETUP,
    Role.RECOVERY: Phase.ASKED,
    Role.PAGES: Phase.ACTIVE,
    Role.FAULT: Phase.ACTIVE,
}
#: (phase, sender) -> message -> phase afterwards. HANDOVER is the commit point's only trace on the wire. From READY on the
#: destination does not fail, it fences: its answer may cross HANDOVER, and is the one that makes the source the owner again.
CONTROL: dict[tuple[Phase, Side], dict[type[m.Message], Phase]] = {
    (Phase.GREETING, _S): {m.Hello: Phase.JOINING},
    (Phase.JOINING, _D): {m.Welcome: Phase.SETUP},
    (Phase.SETUP, _S): {m.ClockProbe: Phase.SETUP, m.Offer: Phase.OFFERED},
    (Phase.SETUP, _D): {m.ClockReading: Phase.SETUP},
    (Phase.OFFERED, _D): {m.Accept: Phase.ACTIVE},
    (Phase.ACTIVE, _S): {m.Populate: Phase.POPULATING, m.Foretold: Phase.FORETOLD, m.Switchover: Phase.SWITCHING},
    (Phase.ACTIVE, _D): {m.RoundReceived: Phase.ACTIVE},
    (Phase.POPULATING, _D): {m.Populated: Phase.ACTIVE},
    (Phase.FORETOLD, _S): {m.Switchover: Phase.SWITCHING},
    (Phase.FORETOLD, _D): {m.RoundReceived: Phase.FORETOLD},
    (Phase.SWITCHING, _D): {m.RoundReceived: Phase.SWITCHING, m.Ready: Phase.READY},
    (Phase.READY, _S): {m.PageDigests: Phase.READY, m.Handover: Phase.COMMITTED, m.Failure: Phase.OVER},
    (Phase.READY, _D): {m.DigestsCompared: Phase.READY, m.Fenced: Phase.SETTLED},
    (Phase.COMMITTED, _D): {m.Resumed: Phase.POSTCOPY, m.Fenced: Phase.SETTLED, m.Perished: Phase.SETTLED},
    (Phase.ASKED, _D): {
        m.Taken: Phase.POSTCOPY,
        m.Fenced: Phase.SETTLED,
        m.Perished: Phase.SETTLED,
        m.Failure: Phase.OVER,
    },
    # The destination has said its last word. What the source had sent before it heard it is read and ignored.
    (Phase.SETTLED, _S): {
        m.PageDigests: Phase.SETTLED,
        m.Handover: Phase.SETTLED,
        m.Failure: Phase.OVER,
        m.Noted: Phase.OVER,
    },
    (Phase.POSTCOPY, _D): {m.Resident: Phase.RESIDENT, m.Perished: Phase.SETTLED},
    (Phase.RESIDENT, _S): {m.Released: Phase.RELEASED},
    (Phase.RELEASED, _D): {m.Aftermath: Phase.OVER},
}
#: Where the guest is the source's whatever happens, and either side may end the migration by `Failure`.
MAY_FAIL = frozenset(
    {
        Phase.GREETING,
        Phase.JOINING,
        Phase.SETUP,
        Phase.OFFERED,
        Phase.ACTIVE,
        Phase.POPULATING,
        Phase.FORETOLD,
        Phase.SWITCHING,
    }
)
#: Where both sides say `Alive` while they have nothing else to say.
MAY_BE_LONG = frozenset(
    {
        Phase.ACTIVE,
        Phase.POPULATING,
        Phase.FORETOLD,
        Phase.SWITCHING,
        Phase.READY,
        Phase.COMMITTED,
        Phase.ASKED,
        Phase.SETTLED,
        Phase.POSTCOPY,
        Phase.RESIDENT,
        Phase.RELEASED,
    }
)
for _side in Side:
    for _phase in MAY_FAIL:
        CONTROL.setdefault((_phase, _side), {})[m.Failure] = Phase.OVER
    for _phase in MAY_BE_LONG:
        CONTROL.setdefault((_phase, _side), {})[m.Alive] = _phase

#: What the other connections carry once they have been greeted.
STREAMS: dict[tuple[Role, Side], frozenset[type[m.Message]]] = {
    (Role.PAGES, _S): frozenset({m.Pages, m.CompressedPages, m.DeltaPages, m.ZeroPages, m.RoundEnd}),
    (Role.PAGES, _D): frozenset(),
    (Role.FAULT, _S): frozenset({m.Pages, m.ZeroPages}),
    (Role.FAULT, _D): frozenset({m.Fetch}),
}

#: Messages that may bring a payload.
WITH_PAYLOAD: frozenset[type[m.Message]] = frozenset(
    {m.Pages, m.CompressedPages, m.DeltaPages, m.Foretold, m.Switchover, m.PageDigests, m.Taken}
)
