"""Scripts of which one step is deliberately wrong; broken.py says what each has to be caught by."""

from __future__ import annotations

from pagefire.protocol.ownership import Event, Owner
from pagefire.protocol.state import Phase
from tests.protocol.exploration.destination import Steps
from tests.protocol.exploration.reception import DestScript
from tests.protocol.exploration.source import SourceScript
from tests.protocol.exploration.world import D, Dest, Links, S, Source, Step, close

# -- steps of the source -------------------------------------------------------------------------------------------------------


class SaysHandoverFirst(SourceScript):
    def relinquish(self, source: Source, links: Links, listening: bool) -> Steps:
        for step in super().relinquish(source, links, listening):
            assert isinstance(step.actor, Source)
            sent = self.say(links, source.slot, "Handover")
            yield step._replace(actor=step.actor._replace(word=Owner.OWNER, at=S.RELINQUISHED), links=sent)

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


class KeepsHotPagesForetold(DestScript):
    def install(self, dest: Dest, links: Links) -> Steps:
        if dest.switchover is not None:
            dest = dest._replace(switchover=(*dest.switchover[:2], 0))
        yield from super().install(dest, links)


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
        return super().perished(dest._replace(word=Owner.FENCED), links)

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
