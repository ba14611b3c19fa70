"""What the destination's scripts do after the resume: pages are claimed, filled, received; links come and go; the end is told.

dest_host/postcopy.py and dest_host/intake.py, with the end of dest_host/migration.py. A page is filled in two steps, claimed and
full, because a link may be lost and a vCPU may look between them.
"""

from __future__ import annotations

from pagefire.protocol import messages as m
from pagefire.protocol.ownership import Act, Event
from pagefire.protocol.state import Role
from tests.protocol.exploration.core import mask_of
from tests.protocol.exploration.destination import Here, IncomingScript, Steps
from tests.protocol.exploration.world import D, Dest, Filling, Links, Step, at, changed, close, pages_in, put

#: Where a `Postcopy` exists: a question is answered by it.
TAKEN_UP = frozenset({D.TAKEN, D.POSTCOPY, D.WHOLE, D.TELLING, D.TOLD, D.AFTER})
#: Where its link is watched.
_WATCHING = frozenset({D.POSTCOPY, D.TELLING, D.TOLD})
#: Where a guest that dies has perished: before its last page has come.
_PERISHES = frozenset({D.TAKEN, D.POSTCOPY, D.WHOLE})


class ArrivalScript(IncomingScript):
    def arrival(self) -> Here:
        return {
            D.TAKEN: self.say_resumed,
            D.POSTCOPY: self.become_resident,
            D.WHOLE: self.end_paging,
            D.TELLING: self.tell,
            D.AFTER: self.tell_aftermath,
        }

    def after_resume(self, dest: Dest, links: Links) -> Steps:
        """Give what may happen at any of these places."""
        if not dest.guest:
            if dest.at in _PERISHES:
                # IncomingMigration._fail
                yield self.perished(dest, links)
            elif dest.at in TAKEN_UP:
                after = dest._replace(slot=-1, at=D.ARRIVED)
                yield Step("dest: the guest died when it was whole", after, close(links, dest.slot, self.side))
        if dest.at in _WATCHING:
            if dest.slot >= 0:
                yield from self.lost(dest, links)
            else:
                yield from self.take_up(dest, links)
        if dest.at is D.POSTCOPY:
            yield from self.take_pages(dest, links)
        if dest.at is D.TOLD and at(links, dest.slot).to_dest:
            yield self.read_released(dest, links)

    def perished(self, dest: Dest, links: Links) -> Step:
        return Step("dest: the guest has perished", dest._replace(filling=(), at=D.PERISHING), links)

    def guest_runs(self, dest: Dest, links: Links) -> Steps:
        """Each page is written once, as soon as a vCPU may see it; a fault on a page that is missing is a fetch."""
        if dest.running:
            for page in pages_in(self.core.publishable(dest.ledger) & ~dest.wrote):
                contents = changed(dest.contents, page, dest.contents[page] + 1)
                after = dest._replace(contents=contents, wrote=dest.wrote | 1 << page)
                yield Step(f"dest: the guest writes page {page}", after, links)

    # -- pages ---------------------------------------------------------------------------------------------------------------------

    def say_resumed(self, dest: Dest, links: Links) -> Steps:
        # IncomingMigration._become_resident
        yield Step("dest: says Resumed", dest._replace(at=D.POSTCOPY), self.say(links, dest.slot, "Resumed"))

    def take_pages(self, dest: Dest, links: Links) -> Steps:
        for filling in dest.filling:
            yield self.filled(dest, links, filling)
        for slot in range(len(links)):
            if links[slot] is not None and at(links, slot).dest_open:
                for channel, fetched in (("pages", False), ("fetched", True)):
                    busy = any((one.slot, one.fetched) == (slot, fetched) for one in dest.filling)
                    if getattr(at(links, slot), channel) and not busy:
                        yield self.claim(dest, links, slot, channel)
        if self.bounds.fetches and dest.running and dest.slot >= 0 and at(links, dest.slot).joined:
            yield from self.fetch(dest, links)

    def claim(self, dest: Dest, links: Links, slot: int, channel: str) -> Step:
        # Intake.take, Intake.take_fetched: what nobody had claimed is the filler's, the rest is read to nowhere
        role = Role.FAULT if channel == "fetched" else Role.PAGES
        message, frame, links = self.take(links, slot, channel, role)
        assert isinstance(message, m.Pages)
        ledger, fresh = self.claimed(dest, mask_of(message.pages))
        assert isinstance(frame.payload, tuple)
        begun = tuple(
            Filling(slot, role is Role.FAULT, page, version)
            for page, version in zip(pages_in(mask_of(message.pages)), frame.payload, strict=True)
            if fresh >> page & 1
        )
        label = f"dest: {channel} bring {pages_in(mask_of(message.pages))}, claimed {pages_in(fresh)}"
        return Step(label, dest._replace(ledger=ledger, filling=tuple(sorted((*dest.filling, *begun)))), links)

    def claimed(self, dest: Dest, mask: int) -> tuple[bytes, int]:
        return self.core.claim(dest.ledger, mask)

    def filled(self, dest: Dest, links: Links, filling: Filling) -> Step:
        # Intake._received, _page_received
        page = filling.page
        self.require(
            bool(self.core.missing(dest.ledger) >> page & 1), f"page {page} was applied twice after the resume"
        )
        after = dest._replace(
            contents=changed(dest.contents, page, filling.version),
            ledger=self.core.mark_received(dest.ledger, 1 << page),
            filling=tuple(one for one in dest.filling if one != filling),
        )
        return Step(f"dest: page {page} is full", after, links)

    def fetch(self, dest: Dest, links: Links) -> Steps:
        # FaultHandler.fetch, Ledger.request
        for page in pages_in(self.core.missing(dest.ledger)):
            ledger, wanted = self.core.request(dest.ledger, page)
            if wanted:
                asked = self.stream(links, dest.slot, "fetches", Role.FAULT, "Fetch", wanted)
                yield Step(f"dest: a vCPU waits for page {page}", dest._replace(ledger=ledger), asked)

    # -- links ---------------------------------------------------------------------------------------------------------------------

    def lost(self, dest: Dest, links: Links) -> Steps:
        # Postcopy._pause: the link broke, or the source has connected anew (`take_up` breaks it off)
        link = at(links, dest.slot)
        queued = any(one is not None and one.served == "queued" for one in links)
        if link.gone or link.stripped or queued:
            word, act = self.on(dest.word, Event.LOST)
            self.expect(act, Act.RUN)
            after, links = self.give_up_link(dest._replace(word=word), links)
            yield Step("dest: its link is lost", after, links)

    def give_up_link(self, dest: Dest, links: Links) -> tuple[Dest, Links]:
        """Link.close: no thread fills anything any more when it returns."""
        after = self.half_filled(dest, dest.slot)._replace(slot=-1)
        if dest.at is D.TOLD:
            after = after._replace(at=D.TELLING)
        return after, close(links, dest.slot, self.side)

    def take_up(self, dest: Dest, links: Links) -> Steps:
        # Postcopy._on_some_link, _answer
        for slot in range(len(links)):
            link = links[slot]
            if link is not None and link.served == "queued":
                word, act = self.on(dest.word, Event.ASKED)
                self.expect(act, Act.SAY_TAKEN)
                ledger, missing = self.forget_unfinished(dest)
                links_after = put(links, slot, link._replace(served="", joined=bool(missing)))
                after = dest._replace(word=word, ledger=ledger, slot=slot)
                yield Step(
                    f"dest: says Taken, missing {pages_in(missing)}",
                    after,
                    self.say(links_after, slot, "Taken", missing),
                )
        if dest.at is D.TELLING:
            # Postcopy._tell: RELEASE_S are over; the journal answers from now on
            yield Step("dest: is on its own", dest._replace(at=D.ARRIVED), links)

    def forget_unfinished(self, dest: Dest) -> tuple[bytes, int]:
        """Ledger.forget_unfinished; once no page is missing the ledger's memory is only read."""
        return self.core.forget_unfinished(dest.ledger)

    # -- the end -------------------------------------------------------------------------------------------------------------------

    def complete(self, dest: Dest) -> bool:
        return not self.core.missing(dest.ledger)

    def become_resident(self, dest: Dest, links: Links) -> Steps:
        # Postcopy.run: written down before anything is ended
        if self.complete(dest) and dest.guest:
            after = self.half_filled(self.journal(dest, "resident"))._replace(at=D.WHOLE)
            yield Step("dest: writes down that no page is missing", after, links)

    def end_paging(self, dest: Dest, links: Links) -> Steps:
        # DemandPaging.end; raises where the guest has died
        if dest.guest:
            yield Step("dest: ends demand paging", dest._replace(kept=False, at=D.TELLING), links)

    def tell(self, dest: Dest, links: Links) -> Steps:
        # Postcopy._tell
        if dest.slot >= 0:
            yield Step("dest: says Resident", dest._replace(at=D.TOLD), self.say(links, dest.slot, "Resident"))

    def read_released(self, dest: Dest, links: Links) -> Step:
        message, frame, links = self.hear(links, dest.slot)
        self.require(isinstance(message, m.Released), f"{frame.name} came where Released was due")
        return Step("dest: hears Released", self.forget_journal(dest)._replace(at=D.AFTER), links)

    def tell_aftermath(self, dest: Dest, links: Links) -> Steps:
        # IncomingMigration._become_resident: watch, House.arrived, Aftermath
        links = close(self.say(links, dest.slot, "Aftermath"), dest.slot, self.side)
        yield Step("dest: tells how the guest fared", dest._replace(slot=-1, at=D.ARRIVED), links)
