"""One host: its control socket, the guests that live on it, and, where it listens, those that come to it.

Puts the two halves together: `source_host` takes guests away, `dest_host` takes guests in, and a guest that has come can leave
again. A daemon that starts takes the place of one that died: it adopts the guests which that has left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pagefire.dest_host.demand_paging import ARRIVAL
from pagefire.dest_host.house import HostLimits, House
from pagefire.dest_host.journal import Journal
from pagefire.dest_host.last_word import fence
from pagefire.dest_host.migration import IncomingMigration
from pagefire.dest_host.reception import Reception
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.observation import describe
from pagefire.guest_workload.run_to import run_to
from pagefire.protocol.addresses import parse_address
from pagefire.protocol.errors import GuestError, PagefireError, UsageError
from pagefire.protocol.ownership import Owner
from pagefire.protocol.state import Status
from pagefire.protocol.totals import Totals
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.control_socket import ControlServer, Emit, Json
from pagefire.protocol.transport.event_lines import EventLines
from pagefire.protocol.transport.frame_stream import listen
from pagefire.protocol.transport.http_answers import HttpAnswers
from pagefire.protocol.transport.logbook import Logbook
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.security import ListenerSecurity, is_loopback
from pagefire.protocol.transport.software import software_name
from pagefire.protocol.transport.tasks import in_thread
from pagefire.scripts.watch_options import Watch
from pagefire.source_host.resident import ResidentGuest

log = logging.getLogger("pagefire.host")


@dataclass(frozen=True, slots=True)
class Incoming:
    """What this host's owner allows a guest that comes here, and how its connections are secured."""

    max_guest_memory_bytes: int
    guest_cpus: tuple[int, ...] = ()
    user_workloads: tuple[str, ...] = ()
    silence_s: float = 10.0
    keys: Path | None = None
    insecure: bool = False


class HostDaemon:
    """Serves until it is told to end. Use `make_daemon`."""

    def __init__(self, directory: Path, stem: str, control_path: Path, logbook: Logbook) -> None:
        self._directory, self._stem, self._control_path, self._logbook = directory, stem, control_path, logbook
        self._points = Points()
        self._residents: dict[str, ResidentGuest] = {}
        self._reception: Reception | None = None
        self._address = ""
        self._answers: HttpAnswers | None = None
        self._metrics = ""
        self._ending = asyncio.Event()
        self._forced = asyncio.Event()
        self._settling: set[asyncio.Task[None]] = set()
        self._server = ControlServer(
            control_path,
            {
                "status": self._status,
                "guest": self._guest_status,
                "guests": self._guests,
                "migrate": self._migrate,
                "predict": self._predict,
                "cancel": self._cancel,
                "set": self._set,
                "recover": self._recover,
                "run_to": self._run_to,
                "digest": self._digest,
                "point": self._point,
                "remaining": self._remaining,
            },
        )

    # -- beginning -----------------------------------------------------------------------------------------------------------

    def listen(self, listener: socket.socket, host: str, allowed: Incoming) -> None:
        """Take guests in on a listening socket, which is this daemon's from now on."""
        limits = HostLimits(
            self._directory,
            self._stem,
            allowed.max_guest_memory_bytes,
            allowed.guest_cpus,
            allowed.user_workloads,
            allowed.silence_s,
        )
        journal = Journal(self._directory)
        house = House(limits, journal, self._points, self._logbook, self._name_taken, self._arrived)
        self._reception = Reception(listener, ListenerSecurity.chosen(allowed.keys, allowed.insecure, host), house)
        self._address = f"{host}:{listener.getsockname()[1]}"

    def show(self, listener: socket.socket, host: str) -> None:
        """Serve figures and health on a listening socket, which is this daemon's from now on."""
        from pagefire.scripts.metrics import answers

        self._answers = HttpAnswers(listener, answers(self), self._stands_still)
        self._metrics = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/metrics"
        if not is_loopback(listener.getsockname()[0]):
            log.warning("metrics are shown to whoever reaches %s", self._metrics)

    async def adopt(self, stem: str | None) -> list[str]:
        """Take over the guests that the daemon `stem` (None: any) has left; gives their names. What cannot be adopted is named."""
        names = []
        for path in runtime_directory.orphans(self._directory, stem):
            try:
                guest = await in_thread(GuestProcess.adopt, path)
                if await self._adopt(guest):
                    names.append(guest.name)
            except GuestError as error:
                log.warning("socket=%s not adopted: %s", path.name, error)
                if not runtime_directory.answers(path, socket.SOCK_SEQPACKET):
                    # A guest that has died without its daemon leaves these.
                    path.unlink(missing_ok=True)
                    path.with_suffix(".log").unlink(missing_ok=True)
        return names

    async def _adopt(self, guest: GuestProcess) -> bool:
        """Do with a guest that a daemon has left what its owner word says; tells whether it is this daemon's. Raises GuestError."""
        owner = guest.control.owner
        if owner in (Owner.NONE, Owner.FENCED) and guest.config.shell:
            log.warning("guest=%s pid=%d fenced: it was never handed over", guest.name, guest.pid)
            await in_thread(fence, guest, Journal(self._directory))
            return False
        if owner is not Owner.OWNER or ARRIVAL not in guest.kept:
            await self.take_in(guest, "adopted")
            return True
        if self._reception is None:
            why = "its pages are still arriving, and this daemon does not listen"
            log.warning("guest=%s not adopted: %s", guest.name, why)
            guest.leave()
            return False
        await self._reception.adopt(guest)
        return True

    async def take_in(self, guest: GuestProcess, state: str) -> None:
        """A guest lives here from now on; `state` says how it came to."""
        await self._added(guest, state).settle()

    def _arrived(self, guest: GuestProcess) -> None:
        task = asyncio.create_task(self._added(guest, "arrived").settle())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    def _added(self, guest: GuestProcess, state: str) -> ResidentGuest:
        resident = self._residents[guest.name] = ResidentGuest(guest, self._points, self._logbook)
        self._logbook.note("daemon", guest.name, b"", {"event": "guest", "state": state, "pid": guest.pid})
        return resident

    def _name_taken(self, name: str) -> bool:
        resident = self._residents.get(name)
        assert self._reception is not None
        return self._reception.named(name) or (resident is not None and not resident.left)

    async def serve(self, ready: Callable[[str], None]) -> None:
        scheduling.set_slice(scheduling.PROMPT_SLICE_NS)
        try:
            await self._server.start()
            if self._reception is not None:
                self._reception.open()
            if self._answers is not None:
                await self._answers.start()
            started = {"event": "started", "daemon": self._stem, "listen": self._address or None, "pid": os.getpid()}
            self._logbook.note("daemon", None, b"", started | {"version": software_name()})
            ready(self._ready_line())
            await self._ending.wait()
        finally:
            lost = await self._wind_down()
        if lost:
            raise GuestError(
                f"guest {', '.join(lost)} is lost",
                "its pages were divided between two hosts, and this one was forced to end",
            )

    def _ready_line(self) -> str:
        guests = ", ".join(f"guest {name} runs (pid {one.guest.pid})" for name, one in self._residents.items())
        parts = [part for part in (guests, f"listening on {self._address}" if self._address else "") if part]
        role = self._stem.partition("-")[0]
        metrics = f", metrics at {self._metrics}" if self._metrics else ""
        return f"pagefire {role}: {', '.join(parts)}, control socket {self._control_path}{metrics}"

    # -- for whoever watches ---------------------------------------------------------------------------------------------------

    @property
    def totals(self) -> Totals:
        """What has ended."""
        return self._logbook.totals

    @property
    def residents(self) -> list[ResidentGuest]:
        return list(self._residents.values())

    @property
    def incoming(self) -> list[IncomingMigration]:
        """Migrations to here whose guest is not a resident yet."""
        return self._reception.migrations if self._reception is not None else []

    @property
    def arriving(self) -> list[IncomingMigration]:
        """Those of them that have not ended."""
        return self._reception.running if self._reception is not None else []

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    def _stands_still(self) -> bool:
        """Whether a guest is in its stun: whatever can wait does."""
        incoming = any(migration.status is Status.DEVICE for migration in self.arriving)
        return incoming or any(resident.stands_still for resident in self.residents)

    # -- ending --------------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        self._ending.set()

    def force(self) -> None:
        self._forced.set()

    async def _wind_down(self) -> list[str]:
        """End everything here; gives the names of the guests that are lost by it."""
        # Whatever goes wrong while winding down: a guest must not outlive a daemon that meant to end it.
        lost: list[str] = []
        reception = self._reception

        async def part(work: Awaitable[list[str]]) -> None:
            lost.extend(await work)

        async def leave(resident: ResidentGuest) -> list[str]:
            return [resident.name] if await resident.wind_down(self._forced) else []

        try:
            async with asyncio.TaskGroup() as group:
                if reception is not None:
                    group.create_task(part(reception.close(self._forced)))
                for resident in self._residents.values():
                    group.create_task(part(leave(resident)))
            # Those that came while the others left.
            for resident in self._residents.values():
                await resident.wind_down(self._forced)
        finally:
            if self._answers is not None:
                await self._answers.close()
            await self._server.close()
            self._logbook.note("daemon", None, b"", {"event": "stopped", "lost": sorted(set(lost))})
            await self._logbook.close()
            runtime_directory.leave(self._directory, self._control_path)
        return sorted(set(lost))

    # -- operations of the control socket ------------------------------------------------------------------------------------

    async def _status(self, request: Json, emit: Emit) -> Json:
        incoming = [
            {
                "name": migration.name,
                "resident": False,
                "status": migration.status.value,
                "owner": migration.owns_guest,
                "running": migration.owns_guest,
                "missing_pages": migration.missing_pages,
                "waiting_pages": migration.waiting_pages,
                "error": migration.error,
                "commits": migration.guest.control.commits() if migration.guest else 0,
            }
            for migration in self.incoming
        ]
        residents = [one.status() for one in self._residents.values()]
        return {"daemon": self._stem, "listen": self._address or None, "guests": residents + incoming}

    async def _guest_status(self, request: Json, emit: Emit) -> Json:
        return self._resident(request).status()

    async def _guests(self, request: Json, emit: Emit) -> Json:
        """Where an observer on this machine finds the control blocks and memories of the guests."""
        return {one.name: describe(one.guest) for one in self._residents.values() if not one.gone} | {
            migration.name: describe(migration.guest) for migration in self.incoming if migration.guest is not None
        }

    async def _migrate(self, request: Json, emit: Emit) -> Json:
        return await self._resident(request).migrate(request, emit)

    async def _predict(self, request: Json, emit: Emit) -> Json:
        return await self._resident(request).predict(request, emit)

    async def _cancel(self, request: Json, emit: Emit) -> Json:
        return await self._resident(request).cancel()

    async def _set(self, request: Json, emit: Emit) -> Json:
        return self._resident(request).retune(request["changes"])

    async def _recover(self, request: Json, emit: Emit) -> Json:
        return await self._resident(request).recover(request.get("to"), take_back=bool(request.get("take_back")))

    async def _run_to(self, request: Json, emit: Emit) -> Json:
        """Let each vCPU run until it has committed `steps` transactions since it was born; `wait` until all have."""
        guest, steps = self._running_guest(request), int(request["steps"])
        await run_to(guest.control, steps, wait=bool(request.get("wait", True)), unpaced=bool(request.get("unpaced")))
        return {}

    async def _digest(self, request: Json, emit: Emit) -> Json:
        return dict(await in_thread(self._running_guest(request).digest))

    async def _point(self, request: Json, emit: Emit) -> Json:
        """Hold, wait for or release a named point of a migration's script: for tests."""
        action, name = request["action"], request["name"]
        if action == "hold":
            self._points.hold(name)
        elif action == "wait":
            await self._points.wait_for(name)
        else:
            self._points.release(name)
        return {}

    async def _remaining(self, request: Json, emit: Emit) -> Json:
        return self._resident(request).remaining()

    def _resident(self, request: Json) -> ResidentGuest:
        """Find the guest that is meant: the only one where none is named."""
        name = request.get("name")
        if name is None and len(self._residents) == 1:
            return next(iter(self._residents.values()))
        if name in self._residents:
            return self._residents[name]
        here = ", ".join(self._residents) or "none"
        if any(migration.name == name for migration in self.incoming):
            raise PagefireError(f"guest {name} is still arriving", "its last pages are at its source", "wait")
        raise UsageError(f"no guest named {name} lives here" if name else "which guest is meant", f"here: {here}")

    def _running_guest(self, request: Json) -> GuestProcess:
        name = request.get("name")
        for resident in self._residents.values():
            if name in (None, resident.name) and resident.here and not resident.gone:
                return resident.guest
        for migration in self.incoming:
            if migration.guest is not None and migration.owns_guest and name in (None, migration.name):
                return migration.guest
        raise UsageError("no such guest runs here", str(name))


async def make_daemon(
    directory: Path,
    *,
    config: GuestConfig | None = None,
    listen_on: str | None = None,
    allowed: Incoming | None = None,
    adopt: bool = False,
    watch: Watch | None = None,
) -> HostDaemon:
    """Build a daemon on the running loop, with a newborn guest if a `config` is given; raises PagefireError, and nothing is left.

    Where it takes the place of a daemon that died (of the guest's name, or the port), it adopts what that has left. `adopt`: the
    guests of any daemon that died, and no newborn.
    """
    with contextlib.ExitStack() as on_failure:
        # The port first: where it is taken, nothing has been made that would be left behind.
        host, listener = "", None
        if listen_on is not None:
            host, port = parse_address(listen_on)
            listener = on_failure.enter_context(listen(host, port))
        watch = watch or Watch()
        shown = on_failure.enter_context(listen(*watch.metrics, "--metrics")) if watch.metrics is not None else None
        logbook = Logbook(EventLines(watch.events) if watch.events is not None else None)
        runtime_directory.prepare(directory)
        role, name = ("source", config.name) if config is not None else ("dest", str(_port_of(listener)))
        control_path = runtime_directory.control_path(directory, role, name)
        stem = f"{role}-{name}"
        daemon = HostDaemon(directory, stem, control_path, logbook)
        if listener is not None:
            daemon.listen(listener, host, allowed or Incoming(0))
        if shown is not None and watch.metrics is not None:
            daemon.show(shown, watch.metrics[0])
        on_failure.pop_all()
    names = await daemon.adopt(None if adopt else stem)
    if config is not None and config.name not in names:
        if adopt:
            if not names and listener is None:
                runtime_directory.leave(directory)
                raise UsageError("there is no guest to adopt", f"no daemon that died has left one in {directory}")
            return daemon
        started: list[GuestProcess] = []
        guest_path = runtime_directory.guest_path(directory, stem, "born")
        try:
            # Noted in the thread: a cancellation meanwhile waits for the thread's end, and has to find the guest that it made.
            await in_thread(lambda: started.append(GuestProcess.spawn(guest_path, config)))
        except BaseException:
            for guest in started:
                await in_thread(guest.terminate)
            runtime_directory.leave(directory, guest_path.with_suffix(".log"))
            raise
        await daemon.take_in(started[0], "born")
    return daemon


def _port_of(listener: socket.socket | None) -> int:
    assert listener is not None
    return int(listener.getsockname()[1])
