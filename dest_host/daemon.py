"""The destination daemon: one listening port for every connection, a control socket, guests that came and stay.

Arguments, sockets and signals only; a migration is `migration.IncomingMigration`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagefire.dest_host.migration import HostLimits, IncomingMigration
from pagefire.dest_host.reception import Reception, require_room
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.observation import describe
from pagefire.guest_workload.run_to import run_to
from pagefire.protocol.addresses import parse_address
from pagefire.protocol.errors import GuestError, PeerRefused, RemoteProtocolError
from pagefire.protocol.messages import Hello, Welcome
from pagefire.protocol.negotiation import CAPABILITIES, choose_version
from pagefire.protocol.state import Role, Status
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.clock import machine_identity
from pagefire.protocol.transport.control_socket import ControlServer, Emit, Json
from pagefire.protocol.transport.daemon import SLICE_NS
from pagefire.protocol.transport.frame_stream import FrameStream, listen
from pagefire.protocol.transport.security import ListenerSecurity
from pagefire.protocol.transport.software import software_name
from pagefire.protocol.transport.tasks import in_thread

log = logging.getLogger("pagefire.dest")

_ENDED = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class DestinationDaemon:
    """Takes guests in until it is told to end."""

    def __init__(self, host: str, port: int, limits: HostLimits, security: ListenerSecurity) -> None:
        self._limits = limits
        self._reception = Reception(security)
        self._host = host
        # The port first: where it is taken, nothing has been made that would be left behind.
        self._listener = listen(host, port)
        self._directory = runtime_directory.prepare(limits.runtime_dir)
        self.port = int(self._listener.getsockname()[1])
        self._control_path = runtime_directory.control_path(self._directory, "dest", str(self.port))
        operations = {"status": self._status, "guests": self._guests, "run_to": self._run_to, "digest": self._digest}
        self._server = ControlServer(self._control_path, operations)
        self._migrations: list[IncomingMigration] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[IncomingMigration, asyncio.Task[None]] = {}
        self._lost: list[str] = []
        self._ending = asyncio.Event()
        self._forced = asyncio.Event()

    async def serve(self, ready: Callable[[str], None]) -> None:
        scheduling.set_short_slice(SLICE_NS)
        accepting = asyncio.create_task(self._accept())
        try:
            await self._server.start()
            ready(f"pagefire dest: listening on {self._host}:{self.port}, control socket {self._control_path}")
            await self._ending.wait()
        finally:
            # Whatever goes wrong while winding down: a guest must not outlive a daemon that meant to end it.
            try:
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)
                await self._wind_down()
                await self._server.close()
            finally:
                await self._end_guests()
                self._listener.close()
                runtime_directory.leave(self._directory, self._control_path)
        if self._lost:
            raise GuestError(
                f"guest {', '.join(self._lost)} is lost", "pages that it had not yet received were at the source"
            )

    def end(self) -> None:
        self._ending.set()

    def force(self) -> None:
        self._forced.set()

    # -- connections -------------------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        while True:
            sock, address = await self._reception.accept(self._listener)
            task = asyncio.create_task(self._reception.receive(sock, address, self._admit))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _admit(self, stream: FrameStream, hello: Hello, peer: str) -> None:
        """Take over a greeted connection: a control connection becomes a migration, any other joins one."""
        if Role(hello.role) is Role.CONTROL:
            require_room(len(self._migrations))
            await self._receive_guest(stream, hello, peer)
        else:
            await self._join(stream, hello)

    async def _receive_guest(self, stream: FrameStream, hello: Hello, peer: str) -> None:
        log.info("peer=%s guest=%r phase=hello software=%r", peer, hello.name, hello.software)
        migration = IncomingMigration(stream, hello, self._limits, self._name_taken)
        self._migrations.append(migration)
        task = asyncio.current_task()
        assert task is not None
        self._running[migration] = task
        try:
            await migration.run()
        finally:
            del self._running[migration]
            if migration.guest is None:
                self._migrations.remove(migration)

    async def _join(self, stream: FrameStream, hello: Hello) -> None:
        version = choose_version(hello)
        for migration in self._migrations:
            if hmac.compare_digest(migration.session, hello.session) and hmac.compare_digest(
                migration.secret, hello.secret
            ):
                await stream.send(Welcome(version, list(CAPABILITIES), b"", b"", software_name(), machine_identity()))
                migration.join(Role(hello.role), stream)
                return
        raise RemoteProtocolError("no such session, or not its secret")

    def _name_taken(self, name: str) -> bool:
        return sum(migration.name == name for migration in self._migrations) > 1

    # -- operations of the control socket ----------------------------------------------------------------------------------

    async def _status(self, request: Json, emit: Emit) -> Json:
        guests = [
            {
                "name": migration.name,
                "status": migration.status.value,
                "owner": migration.owns_guest,
                "missing_pages": migration.missing_pages,
                "error": migration.error,
                "commits": migration.guest.control.commits() if migration.guest else 0,
            }
            for migration in self._migrations
        ]
        return {"role": "dest", "port": self.port, "guests": guests}

    async def _guests(self, request: Json, emit: Emit) -> Json:
        """Where an observer on this machine finds the control blocks, guest memories and page states of the guests."""
        return {m.name: describe(m.guest) for m in self._migrations if m.guest is not None}

    async def _run_to(self, request: Json, emit: Emit) -> Json:
        """Let each vCPU of a guest run until it has committed `steps` transactions since it was born, then wait there."""
        await run_to(self._guest(request).control, int(request["steps"]), wait=bool(request.get("wait", True)))
        return {}

    async def _digest(self, request: Json, emit: Emit) -> Json:
        return dict(await in_thread(self._guest(request).digest))

    def _guest(self, request: Json) -> GuestProcess:
        for migration in self._migrations:
            if migration.guest is not None and migration.owns_guest and request.get("name") in (None, migration.name):
                return migration.guest
        raise PeerRefused("no such guest runs here", str(request.get("name")))

    # -- the end -----------------------------------------------------------------------------------------------------------

    async def _wind_down(self) -> None:
        """Cancel what is before its commit point, finish what is after it."""
        for task in self._tasks - {self._running[m] for m in self._migrations if m.owns_guest and m in self._running}:
            task.cancel()
        unfinished = [m for m in self._migrations if m.owns_guest and m.status not in _ENDED]
        for migration in unfinished:
            log.warning(
                "guest=%s %d pages are still at the source: finishing first; a second signal loses the guest",
                migration.name,
                migration.missing_pages,
            )
        if self._tasks:
            tasks = list(self._tasks)
            forced: asyncio.Future[Any] = asyncio.ensure_future(self._forced.wait())
            everything: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait({forced, everything}, return_when=asyncio.FIRST_COMPLETED)
            if self._forced.is_set() and unfinished:
                self._lost = [migration.name for migration in unfinished]
            for waiting in (forced, *tasks):
                waiting.cancel()
            await asyncio.gather(forced, *tasks, return_exceptions=True)

    async def _end_guests(self) -> None:
        for migration in self._migrations:
            if migration.guest is not None:
                log.info("guest=%s ending with its daemon", migration.name)
                migration.close()
                await in_thread(migration.guest.terminate)


async def make_daemon(
    listen_on: str,
    runtime_dir: Path,
    max_guest_memory_bytes: int,
    guest_cpus: tuple[int, ...],
    user_workloads: tuple[str, ...],
    keys: Path | None,
    insecure: bool,
) -> DestinationDaemon:
    """Build the daemon on the running loop; raises PagefireError when the port, the runtime directory or keys cannot be had."""
    host, port = parse_address(listen_on)
    limits = HostLimits(runtime_dir, max_guest_memory_bytes, guest_cpus, user_workloads)
    return DestinationDaemon(host, port, limits, ListenerSecurity.chosen(keys, insecure, host))
