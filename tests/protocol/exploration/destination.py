"""What the destination's scripts do, step by step: one incoming migration, up to the resume. Beside each step stands its function.

The daemon's part that outlives a migration (the reception, the journal's answers, adoption) is in reception.py, the part after the
resume in arrival.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pagefire.protocol import messages as m
from pagefire.protocol.ownership import Act, Event, Owner
from pagefire.protocol.state import Phase, Role, Side
from tests.protocol.exploration.core import mask_of
from tests.protocol.exploration.script import Script
from tests.protocol.exploration.world import HALF, HOLE, D, Dest, Frame, Links, Step, at, changed, close, pages_in

Steps = Iterator[Step]
Here = dict[D, Callable[[Dest, Links], Steps]]

#: Where the script has not taken the guest and is told when its link is gone.
BEFORE_HANDOVER = frozenset({D.GREETED, D.SHELL, D.RECEIVING, D.INSTALLING, D.INSTALLED, D.ARMED, D.READY})


class IncomingScript(Script):
    side = Side.DESTINATION
    #: From here on the source may have handed over: whoever fails writes down that it has fenced.
    may_be_handed_over = frozenset({Phase.READY, Phase.COMMITTED})

    def incoming(self) -> Here:
        return {
            D.SHELL: self.accept,
            D.INSTALLING: self.install,
            D.INSTALLED: self.arm,
            D.ARMED: self.ready,
            D.HANDOVER: self.take_over,
            D.OWNED: self.resume,
            D.FENCING: self.write_fenced,
            D.PERISHING: self.write_perished,
            D.SAYING: self.say_last_word,
            D.SAID: self.give_up_last_word,
            D.ENDING: self.terminate,
        }

    # -- before the commit point -----------------------------------------------------------------------------------------------

    def prepare(self, dest: Dest, links: Links) -> Dest:
        # IncomingMigration._prepare, DemandPaging.begin: a parked shell, its ledger and record kept with it
        ledger = bytes(self.bounds.pages)
        return dest._replace(guest=True, word=Owner.NONE, kept=True, ledger=ledger, at=D.SHELL)

    def accept(self, dest: Dest, links: Links) -> Steps:
        # IncomingMigration.run
        yield Step("dest: accepts", dest._replace(at=D.RECEIVING), self.say(links, dest.slot, "Accept"))

    def read_before(self, dest: Dest, links: Links) -> Step | None:
        """Take the next message of the control connection, wherever the script reads it before it owns the guest."""
        frame = at(links, dest.slot).to_dest[0]
        label = f"dest: hears {frame.name}"
        message, frame, heard = self.hear(links, dest.slot)
        match message:
            case m.Offer() if dest.at is D.GREETED:
                return Step(label, self.prepare(dest, heard), heard)
            case m.Foretold() if dest.at is D.RECEIVING:
                # IncomingMigration._foretell
                ledger = self.core.foretell(dest.ledger, self.core.decoded(frame.payload))
                return Step(label, dest._replace(ledger=ledger), heard)
            case m.Switchover(last_round=last_round, hot=hot) if dest.at is D.RECEIVING:
                # IncomingMigration._receive_rounds, _missing
                missing = self.core.decoded(frame.payload)
                return Step(
                    label, dest._replace(switchover=(last_round, missing, mask_of(hot)), at=D.INSTALLING), heard
                )
            case m.PageDigests(pages) if dest.at is D.READY:
                # IncomingMigration._await_handover
                here = tuple(dest.contents[page] for page in pages_in(mask_of(pages)))
                differing = mask_of(pages) if here != frame.payload else 0
                return Step(label, dest, self.say(heard, dest.slot, "DigestsCompared", differing))
            case m.Handover() if dest.at is D.READY:
                return Step(label, dest._replace(at=D.HANDOVER), heard)
            case m.Failure():
                return self.fail(label, dest, heard, Event.FAILED)
        return None

    def land(self, dest: Dest, links: Links) -> Step | None:
        """A page connection brings its next frame before the resume: PageReceiver._take, Intake.take."""
        if dest.at in (D.READY, D.ARMED, D.INSTALLED):
            # READY is sent when every round's marker has come, and nothing is sent before HANDOVER after that
            self.require(False, "a page came between the last round and the resume")
        message, frame, links = self.take(links, dest.slot, "pages", Role.PAGES)
        match message:
            case m.Pages(pages):
                contents = dest.contents
                for page, version in zip(pages_in(mask_of(pages)), _versions(frame), strict=True):
                    contents = changed(contents, page, version)
                ledger = self.core.mark_filled(dest.ledger, mask_of(pages))
                return Step(f"dest: {frame.name} land", dest._replace(contents=contents, ledger=ledger), links)
            case m.RoundEnd(number):
                # Link.acknowledge_round
                links = self.say(links, dest.slot, "RoundReceived", number)
                return Step("dest: acknowledges a round", dest._replace(acknowledged=number), links)
        return None

    def drained(self, dest: Dest) -> bool:
        assert dest.switchover is not None
        return dest.acknowledged >= dest.switchover[0]

    def install(self, dest: Dest, links: Links) -> Steps:
        # IncomingMigration._install: the drain, then the registers, then Intake.resume_begins
        if self.drained(dest):
            assert dest.switchover is not None
            _, missing, hot = dest.switchover
            ledger = self.core.set_missing(dest.ledger, missing, hot)
            after = dest._replace(ledger=ledger, switchover=None, acknowledged=0, at=D.INSTALLED)
            yield Step("dest: installs the switchover", after, links)

    def arm(self, dest: Dest, links: Links) -> Steps:
        # IncomingMigration._install: the session, before READY
        yield Step("dest: notes the session", dest._replace(session=True, at=D.ARMED), links)

    def ready(self, dest: Dest, links: Links) -> Steps:
        yield Step("dest: says Ready", dest._replace(at=D.READY), self.say(links, dest.slot, "Ready"))

    # -- the commit point --------------------------------------------------------------------------------------------------------

    def take_over(self, dest: Dest, links: Links) -> Steps:
        # IncomingMigration._take_over: OWNER is written before a vCPU is unparked
        word, act = self.on(dest.word, Event.HANDOVER)
        self.expect(act, Act.RUN)
        yield Step("dest: owns the guest", dest._replace(word=word, at=D.OWNED), links)
        # `beside` raises the link's error, or a cancellation, although HANDOVER has been read
        yield self.fail("dest: fails, with Handover read", dest, links, Event.FAILED)

    def resume(self, dest: Dest, links: Links) -> Steps:
        after = dest._replace(running=dest.guest, ran=dest.ran or dest.guest, at=D.TAKEN)
        yield Step("dest: resumes the guest", after, links)

    # -- the failure exit --------------------------------------------------------------------------------------------------------

    def fail(self, label: str, dest: Dest, links: Links, event: Event) -> Step:
        """IncomingMigration._fail, where the guest has not been taken.

        The script asks with FAILED whatever it was; the rows of LOST and ASKED are walked here as well.
        """
        dest = dest._replace(acknowledged=0, switchover=None)
        if dest.at is D.GREETED:
            return Step(label, dest._replace(at=D.ENDING, slot=-1), self._refused(links, dest.slot))
        word, act = self.on(dest.word, event)
        dest = dest._replace(word=word)
        self.expect(act, Act.SAY_FENCED)
        if self.phase(links, dest.slot) in self.may_be_handed_over:
            return Step(label, dest._replace(at=D.FENCING), links)
        return Step(label, dest._replace(at=D.ENDING, slot=-1), self._refused(links, dest.slot))

    def _refused(self, links: Links, slot: int) -> Links:
        """IncomingMigration._say: a Failure, where it may be said."""
        if self.may_say(links, slot, "Failure"):
            links = self.say(links, slot, "Failure")
        return close(links, slot, self.side)

    def journal(self, dest: Dest, word: str) -> Dest:
        """Journal.write: it is there when this returns."""
        return dest._replace(journal=word)

    def forget_journal(self, dest: Dest) -> Dest:
        """Journal.forget: the source has noted it."""
        return dest._replace(journal="")

    def write_fenced(self, dest: Dest, links: Links) -> Steps:
        # IncomingMigration._last_word, host_daemon.adopt's fence: written down before it is said
        yield Step("dest: writes down that it fenced", self.journal(dest, "fenced")._replace(at=D.SAYING), links)

    def write_perished(self, dest: Dest, links: Links) -> Steps:
        yield Step(
            "dest: writes down that the guest perished", self.journal(dest, "perished")._replace(at=D.SAYING), links
        )

    def say_last_word(self, dest: Dest, links: Links) -> Steps:
        # say_last_word
        name = "Perished" if dest.at is D.SAYING and dest.word is Owner.OWNER else "Fenced"
        if dest.slot >= 0 and self.may_say(links, dest.slot, name):
            yield Step(f"dest: says {name}", dest._replace(at=D.SAID), self.say(links, dest.slot, name))
        else:
            yield Step(
                "dest: has nobody to tell", dest._replace(at=D.ENDING, slot=-1), close(links, dest.slot, self.side)
            )

    def give_up_last_word(self, dest: Dest, links: Links) -> Steps:
        # say_last_word: the link is gone, or LAST_WORD_S are over
        if dest.guest:
            dest = dest._replace(word=self.on(dest.word, Event.LOST)[0])
        after = dest._replace(at=D.ENDING, slot=-1)
        yield Step("dest: its last word is not noted", after, close(links, dest.slot, self.side))

    def read_noted(self, dest: Dest, links: Links) -> Step:
        """say_last_word: what the source had sent before it heard is read and ignored, a Handover too."""
        message, frame, links = self.hear(links, dest.slot)
        label = f"dest: hears {frame.name} after its last word"
        if isinstance(message, m.Noted | m.Failure):
            slot, dest = dest.slot, self.forget_journal(dest)._replace(at=D.ENDING, slot=-1)
            return Step(label, dest, close(links, slot, self.side))
        if isinstance(message, m.Handover) and dest.word is not Owner.OWNER:
            # The script does not look at it; the rules would not let it take the guest either.
            word, act = self.on(dest.word, Event.HANDOVER)
            if act is Act.RUN:
                return Step(label, dest._replace(word=word, at=D.OWNED), links)
        return Step(label, dest, links)

    def terminate(self, dest: Dest, links: Links) -> Steps:
        # GuestProcess.terminate: the shell, or what is left of the guest, goes with all that lay in it
        yield Step("dest: is rid of the guest", self.blank(dest)._replace(at=D.OPEN), links)

    def blank(self, dest: Dest) -> Dest:
        """The guest's process and its memory are gone; what it did and what is in the journal stays."""
        return Dest((HOLE,) * self.bounds.pages, b"", journal=dest.journal, ran=dest.ran, died=dest.died, at=dest.at)

    def half_filled(self, dest: Dest, slot: int | None = None) -> Dest:
        """Whoever fills a page from this link (None: from any) stops in its middle."""
        contents = dest.contents
        stopped = tuple(one for one in dest.filling if slot is None or one.slot == slot)
        for one in stopped:
            contents = changed(contents, one.page, HALF)
        return dest._replace(contents=contents, filling=tuple(one for one in dest.filling if one not in stopped))


def _versions(frame: Frame) -> tuple[int, ...]:
    assert isinstance(frame.payload, tuple)
    return frame.payload
