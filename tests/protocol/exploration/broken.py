"""Worlds in which one thing is deliberately wrong: a rule of the table, or one step of a script. Each has to be caught.

Every entry says how the world differs, in which bounds it shows, and what the exploration has to find.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pagefire.protocol.ownership import Act, Event, Owner
from pagefire.protocol.state import Side
from tests.protocol.exploration import broken_scripts as wrong
from tests.protocol.exploration.reception import DestScript
from tests.protocol.exploration.source import SourceScript
from tests.protocol.exploration.world import Bounds

_S, _D = Side.SOURCE, Side.DESTINATION
_NONE, _OWNER, _RELINQUISHED, _FENCED = Owner

CUT = Bounds(pages=1, writes=0, rounds=0, cuts=1, kills=0, fetches=False)
KILL = replace(CUT, cuts=0, kills=1)
KILL_AND_DEATH = replace(KILL, deaths=1)
FETCH = replace(CUT, cuts=0, fetches=True)
ROUND = replace(CUT, cuts=0, rounds=1, writes=1)
TWO_OWNERS = "both words say OWNER"
ONLY_A_PERSON = "only a person's decision leads on"
NO_WAY = "nothing leads to a running guest"


@dataclass(frozen=True, slots=True)
class Broken:
    """`rules` replace rows of the table, None removes one; `found` begins what has to be found."""

    name: str
    bounds: Bounds
    found: str
    rules: dict[tuple[Side, Owner, Event], tuple[Owner, Act] | None] = field(default_factory=dict)
    source: type[SourceScript] = SourceScript
    dest: type[DestScript] = DestScript


BROKEN = [
    # -- rules
    Broken(
        "the source runs again after a failed send of Handover",
        CUT, TWO_OWNERS,
        {(_S, _RELINQUISHED, Event.LOST): (_OWNER, Act.RUN)},
    ),
    Broken(
        "the source runs again when it is restarted",
        KILL, TWO_OWNERS,
        {(_S, _RELINQUISHED, Event.RESTARTED): (_OWNER, Act.RUN)},
    ),
    Broken(
        "the source may be cancelled after the commit point",
        CUT, TWO_OWNERS,
        {(_S, _RELINQUISHED, Event.CANCEL): (_OWNER, Act.RUN)},
    ),
    Broken(
        "the source hands over and stays the owner",
        CUT, TWO_OWNERS,
        {(_S, _OWNER, Event.COMMIT): (_OWNER, Act.HAND_OVER)},
    ),
    Broken(
        "the source frees its copy on Resumed",
        CUT, "the source has freed pages",
        {(_S, _RELINQUISHED, Event.TAKEN): (_RELINQUISHED, Act.FREE)},
    ),
    Broken(
        "the source resumes on UNKNOWN",
        KILL_AND_DEATH, "the source runs a guest again",
        {(_S, _RELINQUISHED, Event.UNKNOWN): (_OWNER, Act.RUN)},
    ),
    Broken(
        "the source resumes on Perished",
        KILL_AND_DEATH, "the source runs a guest again",
        {(_S, _RELINQUISHED, Event.PERISHED): (_OWNER, Act.RUN)},
    ),
    Broken(
        "the source does not believe Fenced",
        CUT, NO_WAY,
        {(_S, _RELINQUISHED, Event.FENCED): (_RELINQUISHED, Act.ASK)},
    ),
    Broken(
        "the source does not ask when it is restarted",
        KILL, "the source's script does not know",
        {(_S, _RELINQUISHED, Event.RESTARTED): (_RELINQUISHED, Act.REFUSE)},
    ),
    Broken(
        "the destination takes Handover after it fenced",
        CUT, TWO_OWNERS,
        {(_D, _FENCED, Event.HANDOVER): (_OWNER, Act.RUN)},
    ),
    Broken(
        "the destination fences without writing the word",
        CUT, TWO_OWNERS,
        {(_D, _NONE, event): (_NONE, Act.SAY_FENCED) for event in (Event.LOST, Event.ASKED, Event.FAILED)},
    ),
    Broken(
        "the destination answers Taken under NONE",
        CUT, "the source has been told that",
        {(_D, _NONE, Event.ASKED): (_NONE, Act.SAY_TAKEN)},
    ),
    Broken(
        "a restarted destination takes the guest",
        KILL, TWO_OWNERS,
        {(_D, _NONE, Event.RESTARTED): (_OWNER, Act.RUN)},
    ),
    Broken(
        "the destination runs the guest under NONE",
        CUT, "the guest runs at the destination under NONE",
        {(_D, _NONE, Event.HANDOVER): (_NONE, Act.RUN)},
    ),
    Broken(
        "a row is missing",
        CUT, "the destination may not take 'lost'",
        {(_D, _OWNER, Event.LOST): None},
    ),
    # -- steps of the source
    Broken(
        "Handover is sent before the word is written",
        KILL, TWO_OWNERS,
        source=wrong.SaysHandoverFirst,
    ),
    Broken(
        "the source leaves no record",
        KILL, "the guest runs at the source under RELINQUISHED",
        source=wrong.LeavesNoRecord,
    ),
    Broken(
        "a guest goes on whatever its word says",
        KILL, "the guest runs at the source under RELINQUISHED",
        source=wrong.GuestGoesOnAnyway,
    ),
    Broken(
        "the guest is not stopped",
        CUT, "the guest runs at the source under RELINQUISHED",
        source=wrong.NeverStopsTheGuest,
    ),
    Broken(
        "a write is missed",
        ROUND, "page 0 is stale",
        source=wrong.MissesAWrite,
    ),
    Broken(
        "a person takes back what is only cut off",
        CUT, TWO_OWNERS,
        source=wrong.TakesBackTooEarly,
    ),
    # -- steps of the destination
    Broken(
        "Fenced is said and not written down",
        CUT, ONLY_A_PERSON,
        dest=wrong.WritesNothingDown,
    ),
    Broken(
        "Resident is said and not written down",
        KILL, TWO_OWNERS,
        dest=wrong.WritesNoLossDown,
    ),
    Broken(
        "Fenced is forgotten before it is noted",
        CUT, ONLY_A_PERSON,
        dest=wrong.ForgetsBeforeItIsNoted,
    ),
    Broken(
        "Resident is forgotten before Released",
        KILL, TWO_OWNERS,
        dest=wrong.ResidentIsForgottenWhenSaid,
    ),
    Broken(
        "a restarted destination ends its shell without a word",
        KILL, ONLY_A_PERSON,
        dest=wrong.ForgetsTheShellItFound,
    ),
    Broken(
        "a restarted destination leaves its shell alone",
        KILL, NO_WAY,
        dest=wrong.KeepsTheShellItFound,
    ),
    Broken(
        "a failure with Handover read is not written down",
        CUT, ONLY_A_PERSON,
        dest=wrong.FailsSilentlyOnceHandoverIsRead,
    ),
    Broken(
        "the destination resumes before it writes OWNER",
        CUT, "the guest runs at the destination under NONE",
        dest=wrong.ResumesFirst,
    ),
    Broken(
        "READY is said before the session is noted",
        KILL, ONLY_A_PERSON,
        dest=wrong.NotesNoSession,
    ),
    Broken(
        "READY does not wait for the last round",
        CUT, "a page came between",
        dest=wrong.WaitsForNoRound,
    ),
    Broken(
        "READY does not wait for the last round, and lets it land",
        CUT, "RoundReceived may not be sent now",
        dest=wrong.WaitsForNoRoundAndLetsItLand,
    ),
    Broken(
        "hot pages stay foretold",
        CUT, NO_WAY,
        dest=wrong.KeepsHotPagesForetold,
    ),
    Broken(
        "claims outlive their link",
        CUT, NO_WAY,
        dest=wrong.KeepsClaims,
    ),
    Broken(
        "claims outlive their daemon",
        KILL, NO_WAY,
        dest=wrong.AdoptsClaims,
    ),
    Broken(
        "pages are claimed twice",
        FETCH, "page 0 was applied twice",
        dest=wrong.ClaimsTwice,
    ),
    Broken(
        "the bitmap is computed before the old link is closed",
        CUT, "page 0 was applied twice",
        dest=wrong.LeavesTheOldLinkOpen,
    ),
    Broken(
        "a page is received when it is claimed",
        CUT, "page 0 is stale",
        dest=wrong.ReceivesWhatItClaims,
    ),
    Broken(
        "Resident is said too early",
        CUT, "the source has freed pages",
        dest=wrong.IsWholeTooEarly,
    ),
    Broken(
        "a guest that perished is called fenced",
        KILL_AND_DEATH, "the source runs a guest again",
        dest=wrong.CallsALossFenced,
    ),
    Broken(
        "a destination that failed after the resume knows nothing",
        CUT, TWO_OWNERS,
        dest=wrong.FailsAfterTheResume,
    ),
]  # fmt: skip
