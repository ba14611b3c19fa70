"""Who may run the guest: the rules by which either host decides it, as one table, and the only code that changes the owner word.

    source        OWNER --commit--> RELINQUISHED --resident--> (its copy is freed)
                    ^                    |
                    +------ fenced ------+          the destination's own word that it never will
    destination   NONE --handover--> OWNER
                    |
                    +--failure, silence, restart, question--> FENCED

Each host keeps one owner word in the shared memory of the guest's process, where it survives the daemon. `Ownership.on` looks an
event up under the word that stands there, writes the new word, and only then gives the act that follows from it: whoever dies
between the two finds the word again. What is not in the table cannot happen (`LocalProtocolError`). The two words are never both
OWNER: the source gives up its own before the destination may take it, and gets it back only from one that can take it no more.

tests/protocol/exploration/ walks every state that two hosts, the link between them and their crashes can get into by this table
and the phase table of state.py.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Protocol

from pagefire.protocol.errors import LocalProtocolError
from pagefire.protocol.state import Side


class Owner(enum.IntEnum):
    """Which part a host has in the guest: the owner word. Only OWNER may run it."""

    NONE = 0
    OWNER = 1
    RELINQUISHED = 2
    FENCED = 3


class Event(enum.Enum):
    """What may happen to a host that decides what becomes of the guest."""

    #: The source: READY has come and nothing was cancelled.
    COMMIT = "commit"
    #: The source: a person, or a rule of convergence, ends the migration.
    CANCEL = "cancel"
    #: The migration failed here, or the peer refused it.
    FAILED = "failed"
    #: A connection broke, or the peer has been silent for too long.
    LOST = "lost"
    #: A daemon found the guest without one.
    RESTARTED = "restarted"
    #: The source heard `Resumed` or `Taken`: the destination has the guest.
    TAKEN = "taken"
    #: The source heard `Fenced`: the destination has not, and never will.
    FENCED = "fenced"
    #: The source heard that the destination knows nothing of the session.
    UNKNOWN = "unknown"
    #: The source heard `Perished`: the guest's process at the destination has ended.
    PERISHED = "perished"
    #: The source heard `Resident`: no page is missing there.
    RESIDENT = "resident"
    #: A person decides that the guest runs here again: where the destination has lost it, knows nothing of it, or is gone itself.
    TAKE_BACK = "take back"
    #: The destination received `Handover`.
    HANDOVER = "handover"
    #: The destination is asked what became of the session.
    ASKED = "asked"


class Act(enum.Enum):
    """What follows, once the word is written."""

    #: Let the guest run here, if it does not run already.
    RUN = "run"
    #: Send `Handover`.
    HAND_OVER = "hand over"
    #: Ask the destination what became of the session, again and again until it answers.
    ASK = "ask"
    #: Send the pages that the destination misses.
    MOVE = "move"
    #: Free what is here of the guest.
    FREE = "free"
    #: Keep everything: a person decides.
    KEEP = "keep"
    #: Say `Taken`, and which pages are missing.
    SAY_TAKEN = "say taken"
    #: Say `Fenced`, to whoever asks, until the source has noted it.
    SAY_FENCED = "say fenced"
    #: Too late, or too early: say so to whoever asked for it.
    REFUSE = "refuse"


Rules = Mapping[tuple[Side, Owner, Event], tuple[Owner, Act]]

_S, _D = Side.SOURCE, Side.DESTINATION
_NONE, _OWNER, _RELINQUISHED, _FENCED = Owner

RULES: Rules = {
    # Before the commit point the guest is the source's, whatever fails.
    (_S, _OWNER, Event.CANCEL): (_OWNER, Act.RUN),
    (_S, _OWNER, Event.FAILED): (_OWNER, Act.RUN),
    (_S, _OWNER, Event.LOST): (_OWNER, Act.RUN),
    (_S, _OWNER, Event.RESTARTED): (_OWNER, Act.RUN),
    (_S, _OWNER, Event.FENCED): (_OWNER, Act.RUN),
    # The commit point. From this word on the source never runs the guest by itself: whether HANDOVER arrives cannot be known here.
    (_S, _OWNER, Event.COMMIT): (_RELINQUISHED, Act.HAND_OVER),
    (_S, _RELINQUISHED, Event.CANCEL): (_RELINQUISHED, Act.REFUSE),
    (_S, _RELINQUISHED, Event.FAILED): (_RELINQUISHED, Act.ASK),
    (_S, _RELINQUISHED, Event.LOST): (_RELINQUISHED, Act.ASK),
    (_S, _RELINQUISHED, Event.RESTARTED): (_RELINQUISHED, Act.ASK),
    (_S, _RELINQUISHED, Event.TAKEN): (_RELINQUISHED, Act.MOVE),
    (_S, _RELINQUISHED, Event.RESIDENT): (_RELINQUISHED, Act.FREE),
    (_S, _RELINQUISHED, Event.PERISHED): (_RELINQUISHED, Act.KEEP),
    (_S, _RELINQUISHED, Event.UNKNOWN): (_RELINQUISHED, Act.KEEP),
    # The one automatic way back: the destination wrote FENCED before it said so, and takes no HANDOVER of this session any more.
    (_S, _RELINQUISHED, Event.FENCED): (_OWNER, Act.RUN),
    (_S, _RELINQUISHED, Event.TAKE_BACK): (_OWNER, Act.RUN),
    (_S, _OWNER, Event.TAKE_BACK): (_OWNER, Act.RUN),
    # The destination takes the guest by HANDOVER and by nothing else; every other end of waiting fences the session first.
    (_D, _NONE, Event.HANDOVER): (_OWNER, Act.RUN),
    (_D, _NONE, Event.FAILED): (_FENCED, Act.SAY_FENCED),
    (_D, _NONE, Event.LOST): (_FENCED, Act.SAY_FENCED),
    (_D, _NONE, Event.RESTARTED): (_FENCED, Act.SAY_FENCED),
    (_D, _NONE, Event.ASKED): (_FENCED, Act.SAY_FENCED),
    (_D, _FENCED, Event.HANDOVER): (_FENCED, Act.REFUSE),
    (_D, _FENCED, Event.FAILED): (_FENCED, Act.SAY_FENCED),
    (_D, _FENCED, Event.LOST): (_FENCED, Act.SAY_FENCED),
    (_D, _FENCED, Event.RESTARTED): (_FENCED, Act.SAY_FENCED),
    (_D, _FENCED, Event.ASKED): (_FENCED, Act.SAY_FENCED),
    # Once it is the destination's, it stays so: pages that it misses are asked for until they are there.
    (_D, _OWNER, Event.FAILED): (_OWNER, Act.RUN),
    (_D, _OWNER, Event.LOST): (_OWNER, Act.RUN),
    (_D, _OWNER, Event.RESTARTED): (_OWNER, Act.RUN),
    (_D, _OWNER, Event.ASKED): (_OWNER, Act.SAY_TAKEN),
}


class OwnerWord(Protocol):
    """Where a host's owner word lies: in memory that survives its daemon."""

    @property
    def owner(self) -> Owner: ...

    @owner.setter
    def owner(self, owner: Owner) -> None: ...


class Ownership:
    """One host's part in one guest: the only writer of its owner word."""

    def __init__(self, side: Side, word: OwnerWord, rules: Rules = RULES) -> None:
        self._side = side
        self._word = word
        self._rules = rules

    @property
    def owner(self) -> Owner:
        return self._word.owner

    def on(self, event: Event) -> Act:
        """Take in what happened; the word is written when this returns. LocalProtocolError: it cannot happen under this word."""
        before = self._word.owner
        try:
            after, act = self._rules[self._side, before, event]
        except KeyError:
            raise LocalProtocolError(
                f"the {self._side.value} may not take {event.value!r}", f"its owner word is {before.name.lower()}"
            ) from None
        if after is not before:
            self._word.owner = after
        return act
