"""The source daemon: one guest, its control socket, one migration at a time.

Arguments, sockets and signals only; a migration is `migration.OutgoingMigration`.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagefire.guest_workload.control_block import Owner
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.observation import describe
from pagefire.guest_workload.run_to import run_to
from pagefire.protocol.bitmap import encode_bitmap
from pagefire.protocol.errors import GuestError, PagefireError
from pagefire.protocol.pages import pages_of
from pagefire.protocol.state import Status
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.control_socket import ControlServer, Emit, Json
from pagefire.protocol.transport.daemon import SLICE_NS
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.tasks import in_thread
from pagefire.source_host.migration import OutgoingMigration
from pagefire.source_host.options import MigrationOptions

log = logging.getLogger("pagefire.source")

_OPTION_NAMES = {field.name for field in dataclasses.fields(MigrationOptions)}


class SourceDaemon:
    """Holds a guest until it is told to end; without one once it has been migrated."""

    def __init__(self, guest: GuestProcess, directory: Path, control_path: Path) -> None:
        self._guest = guest
        self._directory = directory
        self._control_path = control_path
        self._server = ControlServer(
            control_path,
            {
                "status": self._status,
                "migrate": self._migrate,
                "cancel": self._cancel,
                "guests": self._guests,
                "run_to": self._run_to,
                "digest": self._digest,
                "point": self._point,
                "remaining": self._remaining,
            },
        )
        self._points = Points()
        self._migration: OutgoingMigration | None = None
        self._task: asyncio.Task[Any] | None = None
        self._died = False
        self._watched = -1
        self._lost_pages: int | None = None
        self._ending = asyncio.Event()
        self._forced = asyncio.Event()

    async def serve(self, ready: Callable[[str], None]) -> None:
        scheduling.set_short_slice(SLICE_NS)
        guest = self._guest
        guest.control.owner = Owner.OWNER
        guest.control.resume()
        # A descriptor of our own: the guest's is closed in a thread when its memory is freed, and a loop that still watches a
        # closed number refuses the next connection that is given it.
        self._watched = os.dup(guest.pidfd)
        asyncio.get_running_loop().add_reader(self._watched, self._guest_died)
        try:
            await self._server.start()
            ready(
                f"pagefire source: guest {guest.config.name} runs (pid {guest.pid}), control socket {self._control_path}"
            )
            await self._ending.wait()
        finally:
            # Whatever goes wrong while winding down: a guest must not outlive a daemon that meant to end it.
            try:
                await self._wind_down()
                await self._server.close()
            finally:
                self._stop_watching()
                await in_thread(guest.terminate)
                runtime_directory.leave(self._directory, self._control_path)
        if self._lost_pages is not None:
            raise self._loss()

    def end(self) -> None:
        self._ending.set()

    def force(self) -> None:
        self._forced.set()

    # -- operations of the control socket ------------------------------------------------------------------------------------

    async def _status(self, request: Json, emit: Emit) -> Json:
        migration, config = self._migration, self._guest.config
        here = not (self._gone or self._died)
        control = self._guest.control if here else None
        status: Json = {
            "role": "source",
            "guest": config.name,
            "workload": config.workload,
            "memory_bytes": config.memory_bytes,
            "vcpus": config.vcpus,
            "owner": control is not None,
            "running": control is not None and not control.all_parked,
            "commits": control.commits() if control is not None else None,
            "status": Status.NONE.value,
            "error": "the guest process ended" if self._died and not self._gone else None,
        }
        if migration is not None:
            progress = migration.progress
            status |= {
                "status": migration.status.value,
                "destination": migration.options.to,
                "mode": migration.options.mode,
                "round": progress.round,
                "remaining_pages": progress.remaining_pages,
                "elapsed_s": time.monotonic() - progress.started_s,
                "error": status["error"] or migration.report.error,
                "rounds": [dataclasses.asdict(round_) for round_ in migration.report.rounds],
            }
        return status

    async def _migrate(self, request: Json, emit: Emit) -> Json:
        options = MigrationOptions(**{name: request[name] for name in _OPTION_NAMES & request.keys()})
        name = self._guest.config.name
        if self._task is not None and not self._task.done():
            assert self._migration is not None
            raise PagefireError(
                f"guest {name} is already migrating", f"to {self._migration.options.to}", "wait, or cancel it"
            )
        if self._gone:
            assert self._migration is not None
            raise PagefireError(f"guest {name} is not here any more", f"it runs at {self._migration.options.to}")
        if self._died:
            raise GuestError(f"guest {name} is dead", "its process ended")
        self._migration = migration = OutgoingMigration(self._guest, options, self._points, emit)
        self._task = asyncio.create_task(migration.run())
        try:
            report = await asyncio.shield(self._task)
        except PagefireError:
            # The error answers the request; what had been measured until then goes before it.
            emit({"event": "ended", "report": migration.report.as_dict()})
            raise
        except asyncio.CancelledError:
            if self._lost_pages is not None:
                raise self._loss() from None
            raise
        return {"report": report.as_dict()}

    async def _cancel(self, request: Json, emit: Emit) -> Json:
        migration, task = self._migration, self._task
        name = self._guest.config.name
        if migration is None or task is None or task.done():
            raise PagefireError(f"guest {name} is not migrating")
        if migration.relinquished:
            raise PagefireError(
                "too late to cancel",
                f"guest {name} runs at {migration.options.to}, {migration.pages_left} pages are left to move",
            )
        migration.status = Status.CANCELLING
        task.cancel()
        await asyncio.wait({task})
        return {"status": migration.status.value}

    async def _guests(self, request: Json, emit: Emit) -> Json:
        """Where an observer on this machine finds the guest's control block and memory."""
        return {} if self._gone else {self._guest.config.name: describe(self._guest)}

    async def _run_to(self, request: Json, emit: Emit) -> Json:
        """Let each vCPU run until it has committed `steps` transactions since it was born; `wait` until all have."""
        await run_to(self._guest.control, int(request["steps"]), wait=bool(request.get("wait", True)))
        return {}

    async def _digest(self, request: Json, emit: Emit) -> Json:
        return dict(await in_thread(self._guest.digest))

    async def _point(self, request: Json, emit: Emit) -> Json:
        """Hold, wait for or release a named point of the migration's script: for tests."""
        action, name = request["action"], request["name"]
        if action == "hold":
            self._points.hold(name)
        elif action == "wait":
            await self._points.wait_for(name)
        else:
            self._points.release(name)
        return {}

    async def _remaining(self, request: Json, emit: Emit) -> Json:
        """Give the switchover's bitmap, compacted: for tests that stand at a point."""
        assert self._migration is not None
        total_pages = pages_of(self._guest.memory.size_bytes)
        coded = encode_bitmap("compacted", self._migration.remaining, total_pages)
        return {"bitmap": base64.b64encode(coded).decode(), "pages": self._migration.remaining.pages}

    # -- the guest, and the end ----------------------------------------------------------------------------------------------

    @property
    def _gone(self) -> bool:
        return self._migration is not None and self._migration.relinquished

    def _guest_died(self) -> None:
        self._stop_watching()
        self._died = True
        if self._gone:
            return
        log.error("guest=%s pid=%d the guest process ended", self._guest.config.name, self._guest.pid)
        if self._migration is not None:
            self._migration.guest_died()

    def _loss(self) -> GuestError:
        return GuestError(
            f"guest {self._guest.config.name} is lost",
            f"its source daemon was forced to end, and {self._lost_pages} of its pages were only there",
        )

    def _stop_watching(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    async def _wind_down(self) -> None:
        """Cancel a migration before its commit point; after it, finish first: the only copy of a page may be here."""
        task, migration = self._task, self._migration
        if task is None or migration is None:
            return
        if task.done() and migration.status is Status.POSTCOPY_PAUSED:
            log.warning(
                "guest=%s runs at %s and %d of its pages are only here, but the link is lost: staying; "
                "a second signal loses the guest",
                self._guest.config.name, migration.options.to, migration.pages_left,
            )  # fmt: skip
            await self._forced.wait()
            self._lost_pages = migration.pages_left
        if task.done():
            return
        if not migration.relinquished:
            log.warning("guest=%s cancelling the migration", self._guest.config.name)
            task.cancel()
            await asyncio.wait({task})
            return
        log.warning(
            "guest=%s runs at %s and %d of its pages are only here: finishing first; a second signal loses the guest",
            self._guest.config.name, migration.options.to, migration.pages_left,
        )  # fmt: skip
        forced = asyncio.create_task(self._forced.wait())
        await asyncio.wait({task, forced}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            log.error("guest=%s forced to end: the guest is lost", self._guest.config.name)
            self._lost_pages = migration.pages_left
            task.cancel()
        forced.cancel()
        await asyncio.gather(task, forced, return_exceptions=True)


async def make_daemon(config: GuestConfig, runtime_dir: Path) -> SourceDaemon:
    """Start the guest and build its daemon on the running loop; raises PagefireError, and then nothing is left behind."""
    directory = runtime_directory.prepare(runtime_dir)
    control_path = runtime_directory.control_path(directory, "source", config.name)
    guest_path = runtime_directory.socket_path(directory, f"source-{config.name}.guest")
    started: list[GuestProcess] = []
    try:
        # Noted in the thread: a cancellation meanwhile waits for the thread's end, and has to find the guest that it made.
        await in_thread(lambda: started.append(GuestProcess.spawn(guest_path, config)))
    except BaseException:
        for guest in started:
            await in_thread(guest.terminate)
        runtime_directory.leave(directory, guest_path.with_suffix(".log"))
        raise
    return SourceDaemon(started[0], directory, control_path)
