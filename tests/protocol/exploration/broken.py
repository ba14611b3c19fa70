"""Worlds in which one thing is deliberately wrong: a rule of the table, or one step of a script. Each has to be caught.

Every entry says how the world differs, in which bounds it shows, and what the exploration has to find.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pagefire.protocol.ownership import Act, Event, Owner
from pagefire.protocol.state import Phase, Side
from tests.protocol.exploration.destination import Steps
from tests.protocol.exploration.reception import DestScript
from tests.protocol.exploration.source import SourceScript
from tests.protocol.exploration.world import Bounds, D, Dest, Links, S, Source, Step, close

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


# -- steps of the source -------------------------------------------------------------------------------------------------------


class SaysHandoverFirst(SourceScript):
    def relinquish(self, source: Source, links: Links, listening: bool) -> Steps:
        for step in super().relinquish(source, links, listening):
            assert isinstance(step.actor, Source)
            sent = self.say(links, source.slot, "Handover")
            yield step._replace(actor=step.actor._replace(word=_OWNER, at=S.RELINQUISHED), links=sent)

    def hand_over(self, source: Source, links: Links, listening: bool) -> Steps:
        word, _ = self.on(source.word, Event.COMMIT)
        yield Step("source: relinquishes the guest", source._replace(word=word, at=S.HANDED), links)


class LeavesNoRecord(SourceScript):
    def leave_record(self, source: Source, links: Links, listening: bool) -> Steps:
        yield Step("source: leaves no record", source._replace(at=S.ACTIVE), links)


class GuestGoesOnAnyway(SourceScript):
    def outlives_its_host(self, source: Source) -> Source | None:
        return source._replace(running=True) if source.guest and not source.running else None


class MissesAWrite(SourceScript):
    def guest_writes(self, source: Source, links: Links) -> Steps:
        for step in super().guest_writes(source, links):
            assert isinstance(step.actor, Source)
            yield step._replace(actor=step.actor._replace(unsent=source.unsent))


class TakesBackTooEarly(SourceScript):
    """What `pagefire recover --take-back` warns of: nobody has said that the destination lost the guest."""

    def ask(self, source: Source, links: Links, listening: bool) -> Steps:
        return super().ask(source._replace(unknown=True), links, listening)


class NeverStopsTheGuest(SourceScript):
    def relinquish(self, source: Source, links: Links, listening: bool) -> Steps:
        for step in super().relinquish(source, links, listening):
            assert isinstance(step.actor, Source)
            yield step._replace(actor=step.actor._replace(running=True))


# -- steps of the destination --------------------------------------------------------------------------------------------------


class WritesNothingDown(DestScript):
    def journal(self, dest: Dest, word: str) -> Dest:
        return dest if word == "fenced" else super().journal(dest, word)


class WritesNoLossDown(DestScript):
    def journal(self, dest: Dest, word: str) -> Dest:
        return dest if word == "resident" else super().journal(dest, word)


class ForgetsBeforeItIsNoted(DestScript):
    def say_last_word(self, dest: Dest, links: Links) -> Steps:
        yield from super().say_last_word(self.forget_journal(dest), links)


class ForgetsTheShellItFound(DestScript):
    def write_found(self, dest: Dest, links: Links) -> Steps:
        yield Step("dest: ends the shell that it found", dest._replace(at=D.ENDING), links)


class KeepsTheShellItFound(DestScript):
    def write_found(self, dest: Dest, links: Links) -> Steps:
        yield Step("dest: keeps the shell that it found", dest._replace(at=D.OPEN), links)


class FailsSilentlyOnceHandoverIsRead(DestScript):
    may_be_handed_over = frozenset({Phase.READY})


class ResumesFirst(DestScript):
    def take_over(self, dest: Dest, links: Links) -> Steps:
        yield Step("dest: resumes the guest", dest._replace(running=dest.guest, ran=True, at=D.OWNED), links)


class NotesNoSession(DestScript):
    def arm(self, dest: Dest, links: Links) -> Steps:
        yield Step("dest: notes no session", dest._replace(at=D.ARMED), links)


class WaitsForNoRound(DestScript):
    def drained(self, dest: Dest) -> bool:
        return True


class WaitsForNoRoundAndLetsItLand(WaitsForNoRound):
    """Late pages of a round land although the bitmap has been installed."""

    def require(self, holds: bool, why: str) -> None:
        if not why.startswith("a page came"):
            super().require(holds, why)


class KeepsClaims(DestScript):
    def forget_unfinished(self, dest: Dest) -> tuple[bytes, int]:
        return dest.ledger, self.core.missing(dest.ledger)


class AdoptsClaims(DestScript):
    def adopt_ledger(self, dest: Dest) -> bytes:
        return dest.ledger

    def forget_unfinished(self, dest: Dest) -> tuple[bytes, int]:
        return dest.ledger, self.core.missing(dest.ledger)


class ClaimsTwice(DestScript):
    def claimed(self, dest: Dest, mask: int) -> tuple[bytes, int]:
        return self.core.claim(dest.ledger, mask)[0], mask


class LeavesTheOldLinkOpen(DestScript):
    """The bitmap is computed before the old link is closed: a thread of its still fills a page."""

    def give_up_link(self, dest: Dest, links: Links) -> tuple[Dest, Links]:
        return (dest._replace(slot=-1), links) if dest.at is D.POSTCOPY else super().give_up_link(dest, links)


class ReceivesWhatItClaims(DestScript):
    """One bit for claimed and received."""

    def claimed(self, dest: Dest, mask: int) -> tuple[bytes, int]:
        ledger, fresh = super().claimed(dest, mask)
        return self.core.mark_received(ledger, fresh), fresh


class IsWholeTooEarly(DestScript):
    def complete(self, dest: Dest) -> bool:
        return True


class CallsALossFenced(DestScript):
    def perished(self, dest: Dest, links: Links) -> Step:
        return super().perished(dest._replace(word=_FENCED), links)

    def write_perished(self, dest: Dest, links: Links) -> Steps:
        yield from self.write_fenced(dest, links)


class ResidentIsForgottenWhenSaid(DestScript):
    def tell(self, dest: Dest, links: Links) -> Steps:
        yield from super().tell(self.forget_journal(dest), links)


class FailsAfterTheResume(DestScript):
    """An error of its own ends the migration after the resume: the guest runs on, and who asks is told that nothing is known."""

    def after_resume(self, dest: Dest, links: Links) -> Steps:
        yield from super().after_resume(dest, links)
        if dest.at is D.POSTCOPY:
            links = close(links, dest.slot, self.side)
            yield Step("dest: fails after the resume", self.half_filled(dest)._replace(slot=-1, at=D.ARRIVED), links)


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
        source=SaysHandoverFirst,
    ),
    Broken(
        "the source leaves no record",
        KILL, "the guest runs at the source under RELINQUISHED",
        source=LeavesNoRecord,
    ),
    Broken(
        "a guest goes on whatever its word says",
        KILL, "the guest runs at the source under RELINQUISHED",
        source=GuestGoesOnAnyway,
    ),
    Broken(
        "the guest is not stopped",
        CUT, "the guest runs at the source under RELINQUISHED",
        source=NeverStopsTheGuest,
    ),
    Broken(
        "a write is missed",
        ROUND, "page 0 is stale",
        source=MissesAWrite,
    ),
    Broken(
        "a person takes back what is only cut off",
        CUT, TWO_OWNERS,
        source=TakesBackTooEarly,
    ),
    # -- steps of the destination
    Broken(
        "Fenced is said and not written down",
        CUT, ONLY_A_PERSON,
        dest=WritesNothingDown,
    ),
    Broken(
        "Resident is said and not written down",
        KILL, TWO_OWNERS,
        dest=WritesNoLossDown,
    ),
    Broken(
        "Fenced is forgotten before it is noted",
        CUT, ONLY_A_PERSON,
        dest=ForgetsBeforeItIsNoted,
    ),
    Broken(
        "Resident is forgotten before Released",
        KILL, TWO_OWNERS,
        dest=ResidentIsForgottenWhenSaid,
    ),
    Broken(
        "a restarted destination ends its shell without a word",
        KILL, ONLY_A_PERSON,
        dest=ForgetsTheShellItFound,
    ),
    Broken(
        "a restarted destination leaves its shell alone",
        KILL, NO_WAY,
        dest=KeepsTheShellItFound,
    ),
    Broken(
        "a failure with Handover read is not written down",
        CUT, ONLY_A_PERSON,
        dest=FailsSilentlyOnceHandoverIsRead,
    ),
    Broken(
        "the destination resumes before it writes OWNER",
        CUT, "the guest runs at the destination under NONE",
        dest=ResumesFirst,
    ),
    Broken(
        "READY is said before the session is noted",
        KILL, ONLY_A_PERSON,
        dest=NotesNoSession,
    ),
    Broken(
        "READY does not wait for the last round",
        CUT, "a page came between",
        dest=WaitsForNoRound,
    ),
    Broken(
        "READY does not wait for the last round, and lets it land",
        CUT, "RoundReceived may not be sent now",
        dest=WaitsForNoRoundAndLetsItLand,
    ),
    Broken(
        "claims outlive their link",
        CUT, NO_WAY,
        dest=KeepsClaims,
    ),
    Broken(
        "claims outlive their daemon",
        KILL, NO_WAY,
        dest=AdoptsClaims,
    ),
    Broken(
        "pages are claimed twice",
        FETCH, "page 0 was applied twice",
        dest=ClaimsTwice,
    ),
    Broken(
        "the bitmap is computed before the old link is closed",
        CUT, "page 0 was applied twice",
        dest=LeavesTheOldLinkOpen,
    ),
    Broken(
        "a page is received when it is claimed",
        CUT, "page 0 is stale",
        dest=ReceivesWhatItClaims,
    ),
    Broken(
        "Resident is said too early",
        CUT, "the source has freed pages",
        dest=IsWholeTooEarly,
    ),
    Broken(
        "a guest that perished is called fenced",
        KILL_AND_DEATH, "the source runs a guest again",
        dest=CallsALossFenced,
    ),
    Broken(
        "a destination that failed after the resume knows nothing",
        CUT, TWO_OWNERS,
        dest=FailsAfterTheResume,
    ),
]  # fmt: skip
