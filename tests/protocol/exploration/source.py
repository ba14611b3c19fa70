"""What the source's scripts do, step by step, up to the commit point, and what they hear. Beside each step stands its function.

source_host/migration.py and source_host/link.py; the part after the commit point is in departure.py.
"""

from __future__ import annotations

from pagefire.protocol import messages as m
from pagefire.protocol.ownership import Act, Event, Owner
from pagefire.protocol.state import Role
from tests.protocol.exploration.departure import DepartureScript, Here, Steps, without_rounds
from tests.protocol.exploration.world import (
    BEFORE_COMMIT,
    Kind,
    Links,
    S,
    Source,
    Step,
    at,
    changed,
    close,
    pages_in,
    put,
)

#: Where the script has a link and is told when it is gone.
_WATCHING = BEFORE_COMMIT | {S.RELINQUISHED, S.HANDED, S.ASKED, S.MOVING, S.RELEASING, S.RELEASED, S.REASKED}
#: Where the script reads its control connection.
_READING = BEFORE_COMMIT - {S.JOINED, S.STOPPED} | {S.HANDED, S.ASKED, S.MOVING, S.RELEASED, S.REASKED}


class SourceScript(DepartureScript):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._here: Here = {
            **self.departing(),
            S.IDLE: self.begin,
            S.JOINED: self.leave_record,
            S.ACTIVE: self.precopy,
            S.FORETOLD: self.stop_guest,
            S.STOPPED: self.switch_over,
            S.READY: self.relinquish,
            S.ABORTING: self.abort,
            S.FORGETTING: self.forget_record,
        }

    def steps(self, source: Source, links: Links, listening: bool) -> Steps:
        """Give every step that the source's side may take now. `listening`: whether a connection to the destination can be made."""
        if source.at in self._here:
            yield from self._here[source.at](source, links, listening)
        if source.at in (S.ACTIVE, S.ROUND, S.FORETOLD):
            yield from self.guest_writes(source, links)
        if source.at in BEFORE_COMMIT:
            yield from self.end_early(source, links)
        if source.word is Owner.RELINQUISHED and source.at in (S.RELINQUISHED, S.HANDED, S.ASKING, S.ASKED, S.MOVING):
            yield from self.cancel_late(source, links)
        if source.at in _WATCHING and self._lost(links, source.slot):
            yield from self.lost(source, links)
        if source.at in _READING and at(links, source.slot).to_source:
            yield self.read(source, links)
        if source.at is S.MOVING and at(links, source.slot).fetches:
            yield self.serve_fault(source, links)

    # -- before the commit point -----------------------------------------------------------------------------------------------

    def begin(self, source: Source, links: Links, listening: bool) -> Steps:
        # OutgoingMigration._negotiate, Link.open
        if listening and source.guest:
            slot, links = self.connect(links, Role.CONTROL)
            yield Step("source: begins a migration", source._replace(at=S.GREETING, slot=slot), links)

    def leave_record(self, source: Source, links: Links, listening: bool) -> Steps:
        # OutgoingMigration._negotiate: before the first round
        yield Step("source: leaves its record with the guest", source._replace(kept=True, at=S.ACTIVE), links)

    def guest_writes(self, source: Source, links: Links) -> Steps:
        if source.running and source.writes_left:
            for page in range(self.bounds.pages):
                versions = changed(source.versions, page, source.versions[page] + 1)
                after = source._replace(
                    versions=versions, unsent=source.unsent | 1 << page, writes_left=source.writes_left - 1
                )
                yield Step(f"source: the guest writes page {page}", after, links)

    def precopy(self, source: Source, links: Links, listening: bool) -> Steps:
        # OutgoingMigration._precopy: the collection is taken, then sent; what is written meanwhile is of the next one
        if source.rounds_left and source.unsent:
            number = source.round + 1
            after = source._replace(unsent=0, round=number, rounds_left=source.rounds_left - 1, at=S.ROUND)
            yield Step("source: begins a round", after, self._round(links, source, source.unsent, number))
        if source.unsent:
            # LastPages._foretell
            after = source._replace(foretold=source.unsent, at=S.FORETOLD)
            yield Step("source: foretells", after, self.say(links, source.slot, "Foretold", source.unsent))
        yield from self.stop_guest(source, links, listening)

    def stop_guest(self, source: Source, links: Links, listening: bool) -> Steps:
        # OutgoingMigration._switch_over, _quiesce
        yield Step("source: the guest is stopped", source._replace(running=False, at=S.STOPPED), links)

    def switch_over(self, source: Source, links: Links, listening: bool) -> Steps:
        # OutgoingMigration._switch_over: whichever of the last pages it sends at once (`_divided`), the others are named
        for at_once in range(source.unsent + 1):
            if at_once & ~source.unsent:
                continue
            later, number, sent = source.unsent & ~at_once, source.round, links
            if at_once:
                number += 1
                sent = self._round(links, source, at_once, number)
            hot = at_once if later or source.foretold else 0
            sent = self.say(sent, source.slot, "Switchover", later & ~source.foretold, hot, number)
            after = source._replace(unsent=later, round=number, foretold=0, at=S.SWITCHING)
            yield Step(f"source: switches over, pages {pages_in(later)} are left", after, sent)

    def relinquish(self, source: Source, links: Links, listening: bool) -> Steps:
        # OutgoingMigration._verify
        if self.bounds.verify and (known := self.core.every & ~source.unsent):
            versions = tuple(source.versions[page] for page in pages_in(known))
            sent = self.say(links, source.slot, "PageDigests", known, versions)
            yield Step("source: sends digests", source._replace(at=S.VERIFYING), sent)
        # OutgoingMigration._relinquish: the commit point
        word, act = self.on(source.word, Event.COMMIT)
        self.expect(act, Act.HAND_OVER)
        after = without_rounds(source)._replace(word=word, unsent=source.unsent, at=S.RELINQUISHED)
        yield Step("source: relinquishes the guest", after, links)

    def end_early(self, source: Source, links: Links) -> Steps:
        if not source.guest:
            # OutgoingMigration._watch, _fail: the owner word is not asked about a guest that has died
            yield Step("source: its guest has died", without_rounds(source)._replace(at=S.ABORTING), links)
            return
        # ResidentGuest.cancel; a rule of convergence, a timeout and an error of this host's own end it the same way
        yield Step("source: a person cancels", self._stays(source, Event.CANCEL), links, Kind.PERSON)
        if source.at is S.SWITCHING:
            yield Step("source: no READY in time", self._stays(source, Event.FAILED), links)

    def cancel_late(self, source: Source, links: Links) -> Steps:
        # ResidentGuest.cancel after the commit point: too late, and nothing changes
        word, act = self.on(source.word, Event.CANCEL)
        if act is not Act.REFUSE:
            yield Step("source: a person cancels", source._replace(word=word, at=S.OURS), links, Kind.PERSON)

    def _stays(self, source: Source, event: Event) -> Source:
        """OutgoingMigration._fail before the commit point: first of all the guest goes on."""
        word, act = self.on(source.word, event)
        self.expect(act, Act.RUN)
        return without_rounds(source)._replace(word=word, running=source.guest, at=S.ABORTING)

    def abort(self, source: Source, links: Links, listening: bool) -> Steps:
        # Link.abort: tell the peer why, if that may be said, and close
        if self.may_say(links, source.slot, "Failure"):
            links = self.say(links, source.slot, "Failure")
        yield Step(
            "source: ends the migration",
            source._replace(slot=-1, at=S.FORGETTING),
            close(links, source.slot, self.side),
        )

    def forget_record(self, source: Source, links: Links, listening: bool) -> Steps:
        # departure.forget_record
        yield Step("source: forgets its record", source._replace(kept=False, unknown=False, at=S.ENDED), links)

    # -- reading -------------------------------------------------------------------------------------------------------------------

    def read(self, source: Source, links: Links) -> Step:
        """Take the next message of the control connection, wherever the script reads it."""
        message, frame, links = self.hear(links, source.slot)
        label = f"source: hears {frame.name}"
        match message:
            case m.Welcome():
                return self._welcomed(label, source, links)
            case m.Accept():
                # Link.open: the further connections join
                links = put(links, source.slot, at(links, source.slot)._replace(joined=True))
                return Step(label, source._replace(at=S.JOINED), links)
            case m.RoundReceived():
                return Step(label, source._replace(at=S.ACTIVE if source.at is S.ROUND else source.at), links)
            case m.Ready():
                return Step(label, source._replace(at=S.READY), links)
            case m.DigestsCompared(differing):
                self.require(not differing, "the digests of both hosts differ")
                return Step(label, source._replace(at=S.READY), links)
            case m.Failure() if source.at in BEFORE_COMMIT:
                return Step(label, self._stays(source, Event.FAILED), links)
            case m.Fenced() if source.at in BEFORE_COMMIT:
                return Step(label, self._stays(source, Event.FENCED), links)
            case m.Resumed():
                # Departure.hand_over
                return self.obey(label, source, Event.TAKEN, links)
            case m.Taken():
                return self._answered(label, source, frame.payload, links)
            case m.Fenced() if source.at is not S.REASKED:
                return self.obey(label, source, Event.FENCED, links)
            case m.Perished() if source.at is not S.REASKED:
                return self.obey(label, source, Event.PERISHED, links)
            case m.Failure() if source.at is not S.REASKED:
                # Departure.ask: PeerRefused
                return self.obey(label, source, Event.UNKNOWN, links)
            case m.Resident() if source.at is S.REASKED:
                return Step(label, source._replace(at=S.RELEASING), links)
            case m.Resident():
                # OutgoingMigration._conclude, AdoptedMigration.run
                return self.obey(label, source, Event.RESIDENT, links)
            case _:
                # Departure.release: an aftermath, or that it cannot be heard any more. Completed either way.
                return Step(label, source._replace(slot=-1, at=S.ENDED), close(links, source.slot, self.side))

    def _welcomed(self, label: str, source: Source, links: Links) -> Step:
        # Link.open goes on with the offer, Link.ask waits for the answer
        if source.at is not S.GREETING:
            return Step(label, source, links)
        return Step(label, source._replace(at=S.OFFERED), self.say(links, source.slot, "Offer"))

    def _answered(self, label: str, source: Source, bitmap: object, links: Links) -> Step:
        # Departure._ask_on; Departure._link_to_release_on does not look at the bitmap
        if source.at is S.REASKED:
            return Step(label, source, links)
        missing = self.core.decoded(bitmap)
        source = source._replace(unsent=missing, unknown=False)
        if not missing:
            return Step(label, source._replace(at=S.MOVING), links)
        links = put(links, source.slot, at(links, source.slot)._replace(joined=True))
        return self.obey(label, source, Event.TAKEN, links)

    # -- links -----------------------------------------------------------------------------------------------------------------

    def _lost(self, links: Links, slot: int) -> bool:
        # Silence: a recovery that the destination will not answer before something has ended there
        link = at(links, slot)
        return link.gone or (link.served in ("queued", "waiting") and not link.to_source)

    def lost(self, source: Source, links: Links) -> Steps:
        """The link is gone, or silent for too long: what had not been read of it is lost."""
        label = "source: its link is lost"
        if source.at in BEFORE_COMMIT:
            if source.guest:
                yield Step(label, self._stays(source, Event.LOST), links)
        elif source.at in (S.RELEASING, S.RELEASED, S.REASKED):
            # Departure.release
            yield Step(label, source._replace(slot=-1, at=S.REASKING), close(links, source.slot, self.side))
        else:
            # Departure.hand_over, move, ask: Departure._pause
            yield self.obey(label, source, Event.LOST, links)

    def _round(self, links: Links, source: Source, mask: int, number: int) -> Links:
        versions = tuple(source.versions[page] for page in pages_in(mask))
        links = self.stream(links, source.slot, "pages", Role.PAGES, "Pages", mask, versions)
        return self.stream(links, source.slot, "pages", Role.PAGES, "RoundEnd", number)
