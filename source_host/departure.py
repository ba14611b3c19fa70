"""The source's part after the commit point: HANDOVER, then pages, until the destination misses none, whatever happens to the link.

The guest is the destination's from the first step on, and its last pages are here. A link that breaks pauses post-copy with
everything kept; this side connects anew, asks what became of the session, again and again with growing pauses, and goes on from
the bitmap that it is told. The same way a daemon goes on that finds a relinquished guest whose own daemon has died: it asks first.

Three steps, each to its end: `hand_over`, `move`, `release`. What they raise is final: the session is fenced or taken back (the
guest is this host's again), or the guest has perished at the destination.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pagefire.guest_workload import keepsake
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.priority_boost import PriorityBoost
from pagefire.protocol.bitmap import decode_bitmap
from pagefire.protocol.errors import Cancelled, GuestError, LinkLost, PagefireError, PeerRefused, RemoteProtocolError
from pagefire.protocol.messages import Aftermath, Fenced, Handover, Noted, Perished, Released, Resident, Resumed, Taken
from pagefire.protocol.ownership import Act, Event, Ownership
from pagefire.protocol.pages import PAGE_BYTES, PageSet, pages_of
from pagefire.protocol.report import Compression
from pagefire.protocol.state import Side, Status
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.tasks import beside, in_thread, together
from pagefire.source_host import postcopy
from pagefire.source_host.link import Link, SentTotals
from pagefire.source_host.options import MigrationOptions

log = logging.getLogger("pagefire.source")

#: The keepsake of a guest that is migrating: what a daemon needs that finds it relinquished.
DEPARTURE = "departure"
#: What ends a link and not the migration.
LINK_ERRORS = (LinkLost, RemoteProtocolError, OSError)
#: Pauses between two attempts to reach the destination: the first, twice as long each time, at most.
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 5.0
#: How long the destination is asked how the guest fared once it has all pages; the migration is completed either way.
RELEASE_S = 30.0

Emit = Callable[[dict[str, Any]], None]


class OursAgain(PagefireError):
    """The guest is this host's again: the destination has fenced the session, or a person has decided it."""


#: The options that count after the resume.
_KEPT_OPTIONS = (
    "to", "streams", "compress", "prefetch_pages", "max_bandwidth_Bps", "keys", "insecure", "checksum", "connect_timeout_s",
    "silence_s",
)  # fmt: skip


def leave_record(guest: GuestProcess, session: tuple[bytes, bytes], options: MigrationOptions) -> None:
    """Leave with the guest what `Departure.of_record` takes; before the commit point. Blocks."""
    identity, secret = session
    kept = {name: getattr(options, name) for name in _KEPT_OPTIONS}
    keepsake.leave(guest, DEPARTURE, {"identity": identity, "secret": secret, "options": kept})


class Departure:
    """One relinquished guest on its way. `status`, `error` and `pages_left` tell how far it is."""

    def __init__(
        self,
        guest: GuestProcess,
        options: MigrationOptions,
        session: tuple[bytes, bytes],
        points: Points,
        emit: Emit,
        pages: PageSet | None = None,
        swapped: PageSet | None = None,
    ) -> None:
        """`pages` are those that the destination needs, `swapped` those among them that go last; None: it will be asked."""
        self.options = options
        self.status = Status.POSTCOPY_ACTIVE
        #: Why it is paused.
        self.error: str | None = None
        #: How often the link was lost and found again, for how long there was none, and what earlier links sent.
        self.recoveries = 0
        self.paused_s = 0.0
        self.earlier_bytes = 0
        self.earlier_sent: list[SentTotals] = []
        #: What the page connections of earlier links compressed.
        self.earlier_compression: list[Compression] = []
        self.link: Link | None = None
        self._guest = guest
        self._ownership = Ownership(Side.SOURCE, guest.control)
        self._session = session
        self._points = points
        self._emit = emit
        self._swapped = swapped or PageSet.empty()
        self._remaining = postcopy.Remaining(pages or PageSet.empty(), swapped, options.prefetch_pages)
        self._boost = PriorityBoost()
        self._retry = asyncio.Event()
        self._taken_back = False
        self._hurried = False
        #: How the session has ended at the destination, once it was heard.
        self._heard: PagefireError | None = None

    @classmethod
    def of_record(cls, guest: GuestProcess, record: keepsake.Record, points: Points, emit: Emit) -> Departure:
        """Take up what a daemon that is gone had begun."""
        options = MigrationOptions(**record["options"])
        return cls(guest, options, (record["identity"], record["secret"]), points, emit)

    @property
    def pages_left(self) -> int:
        """Pages that only this host has."""
        return self._remaining.count

    def retry(self, to: str | None) -> None:
        """Try to reach the destination now, at another address if one is given."""
        if to is not None:
            self.options = replace(self.options, to=to)
        self._retry.set()

    def take_back(self) -> None:
        """A person decides that the guest runs here again, as it stood at the stun."""
        self._taken_back = True
        self._retry.set()

    def hurry(self) -> None:
        """Nothing is here any more but the wish to know how the guest fared: give it up where the link is lost."""
        self._hurried = True

    async def hand_over(self, link: Link) -> Resumed | None:
        """Tell the destination that the guest is its own; gives its answer, None where a successor does not know it."""
        self.link = link
        try:
            await self._points.reached("relinquished")
            link.faults.serve(self._remaining, self._at_point("serving"))
            await link.control.send(Handover())
            self._boost.begin(self._remaining.count * PAGE_BYTES)
            await self._points.reached("handed-over")
            message = (await link.control.receive()).message
            match message:
                case Resumed():
                    self._ownership.on(Event.TAKEN)
                    return message
                case Fenced() | Perished():
                    await self._believe(message, link)
            raise RemoteProtocolError("Resumed expected", f"{type(message).__name__} came")
        except LINK_ERRORS as lost:
            return await self.ask(lost)

    async def move(self) -> Resident:
        """Move what remains, pushed, and pulled by faults, until the destination says that it misses nothing."""
        while True:
            link, remaining = self.link, self._remaining
            assert link is not None
            self._boost.begin(remaining.count * PAGE_BYTES)
            try:
                if not remaining.count and not link.streams:
                    return await self._resident(link)
                return await beside(
                    # The push has its end too: all pages may be there while a stream still sends what faults have brought.
                    together(
                        self._resident(link), postcopy.push(remaining, link.streams_at_work, self._at_point("pushing"))
                    ),
                    link.faults.ended(),
                )
            except (*LINK_ERRORS, PeerRefused) as lost:
                # A connection that was welcomed is refused where the destination has lost the others meanwhile.
                await self.ask(lost)

    async def release(self) -> Aftermath | None:
        """Say that the copy here has been freed; gives how the guest fared there, None where that cannot be heard any more.

        The guest's memory and control block are not looked at: they are gone.
        """
        until_s = time.monotonic() + RELEASE_S
        try:
            while True:
                assert self.link is not None
                try:
                    await self.link.control.send(Released())
                    await self._points.reached("released")
                    timeout_s = self.options.settle_s + self.options.setup_timeout_s
                    return await self.link.control.expect(Aftermath, timeout_s)
                except LINK_ERRORS as lost:
                    log.warning("guest=%s the link was lost before the end: %s", self._guest.name, lost)
                    await self.close()
                    self.link = await self._link_to_release_on(until_s)
        except (PagefireError, OSError) as error:
            self.error = f"completed, but the destination did not tell how the guest fared: {error}"
            log.warning("guest=%s %s", self._guest.name, self.error)
            return None
        finally:
            await self.close()

    async def _link_to_release_on(self, until_s: float) -> Link:
        """Reach the destination once more: it keeps its part of the session until it has heard of the end."""
        while True:
            link = Link(self.options, self._guest.config, self._guest.memory)
            try:
                if not isinstance(await link.ask(self._session), tuple):
                    raise PeerRefused("the guest has died at the destination since")
                await link.control.expect(Resident, RELEASE_S)
                return link
            except LINK_ERRORS:
                await link.close()
                if self._hurried or time.monotonic() > until_s:
                    raise
                await asyncio.sleep(FIRST_RETRY_S)
            except BaseException:
                await link.close()
                raise

    async def ask(self, lost: BaseException | None) -> Resumed | None:
        """There is no link: make one, however long it takes, and learn which pages are missing.

        Gives what `Taken` tells of the resume, None where the destination's daemon does not know it any more.
        """
        if self._heard is not None:
            # The link broke behind the last word, which has been noted: nobody there knows of the session any more.
            raise self._heard
        began_s, pause_s = time.monotonic(), FIRST_RETRY_S
        if lost is not None:
            self._pause(lost)
        await self.close()
        while True:
            self._retry.clear()
            self.status = Status.POSTCOPY_RECOVER
            link = Link(self.options, self._guest.config, self._guest.memory)
            try:
                taken = await self._ask_on(link)
            except (PagefireError, OSError) as error:
                if self._heard is not None:
                    await link.close()
                    raise
                failure = error
                if isinstance(error, PeerRefused):
                    self._ownership.on(Event.UNKNOWN)
                    pause_s = LONGEST_RETRY_S
            except BaseException:
                await link.close()
                raise
            else:
                self.link, self.error, self.status = link, None, Status.POSTCOPY_ACTIVE
                self.recoveries += 1
                self.paused_s += time.monotonic() - began_s
                self._emit({"event": "recovered", "remaining_pages": self.pages_left})
                log.info("guest=%s recovered remaining_pages=%d", self._guest.name, self.pages_left)
                return Resumed(taken.handover_received_ns, taken.resumed_ns) if taken.resumed_ns else None
            await link.close()
            self._pause(failure)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._retry.wait()
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)
            if self._taken_back:
                assert self._ownership.on(Event.TAKE_BACK) is Act.RUN
                raise OursAgain("the guest was taken back", "it runs on here from where it stood at the stun")

    async def _ask_on(self, link: Link) -> Taken:
        """Ask, and open the further connections where pages are missing; raises OursAgain, GuestError where that is the answer."""
        answer = await link.ask(self._session)
        if not isinstance(answer, tuple):
            await self._believe(answer, link)
        assert isinstance(answer, tuple)
        taken, bitmap = answer
        missing = PageSet.empty()
        if taken.remaining_pages:
            missing = decode_bitmap("compacted", bitmap, pages_of(self._guest.memory.size_bytes))
            if missing.pages != taken.remaining_pages:
                raise RemoteProtocolError("the bitmap holds another number of pages than announced", f"{missing.pages}")
            assert self._ownership.on(Event.TAKEN) is Act.MOVE
            self._remaining = postcopy.Remaining(missing, self._swapped & missing, self.options.prefetch_pages)
            await link.take_up()
            link.faults.serve(self._remaining, self._at_point("serving"))
        else:
            self._remaining = postcopy.Remaining(missing)
        return taken

    async def _believe(self, last_word: Fenced | Perished, link: Link) -> None:
        """Act on how the session has ended there, and say that it is noted; raises OursAgain or GuestError."""
        if isinstance(last_word, Fenced):
            self._ownership.on(Event.FENCED)
            self._heard = OursAgain(last_word.what, last_word.why, last_word.do)
            if last_word.outcome == "cancelled":
                self._heard.exit_code = Cancelled.exit_code
        else:
            self._ownership.on(Event.PERISHED)
            self._heard = GuestError(
                f"guest {self._guest.name} is lost: it died at the destination",
                last_word.why,
                "its memory as it stood at the stun is still here: `pagefire recover --take-back` runs it again from there",
            )
        await self._points.reached("last-word")
        with contextlib.suppress(PagefireError):
            await link.control.send(Noted())
        raise self._heard

    async def _resident(self, link: Link) -> Resident:
        message = (await link.control.receive()).message
        match message:
            case Resident():
                self._boost.end()
                return message
            case Perished():
                await self._believe(message, link)
        raise RemoteProtocolError("Resident expected", f"{type(message).__name__} came")

    def _at_point(self, name: str) -> Callable[[], None]:
        """Make what passes a point in a thread."""
        loop = asyncio.get_running_loop()
        return lambda: self._points.reached_in_thread(name, loop)

    def _pause(self, lost: BaseException) -> None:
        """The link is gone, or could not be made: keep memory and state."""
        self._ownership.on(Event.LOST)
        told, self.error = self.error, str(lost)
        self.status = Status.POSTCOPY_PAUSED
        if self.error != told:
            log.error(
                "guest=%s status=postcopy-paused remaining_pages=%d why=%s: the destination owns it, pages are kept",
                self._guest.name, self.pages_left, lost,
            )  # fmt: skip
            self._emit({"event": "paused", "error": self.error, "remaining_pages": self.pages_left})

    async def close(self) -> None:
        """Close the link there is; more than once does nothing."""
        link, self.link = self.link, None
        self._boost.end()
        if link is not None:
            # In one step: whoever counts while it closes finds it in one place.
            self.earlier_bytes += link.sent_bytes
            self.earlier_sent.append(link.sent_totals())
            self.earlier_compression += link.compression()
            await link.close()


async def forget_record(guest: GuestProcess) -> None:
    """The guest stays, or is this host's again; one that has died keeps nothing anyway."""
    with contextlib.suppress(GuestError):
        await in_thread(keepsake.drop, guest, DEPARTURE)
