"""What the destination's daemon does besides one migration: greet, answer for sessions from the journal, die, start again.

dest_host/reception.py, and `adopt` of scripts/host_daemon.py.
"""

from __future__ import annotations

from pagefire.protocol import messages as m
from pagefire.protocol.ownership import Act, Event, Owner
from pagefire.protocol.state import Role
from tests.protocol.exploration.arrival import TAKEN_UP, ArrivalScript
from tests.protocol.exploration.destination import BEFORE_HANDOVER, Here, Steps
from tests.protocol.exploration.world import D, Dest, Kind, Links, Step, at, close, put

#: Where no migration is, and the journal answers.
_SETTLED = frozenset({D.OPEN, D.ARRIVED})
_FENCING = frozenset({D.FENCING, D.SAYING, D.SAID})


class DestScript(ArrivalScript):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._here: Here = {**self.incoming(), **self.arrival(), D.FOUND: self.write_found, D.DOWN: self.restart}

    def steps(self, dest: Dest, links: Links) -> Steps:
        """Give every step that the destination's side may take now."""
        if dest.at in self._here:
            yield from self._here[dest.at](dest, links)
        yield from self.guest_runs(dest, links)
        if not dest.up or dest.at is D.FOUND:
            return
        yield from self.after_resume(dest, links)
        for slot in range(len(links)):
            if links[slot] is not None and at(links, slot).dest_open:
                yield from self._on_link(dest, links, slot)

    def _on_link(self, dest: Dest, links: Links, slot: int) -> Steps:
        link = at(links, slot)
        if slot == dest.slot:
            if dest.at in BEFORE_HANDOVER:
                yield from self._script_on_link(dest, links)
            elif dest.at is D.SAID and link.to_dest:
                yield self.read_noted(dest, links)
        elif link.served:
            yield from self.serve(dest, links, slot)
        elif link.to_dest and not (dest.at is D.ENDING and link.role is Role.CONTROL):
            yield self.greet(dest, links, slot)
        elif link.gone:
            yield Step("dest: a caller is gone", dest, close(links, slot, self.side))

    def _script_on_link(self, dest: Dest, links: Links) -> Steps:
        """The migration's own link, before it owns the guest."""
        link = at(links, dest.slot)
        if link.to_dest and (step := self.read_before(dest, links)) is not None:
            yield step
        if link.pages and dest.at in (D.RECEIVING, D.INSTALLING, D.INSTALLED, D.ARMED, D.READY):
            landed = self.land(dest, links)
            if landed is not None:
                yield landed
        if link.gone:
            yield self.fail("dest: its link is lost", dest, links, Event.LOST)
        # An error of its own, or a daemon that is told to end
        failed = self.fail("dest: fails", dest, links, Event.FAILED)
        yield failed._replace(kind=Kind.ADVERSARY)
        if dest.at is not D.GREETED and not dest.guest:
            # IncomingMigration._guest_died
            yield self.fail("dest: its shell has died", dest, links, Event.FAILED)

    # -- who calls -----------------------------------------------------------------------------------------------------------------

    def greet(self, dest: Dest, links: Links, slot: int) -> Step:
        # Reception._greet
        message, _, links = self.hear(links, slot)
        assert isinstance(message, m.Hello)
        if at(links, slot).role is Role.CONTROL:
            # IncomingMigration._agree
            if dest.at is not D.OPEN:
                return Step("dest: refuses a caller", dest, close(links, slot, self.side))
            return Step(
                "dest: welcomes a migration", dest._replace(slot=slot, at=D.GREETED), self.say(links, slot, "Welcome")
            )
        # Reception._recover
        if dest.at in _SETTLED and not dest.journal:
            links = close(self.say(links, slot, "Failure"), slot, self.side)
            return Step("dest: knows nothing of the session", dest, links)
        return self.asked(dest, self.say(links, slot, "Welcome"), slot)

    def asked(self, dest: Dest, links: Links, slot: int) -> Step:
        # IncomingMigration.take_up
        served = "queued" if dest.at in TAKEN_UP else "waiting"
        links = put(links, slot, at(links, slot)._replace(served=served))
        label = f"dest: is asked, {served}"
        may_fence = dest.at in _FENCING or (dest.at in BEFORE_HANDOVER and dest.at is not D.GREETED)
        if may_fence and dest.guest and self.on(dest.word, Event.ASKED)[1] is Act.SAY_TAKEN:
            links = self.say(put(links, slot, at(links, slot)._replace(served="said")), slot, "Taken", 0)
            return Step(label, dest, links)
        if dest.at not in BEFORE_HANDOVER:
            return Step(label, dest, links)
        return self.fail(label, dest, links, Event.ASKED)

    def serve(self, dest: Dest, links: Links, slot: int) -> Steps:
        """A question that the reception answers, beside whatever the migration does."""
        link = at(links, slot)
        if link.served == "waiting" and dest.at in _SETTLED:
            yield self.answer(dest, links, slot)
        if link.served == "queued" and dest.at in _SETTLED:
            # Nobody reads the queue any more.
            yield Step("dest: a question was too late", dest, close(links, slot, self.side))
        if link.served == "said":
            if link.to_dest:
                # Reception._answer, say_last_word
                message, frame, heard = self.hear(links, slot)
                if isinstance(message, m.Noted | m.Failure | m.Released):
                    after = self.forget_journal(dest)
                    yield Step(f"dest: hears {frame.name}, and forgets", after, close(heard, slot, self.side))
            # The link is gone, or the time for it is over.
            yield Step("dest: its answer is not noted", dest, close(links, slot, self.side))
        elif link.gone:
            yield Step("dest: who asked is gone", dest, close(links, slot, self.side))

    def answer(self, dest: Dest, links: Links, slot: int) -> Step:
        # Reception._recover, _answer
        if not dest.journal:
            links = close(self.say(links, slot, "Failure"), slot, self.side)
            return Step("dest: knows nothing of the session", dest, links)
        if dest.journal == "resident":
            links = self.say(self.say(links, slot, "Taken", 0), slot, "Resident")
        else:
            links = self.say(links, slot, "Fenced" if dest.journal == "fenced" else "Perished")
        links = put(links, slot, at(links, slot)._replace(served="said"))
        return Step(f"dest: answers {dest.journal}", dest, links)

    # -- daemons that die ----------------------------------------------------------------------------------------------------------

    def killed(self, dest: Dest, links: Links) -> Step:
        """kill -9 of the daemon: its mappings and sockets go, the guest's process, what lies in it and the journal stay."""
        for slot in range(len(links)):
            links = close(links, slot, self.side)
        after = self.half_filled(dest)._replace(at=D.DOWN, slot=-1, acknowledged=0, switchover=None)
        return Step(
            "the destination's daemon is killed", after if dest.guest else self.blank(after), links, Kind.ADVERSARY
        )

    def guest_killed(self, dest: Dest, links: Links) -> Step:
        after = dest._replace(guest=False, running=False, died=True)
        return Step(
            "the guest's process at the destination is killed",
            after if dest.up else self.blank(after),
            links,
            Kind.ADVERSARY,
        )

    def outlives_its_host(self, dest: Dest) -> Dest | None:
        """Server._outlives_its_host: what the guest does when its daemon has gone; None: nothing more."""
        if dest.guest and dest.word is Owner.OWNER and not dest.running:
            return dest._replace(running=True, ran=True)
        if dest.guest and dest.word is Owner.NONE and not dest.session:
            return self.blank(dest)
        return None

    def restart(self, dest: Dest, links: Links) -> Steps:
        # HostDaemon.adopt; the guest looks after itself before it answers the next daemon
        after = self.outlives_its_host(dest)
        if after is not None:
            yield Step("dest: the guest sees that its daemon has gone", after, links)
            return
        label = "dest: a daemon starts"
        if not dest.guest:
            yield Step(label, dest._replace(at=D.OPEN), links)
        elif dest.word in (Owner.NONE, Owner.FENCED):
            yield self.find_shell(label, dest, links)
        elif dest.kept:
            # Reception.adopt, DemandPaging.adopt, IncomingMigration._take_over
            word, act = self.on(dest.word, Event.RESTARTED)
            self.expect(act, Act.RUN)
            after = dest._replace(word=word, ledger=self.adopt_ledger(dest), running=True, ran=True, at=D.POSTCOPY)
            yield Step(label, after, links)
        else:
            # HostDaemon.take_in: it had arrived
            yield Step(label, dest._replace(at=D.ARRIVED), links)

    def adopt_ledger(self, dest: Dest) -> bytes:
        return self.core.adopt(dest.ledger)

    def find_shell(self, label: str, dest: Dest, links: Links) -> Step:
        # migration.fence: the word, the journal, the end of the shell
        word, act = self.on(dest.word, Event.RESTARTED)
        self.expect(act, Act.SAY_FENCED, Act.RUN)
        if act is Act.RUN:
            return Step(label, dest._replace(word=word, running=True, ran=True, at=D.POSTCOPY), links)
        return Step(label, dest._replace(word=word, at=D.FOUND), links)

    def write_found(self, dest: Dest, links: Links) -> Steps:
        # migration.fence: only a shell that was READY can have been handed over
        after = self.journal(dest, "fenced") if dest.session else dest
        yield Step("dest: fences the shell that it found", after._replace(at=D.ENDING), links)
