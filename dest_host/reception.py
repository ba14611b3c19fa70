"""The listening port of a host: which session a caller is about, once the doorkeeper has let it in.

A control connection begins a migration, a recovery connection asks what became of a session, any other joins one.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

from pagefire.dest_host.doorkeeper import Doorkeeper, require_room
from pagefire.dest_host.house import House
from pagefire.dest_host.journal import LastWord
from pagefire.dest_host.last_word import say_last_word
from pagefire.dest_host.migration import IncomingMigration
from pagefire.dest_host.postcopy import RELEASE_S
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.bitmap import encode_bitmap
from pagefire.protocol.errors import PeerRefused, RemoteProtocolError
from pagefire.protocol.messages import Hello, Released, Resident, Taken, Welcome
from pagefire.protocol.negotiation import CAPABILITIES, choose_version
from pagefire.protocol.pages import PageSet
from pagefire.protocol.state import Role, Status
from pagefire.protocol.transport import heap
from pagefire.protocol.transport.clock import machine_identity
from pagefire.protocol.transport.frame_stream import FrameStream
from pagefire.protocol.transport.security import ListenerSecurity
from pagefire.protocol.transport.software import software_name
from pagefire.protocol.transport.tasks import in_thread

log = logging.getLogger("pagefire.dest")

_ENDED = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Reception:
    """Takes guests in on `listener` between `open` and `close`; owns the listener."""

    def __init__(self, listener: socket.socket, security: ListenerSecurity, house: House) -> None:
        self._listener = listener
        self._doorkeeper = Doorkeeper(security)
        self._house = house
        self.migrations: list[IncomingMigration] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[IncomingMigration, asyncio.Task[None]] = {}
        self._accepting: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._accepting = asyncio.create_task(self._accept())

    async def adopt(self, guest: GuestProcess) -> None:
        """Go on with a guest whose pages were still arriving when its daemon died; raises GuestError."""
        migration = await IncomingMigration.adopted(guest, self._house)
        log.info("guest=%s adopted pid=%d: its pages are still arriving", migration.name, guest.pid)
        self._begin(self._run(migration))

    def named(self, name: str) -> bool:
        """Tell whether a guest of that name is on its way here; the one that asks does not count.

        Nor does one that will not come any more: to end its shell takes some moments, and its source may try anew at once.
        """
        coming = (m for m in self.migrations if m.owns_guest or m.status not in (Status.FAILED, Status.CANCELLED))
        return sum(migration.name == name for migration in coming) > 1

    @property
    def running(self) -> list[IncomingMigration]:
        """The migrations that have not ended: their figures are not in the logbook's totals yet."""
        return list(self._running)

    # -- connections -------------------------------------------------------------------------------------------------------

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            sock, address = await self._doorkeeper.accept(self._listener)
            self._begin(self._doorkeeper.receive(sock, address, self._admit))

    async def _admit(self, stream: FrameStream, hello: Hello, peer: str) -> None:
        """Take over a greeted connection; what is raised is told to whoever called."""
        log.info("peer=%s guest=%r role=%s software=%r", peer, hello.name, hello.role, hello.software)
        match Role(hello.role):
            case Role.CONTROL:
                require_room(len(self.migrations))
                await self._run(IncomingMigration.asked_for(stream, hello, self._house))
            case Role.RECOVERY:
                await self._recover(stream, hello)
            case role:
                migration = self._session_of(hello)
                if migration is None:
                    raise RemoteProtocolError("no such session, or not its secret")
                await stream.send(self._welcome(hello))
                migration.join(role, stream)

    async def _run(self, migration: IncomingMigration) -> None:
        self.migrations.append(migration)
        task = asyncio.current_task()
        assert task is not None
        self._running[migration] = task
        heap.tidy()
        try:
            await migration.run()
        finally:
            del self._running[migration]
            outcome = migration.status.value if migration.status in _ENDED else "failed"
            self._house.logbook.totals.came(outcome, migration.served())
            migration.note("ended", outcome=outcome, error=migration.error)
            if migration.guest is None:
                self.migrations.remove(migration)
            heap.tidy()

    def _session_of(self, hello: Hello) -> IncomingMigration | None:
        for migration in self.migrations:
            session = migration.session
            if hmac.compare_digest(session.identity, hello.session) & hmac.compare_digest(session.secret, hello.secret):
                return migration
        return None

    def _welcome(self, hello: Hello) -> Welcome:
        silence_s = self._house.limits.silence_s
        return Welcome(
            choose_version(hello), list(CAPABILITIES), b"", b"", software_name(), machine_identity(), silence_s
        )

    async def _recover(self, stream: FrameStream, hello: Hello) -> None:
        """The source asks what became of a session."""
        migration = self._session_of(hello)
        welcome = self._welcome(hello)
        if migration is not None:
            await stream.send(welcome)
            # Not taken: it is being fenced, and the journal knows of it when that is done. Or HANDOVER was faster.
            while not migration.take_up(stream, hello.silence_s):
                task = self._running.get(migration)
                if task is None or (await asyncio.wait({task}, timeout=0.05))[0]:
                    break
            else:
                return
            if migration.owns_guest:
                raise PeerRefused(
                    "the destination has the guest, and cannot go on with its pages",
                    str(migration.error),
                    "restart the daemon there: it adopts the guest",
                )
        last = await in_thread(self._house.journal.find, hello.session)
        if last is None or not hmac.compare_digest(last.secret, hello.secret):
            raise PeerRefused(
                "the destination knows nothing of this session",
                "no guest of it is here, and nothing is written down",
                "start the daemon that took it, or decide where the guest runs",
            )
        if migration is None:
            await stream.send(welcome)
        await self._answer(stream, hello.session, last)

    async def _answer(self, stream: FrameStream, session: bytes, last: LastWord) -> None:
        """Say what the journal knows; what the source has noted is forgotten."""
        if last.word == "resident":
            await stream.send(Taken(0, 0, 0), encode_bitmap("compacted", PageSet.empty(), 1))
            await stream.send(Resident(time.monotonic_ns(), 0, 0, 0, 0, [], 0.0))
            await stream.expect(Released, RELEASE_S)
            noted = True
        else:
            noted = await say_last_word(stream, last)
        if noted:
            self._house.journal.forget(session)
        stream.close()

    # -- the end -----------------------------------------------------------------------------------------------------------

    def unfinished(self) -> Iterator[IncomingMigration]:
        """Give the migrations whose guest runs here and whose pages have not all come."""
        return (m for m in self.migrations if m.owns_guest and m.status not in _ENDED)

    async def close(self, forced: asyncio.Event) -> list[str]:
        """Take nobody in any more, cancel what is before its commit point, finish what is after it.

        Once `forced` is set nothing is waited for: gives the names of the guests that are lost by it.
        """
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        stay = [m for m in self.migrations if m.owns_guest and not m.is_over_but_for_the_source]
        for task in self._tasks - {self._running[m] for m in stay if m in self._running}:
            task.cancel()
        unfinished, lost = list(self.unfinished()), []
        for migration in unfinished:
            log.warning(
                "guest=%s %d pages are still at the source: finishing first; a second signal loses the guest",
                migration.name,
                migration.missing_pages,
            )
        if self._tasks:
            tasks = list(self._tasks)
            force: asyncio.Future[Any] = asyncio.ensure_future(forced.wait())
            everything: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait({force, everything}, return_when=asyncio.FIRST_COMPLETED)
            if forced.is_set():
                lost = [migration for migration in unfinished if migration.status not in _ENDED]
            for waiting in (force, *tasks):
                waiting.cancel()
            await asyncio.gather(force, *tasks, return_exceptions=True)
        for migration in lost:
            why = "its daemon was forced to end before all pages had come"
            self._house.journal.write(
                migration.session.identity, LastWord(migration.session.secret, "perished", why=why)
            )
        for migration in self.migrations:
            if migration.guest is not None:
                log.info("guest=%s ending with its daemon", migration.name)
                await in_thread(migration.guest.terminate)
        return [migration.name for migration in lost]
