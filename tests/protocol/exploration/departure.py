"""What the source's scripts do after the commit point, and when its daemon dies and another one starts.

source_host/departure.py, source_host/adopted.py and `settle` of source_host/resident.py. Acts are obeyed as they come: a rule that
says RUN where the product's says ASK makes this source run the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pagefire.protocol import messages as m
from pagefire.protocol.ownership import Act, Event, Owner
from pagefire.protocol.state import Role, Side
from tests.protocol.exploration.core import mask_of
from tests.protocol.exploration.script import Script
from tests.protocol.exploration.world import Kind, Link, Links, S, Source, Step, at, close, pages_in, put

Steps = Iterator[Step]
Here = dict[S, Callable[[Source, Links, bool], Steps]]


class DepartureScript(Script):
    side = Side.SOURCE

    def departing(self) -> Here:
        return {
            S.RELINQUISHED: self.hand_over,
            S.ASKING: self.ask,
            S.MOVING: self.push,
            S.OURS: self.run_again,
            S.LOST_THERE: self.note_loss,
            S.KEPT: self.take_back,
            S.FREEING: self.free,
            S.RELEASING: self.release,
            S.REASKING: self.ask_to_release,
            S.DOWN: self.restart,
        }

    # -- after the commit point ----------------------------------------------------------------------------------------------------

    def obey(self, label: str, source: Source, event: Event, links: Links) -> Step:
        """Take an event to the rules, and do what follows from it."""
        word, act = self.on(source.word, event)
        source = source._replace(word=word)
        match act:
            case Act.RUN:
                return Step(label, source._replace(at=S.OURS), links)
            case Act.ASK | Act.KEEP if event is not Event.PERISHED:
                source = source._replace(
                    slot=-1, unsent=0, at=S.ASKING, unknown=source.unknown or event is Event.UNKNOWN
                )
                return Step(label, source, self._closed(links))
            case Act.KEEP:
                return Step(label, source._replace(at=S.LOST_THERE), links)
            case Act.MOVE:
                return Step(label, source._replace(at=S.MOVING), links)
            case Act.FREE:
                return Step(label, source._replace(at=S.FREEING), links)
        self.expect(act)
        raise AssertionError

    def _closed(self, links: Links) -> Links:
        """Close whichever link is open at this side: Departure.close, and the link of an attempt that failed."""
        for slot in range(len(links)):
            if links[slot] is not None and at(links, slot).source_open:
                links = close(links, slot, self.side)
        return links

    def hand_over(self, source: Source, links: Links, listening: bool) -> Steps:
        # Departure.hand_over
        yield Step("source: sends Handover", source._replace(at=S.HANDED), self.say(links, source.slot, "Handover"))

    def ask(self, source: Source, links: Links, listening: bool) -> Steps:
        # Departure.ask, Link.ask
        if listening and None in links:
            slot, connected = self.connect(links, Role.RECOVERY)
            yield Step("source: asks what became of the session", source._replace(slot=slot, at=S.ASKED), connected)
        # ResidentGuest.recover, as the rules mean it: where the destination knows nothing
        if source.unknown:
            yield from self.take_back(source, links, listening)

    def take_back(self, source: Source, links: Links, listening: bool) -> Steps:
        # ResidentGuest.recover, Departure.take_back, ResidentGuest._run_again: not where the process here has ended too
        if source.guest:
            word, act = self.on(source.word, Event.TAKE_BACK)
            self.expect(act, Act.RUN)
            after = source._replace(word=word, taken_back=True, at=S.OURS)
            yield Step("source: a person takes the guest back", after, links, Kind.PERSON)

    def push(self, source: Source, links: Links, listening: bool) -> Steps:
        # postcopy.push, in any order
        for page in pages_in(source.unsent):
            sent = self.stream(links, source.slot, "pages", Role.PAGES, "Pages", 1 << page, (source.versions[page],))
            yield Step(f"source: pushes page {page}", source._replace(unsent=source.unsent & ~(1 << page)), sent)

    def serve_fault(self, source: Source, links: Links) -> Step:
        # FaultStream: answered even where the push has taken the page
        message, _, links = self.take(links, source.slot, "fetches", Role.FAULT)
        assert isinstance(message, m.Fetch)
        wanted = mask_of(message.pages)
        versions = tuple(source.versions[page] for page in pages_in(wanted))
        links = self.stream(links, source.slot, "fetched", Role.FAULT, "Pages", wanted, versions)
        return Step(
            f"source: answers a fetch of {pages_in(wanted)}", source._replace(unsent=source.unsent & ~wanted), links
        )

    def run_again(self, source: Source, links: Links, listening: bool) -> Steps:
        # Departure._believe: the word is written; then noted, closed, resumed; the record goes last
        if source.slot >= 0 and self.may_say(links, source.slot, "Noted"):
            links = self.say(links, source.slot, "Noted")
        after = source._replace(running=source.guest, slot=-1, at=S.FORGETTING)
        yield Step("source: runs the guest again", after, self._closed(links))

    def note_loss(self, source: Source, links: Links, listening: bool) -> Steps:
        # Departure._believe: Perished; what is here is kept for a person
        links = self.say(links, source.slot, "Noted")
        yield Step("source: notes the loss", source._replace(slot=-1, at=S.KEPT), self._closed(links))

    def free(self, source: Source, links: Links, listening: bool) -> Steps:
        # Link.close_pages, GuestProcess.terminate
        links = put(links, source.slot, at(links, source.slot)._replace(stripped=True, fetches=(), fetched=()))
        after = source._replace(guest=False, memory=False, freed=True, kept=False, unsent=0, at=S.RELEASING)
        yield Step("source: frees its copy", after, links)

    def release(self, source: Source, links: Links, listening: bool) -> Steps:
        # Departure.release
        yield Step("source: sends Released", source._replace(at=S.RELEASED), self.say(links, source.slot, "Released"))

    def ask_to_release(self, source: Source, links: Links, listening: bool) -> Steps:
        # Departure._link_to_release_on, for as long as RELEASE_S
        if listening and None in links:
            slot, connected = self.connect(links, Role.RECOVERY)
            yield Step("source: asks again, to say Released", source._replace(slot=slot, at=S.REASKED), connected)
        yield Step("source: nobody is there to hear Released", source._replace(at=S.ENDED), links)

    # -- daemons that die ----------------------------------------------------------------------------------------------------------

    def killed(self, source: Source, links: Links) -> Step:
        """kill -9 of the daemon: its mappings and sockets go, the guest's process and what lies in it stay."""
        after = without_rounds(source)._replace(
            at=S.DOWN, slot=-1, unknown=False, memory=source.memory and source.guest
        )
        return Step("the source's daemon is killed", after, self._closed(links), Kind.ADVERSARY)

    def guest_killed(self, source: Source, links: Links) -> Step:
        after = source._replace(guest=False, running=False, memory=source.memory and source.up)
        return Step("the guest's process at the source is killed", after, links, Kind.ADVERSARY)

    def outlives_its_host(self, source: Source) -> Source | None:
        """Server._outlives_its_host: what the guest does when its daemon has gone; None: nothing more."""
        if source.guest and source.word is Owner.OWNER and not source.running:
            return source._replace(running=True)
        return None

    def restart(self, source: Source, links: Links, listening: bool) -> Steps:
        after = self.outlives_its_host(source)
        if after is not None:
            # Before it answers the next daemon
            yield Step("source: the guest goes on without its daemon", after, links)
            return
        label = "source: a daemon starts"
        if not source.guest:
            # HostDaemon.adopt: no guest listens
            yield Step(label, source._replace(kept=False, at=S.ENDED), links)
        elif source.word is Owner.RELINQUISHED and source.kept:
            # ResidentGuest.settle, AdoptedMigration.run
            yield self.obey(label, source, Event.RESTARTED, links)
        else:
            # ResidentGuest.settle
            if source.word is Owner.OWNER:
                source = source._replace(word=self.on(source.word, Event.RESTARTED)[0])
            yield Step(label, source._replace(running=True, kept=False, at=S.ENDED), links)

    def connect(self, links: Links, role: Role) -> tuple[int, Links]:
        slot = links.index(None)
        links = put(links, slot, Link(role))
        return slot, self.say(links, slot, "Hello", role)


def without_rounds(source: Source) -> Source:
    """Pre-copy is over: what was known of it makes no difference any more."""
    return source._replace(unsent=0, writes_left=0, rounds_left=0, round=0, foretold=0)
