"""A guest that lives on this host, from its birth, arrival or adoption until it has left, and the migrations that take it away."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
import os
import time

from pagefire.guest_workload import keepsake
from pagefire.guest_workload.control_block import RunState
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.addresses import parse_address
from pagefire.protocol.bitmap import encode_bitmap
from pagefire.protocol.errors import GuestError, PagefireError
from pagefire.protocol.ownership import Act, Event, Owner, Ownership
from pagefire.protocol.pages import pages_of
from pagefire.protocol.prediction import Prediction
from pagefire.protocol.report import MigrationReport
from pagefire.protocol.state import Side, Status
from pagefire.protocol.totals import OUTCOMES, Moved
from pagefire.protocol.transport import heap
from pagefire.protocol.transport.control_socket import Emit, Json
from pagefire.protocol.transport.logbook import Logbook
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.tasks import in_thread
from pagefire.source_host.adopted import AdoptedMigration
from pagefire.source_host.departure import DEPARTURE, forget_record
from pagefire.source_host.migration import OutgoingMigration
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.predicting import Predicting

log = logging.getLogger("pagefire.source")

#: What of a report the event of a migration's end holds.
_TOLD_AT_THE_END = (
    "error", "owner", "total_s", "setup_s", "precopy_s", "downtime_s", "stun_s", "resident_after_s", "wire_bytes", "recoveries",
)  # fmt: skip

_OPTION_NAMES = {field.name for field in dataclasses.fields(MigrationOptions)}


class ResidentGuest:
    """One guest, one migration of it at a time. After it has left, what is known of its last migration can still be asked."""

    def __init__(self, guest: GuestProcess, points: Points, logbook: Logbook) -> None:
        """Take a guest over, which runs already if it is this host's own (OWNER); `settle` begins."""
        self.guest = guest
        self.name = guest.config.name
        self._points = points
        self._logbook = logbook
        #: The migration whose figures are not in the logbook's totals yet.
        self._counting: OutgoingMigration | AdoptedMigration | None = None
        self._migration: OutgoingMigration | AdoptedMigration | None = None
        self._task: asyncio.Task[MigrationReport] | None = None
        #: The last prediction, and its task. Never under way beside a migration.
        self._predicting: tuple[Predicting, asyncio.Task[Prediction]] | None = None
        self._died = False
        self._watched = -1
        self._lost_pages: int | None = None

    async def settle(self) -> None:
        """Own the guest and let it run, or go on with the migration that its last daemon had relinquished it to."""
        control = self.guest.control
        # A descriptor of our own: the guest's is closed in a thread when its memory is freed, and a loop that still watches a
        # closed number refuses the next connection that is given it.
        self._watched = os.dup(self.guest.pidfd)
        asyncio.get_running_loop().add_reader(self._watched, self._guest_died)
        found = await in_thread(keepsake.find, self.guest, DEPARTURE)
        if control.owner is Owner.RELINQUISHED and found is not None:
            migration = AdoptedMigration(self.guest, found[0], self._points, self._teller())
            log.warning("guest=%s adopted: it was handed over to %s, asking there", self.name, migration.options.to)
            self._begin(migration)
            return
        if found is not None:
            # Its daemon died before the commit point: what that had protected and split went with its userfaultfd.
            await forget_record(self.guest)
            await in_thread(self.guest.give_back_huge_mappings)
        if control.owner is Owner.NONE:
            # Newborn: the first word of all.
            control.owner = Owner.OWNER
        if control.owner is Owner.OWNER and control.run_state is RunState.PAUSE:
            control.resume()

    @property
    def gone(self) -> bool:
        """Whether the guest is another host's."""
        return self._migration is not None and self._migration.relinquished

    @property
    def left(self) -> bool:
        """Whether nothing of the guest is here any more: it has been migrated."""
        return self._migration is not None and self._migration.status is Status.COMPLETED

    @property
    def here(self) -> bool:
        """Whether the guest's memory and control block can be looked at."""
        return not self._died and not self.left

    @property
    def stands_still(self) -> bool:
        """Whether the guest is in its stun: nothing is to be done now that can be done later."""
        return isinstance(self._counting, OutgoingMigration) and self._counting.stands_still

    @property
    def ailment(self) -> str | None:
        """What a person has to know who is responsible for the guest; None where all is well."""
        if self.left:
            return None
        if self._died and not self.gone:
            return f"guest {self.name} is dead: its process ended"
        migration = self._migration
        if migration is None or migration.departure is None:
            return None
        if migration.status in (Status.POSTCOPY_PAUSED, Status.POSTCOPY_RECOVER):
            why = migration.departure.error or "the link is lost"
            return f"guest {self.name}: post-copy is paused, {migration.pages_left} pages are only here: {why}"
        return f"guest {self.name}: {migration.report.error}" if migration.status is Status.FAILED else None

    def moved(self) -> Moved:
        """Give what a migration that is under way has sent so far."""
        return self._counting.moved() if self._counting is not None else Moved()

    # -- operations ----------------------------------------------------------------------------------------------------------

    def status(self) -> Json:
        """Describe the guest and its last migration, in plain values."""
        migration, config = self._migration, self.guest.config
        control = self.guest.control if self.here and not self.gone else None
        status: Json = {
            "name": self.name,
            "resident": not self.left,
            "workload": config.workload,
            "memory_bytes": config.memory_bytes,
            "vcpus": config.vcpus,
            "owner": control is not None,
            "running": control is not None and not control.all_parked,
            "commits": control.commits() if control is not None else None,
            "status": Status.NONE.value,
            "error": "the guest process ended" if self._died and not self.gone else None,
        }
        if (looking := self._looking) is not None:
            status["predicting"] = looking[0].options.to
        if migration is None:
            return status
        departure = migration.departure
        status |= {
            "status": migration.status.value,
            "destination": (departure or migration).options.to,
            "remaining_pages": migration.pages_left,
            "error": status["error"] or (departure.error if departure is not None else None) or migration.report.error,
        }
        if isinstance(migration, OutgoingMigration):
            progress, asked = migration.progress, migration.throttling.asked
            status |= {
                "mode": migration.options.mode,
                "round": progress.round,
                "dirty_pages_per_s": round(migration.dirty_pages_per_s, 1),
                "remaining_pages": progress.remaining_pages,
                "elapsed_s": time.monotonic() - progress.started_s,
                # The share of its time that a vCPU is to sleep now, for --auto-converge.
                "throttle_mean": round(float(asked.mean()), 4) if asked.any() else None,
                "throttle_max": round(float(asked.max()), 4) if asked.any() else None,
                "rounds": [dataclasses.asdict(round_) for round_ in migration.report.rounds],
            }
        return status

    async def migrate(self, request: Json, emit: Emit) -> Json:
        """Migrate as the request's options say; gives {"report"}."""
        options = _options_of(request)
        self._require_settled()
        tell = self._teller(emit)
        migration = OutgoingMigration(self.guest, options, self._points, tell)
        begun = self._begin(migration)
        tell({"event": "requested", "destination": options.to, **_told_of(options), **_shape_of(self.guest)})
        try:
            report = await asyncio.shield(begun)
        except PagefireError:
            # The error answers the request; what had been measured until then goes before it.
            emit({"event": "ended", "report": migration.report.as_dict()})
            raise
        except asyncio.CancelledError:
            if self._lost_pages is not None:
                raise self.loss() from None
            raise
        return {"report": report.as_dict()}

    async def predict(self, request: Json, emit: Emit) -> Json:
        """Predict what `migrate` with the same options would do, after watching the guest for `watch_s`; gives {"prediction"}."""
        options = _options_of(request)
        self._require_settled()
        predicting = Predicting(self.guest, options, float(request["watch_s"]), self._points, emit)
        task = asyncio.create_task(predicting.run())
        # Where nobody waits for it any more: whoever asked has gone, and it ends by itself.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._predicting = predicting, task
        return {"prediction": (await asyncio.shield(task)).as_dict()}

    def _teller(self, emit: Emit = lambda event: None) -> Emit:
        """Make what the events of one migration go through, from now on: `emit`, and the logbook, with the time since now."""
        began_s = time.monotonic()

        def tell(event: Json) -> None:
            event = event | {"at_s": round(time.monotonic() - began_s, 6)}
            emit(event)
            session = self._migration.session if self._migration is not None else b""
            self._logbook.note("source", self.name, session, event)

        return tell

    @property
    def _looking(self) -> tuple[Predicting, asyncio.Task[Prediction]] | None:
        """The prediction that is under way."""
        return self._predicting if self._predicting is not None and not self._predicting[1].done() else None

    def _require_settled(self) -> None:
        """Raise PagefireError where the guest is not here to be migrated, or already is."""
        if self._task is not None and not self._task.done():
            assert self._migration is not None
            raise PagefireError(
                f"guest {self.name} is already migrating", f"to {self._migration.options.to}", "wait, or cancel it"
            )
        if (looking := self._looking) is not None:
            why = f"to predict its migration to {looking[0].options.to}"
            raise PagefireError(f"guest {self.name} is being looked at", why, "wait some seconds, or cancel it")
        if self.gone:
            assert self._migration is not None
            raise PagefireError(f"guest {self.name} is not here any more", f"it runs at {self._migration.options.to}")
        if self._died:
            raise GuestError(f"guest {self.name} is dead", "its process ended")

    async def _cancel_prediction(self) -> bool:
        """Cancel a prediction and wait for its end; tells whether there was one."""
        if (looking := self._looking) is None:
            return False
        predicting, task = looking
        predicting.interrupt()
        task.cancel()
        await asyncio.wait({task})
        return True

    async def cancel(self) -> Json:
        """Cancel the migration, before its commit point, or the prediction of one; raises PagefireError after it."""
        if await self._cancel_prediction():
            return {"status": self.status()["status"]}
        migration, task = self._migration, self._task
        if migration is None or task is None or task.done():
            raise PagefireError(f"guest {self.name} is not migrating")
        if not isinstance(migration, OutgoingMigration) or migration.relinquished:
            raise PagefireError(
                "too late to cancel",
                f"guest {self.name} runs at {migration.options.to}, {migration.pages_left} pages are left to move",
            )
        migration.status = Status.CANCELLING
        migration.interrupt()
        task.cancel()
        await asyncio.wait({task})
        return {"status": migration.status.value}

    def retune(self, changes: Json) -> Json:
        """Change options of the migration that is under way; gives the options that hold now."""
        migration, task = self._migration, self._task
        if migration is None or task is None or task.done():
            raise PagefireError(f"guest {self.name} is not migrating")
        if not isinstance(migration, OutgoingMigration):
            raise PagefireError(f"the migration of guest {self.name} was begun by another daemon", "that one has died")
        migration.retune(changes)
        return dataclasses.asdict((migration.departure or migration).options)

    async def recover(self, to: str | None, *, take_back: bool) -> Json:
        """Reach the destination of a post-copy that is paused, now, at `to` if it is given; gives the report when all has moved.

        `take_back`: let the guest run here again, from where it stood at the stun, because the destination has lost it.
        """
        if to is not None:
            parse_address(to)
        if take_back and self._died:
            raise GuestError(f"guest {self.name} cannot be taken back", "its process here has ended too")
        migration, task = self._migration, self._task
        departure = migration.departure if migration is not None else None
        if migration is None or departure is None or task is None:
            raise PagefireError(f"the post-copy of guest {self.name} is not paused", "", "nothing is to be recovered")
        if task.done():
            if not take_back or migration.status is Status.COMPLETED:
                raise PagefireError(
                    f"the post-copy of guest {self.name} is not paused", str(migration.report.error or "")
                )
            await self._run_again()
            return {"status": "taken back"}
        if departure.status not in (Status.POSTCOPY_PAUSED, Status.POSTCOPY_RECOVER):
            raise PagefireError(
                f"the post-copy of guest {self.name} is not paused", f"{migration.pages_left} pages are left to move"
            )
        if take_back:
            departure.take_back()
            await asyncio.wait({task})
            return {"status": "taken back"}
        departure.retry(to)
        report = await asyncio.shield(task)
        return {"report": report.as_dict()}

    async def _run_again(self) -> None:
        assert Ownership(Side.SOURCE, self.guest.control).on(Event.TAKE_BACK) is Act.RUN
        self._migration = self._task = None
        self.guest.control.resume()
        await forget_record(self.guest)
        await in_thread(self.guest.give_back_huge_mappings)

    def remaining(self) -> Json:
        """Give the switchover's bitmap, compacted: for tests that stand at a point."""
        assert isinstance(self._migration, OutgoingMigration)
        pages = self._migration.remaining
        coded = encode_bitmap("compacted", pages, pages_of(self.guest.memory.size_bytes))
        return {"bitmap": base64.b64encode(coded).decode(), "pages": pages.pages}

    # -- the guest, and the end ----------------------------------------------------------------------------------------------

    def _begin(self, migration: OutgoingMigration | AdoptedMigration) -> asyncio.Task[MigrationReport]:
        # What the one before had is free now.
        self._migration = migration
        heap.tidy()
        self._counting = migration
        self._task = asyncio.create_task(migration.run())
        self._task.add_done_callback(self._ended)
        return self._task

    def _ended(self, task: asyncio.Task[MigrationReport]) -> None:
        migration, self._counting = self._counting, None
        assert migration is not None
        # Where nobody waits for it: how it ended stands in its report.
        if not task.cancelled():
            task.exception()
        report, outcome = migration.report, migration.status.value
        if outcome not in OUTCOMES:
            # Cancelled before it began, or forced to end in the middle.
            outcome = "cancelled" if migration.status is Status.CANCELLING else "failed"
        self._logbook.totals.left(self.name, outcome, migration.moved(), report.stun_s, report.downtime_s)
        told = {name: getattr(report, name) for name in _TOLD_AT_THE_END}
        ended = {"event": "ended", "outcome": outcome, "rounds": len(report.rounds), **told}
        self._logbook.note("source", self.name, migration.session, ended)
        heap.tidy()

    def _guest_died(self) -> None:
        self._stop_watching()
        self._died = True
        if self.gone:
            return
        log.error("guest=%s pid=%d the guest process ended", self.name, self.guest.pid)
        self._logbook.note("daemon", self.name, b"", {"event": "guest", "state": "died", "pid": self.guest.pid})
        if isinstance(self._migration, OutgoingMigration):
            self._migration.guest_died()
        if (looking := self._looking) is not None:
            looking[0].guest_died()

    def loss(self) -> GuestError:
        """Make the error of a daemon that was forced to end."""
        return GuestError(
            f"guest {self.name} is lost",
            f"its source daemon was forced to end, and {self._lost_pages} of its pages were only there",
        )

    def _stop_watching(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    async def wind_down(self, forced: asyncio.Event) -> bool:
        """End with the daemon: cancel a migration before its commit point, finish it after that, end the guest that is here.

        The only copy of a page may be here: unless `forced` is set, that is waited for. True when the guest is lost by it.
        """
        try:
            await self._cancel_prediction()
            await self._finish_or_cancel(forced)
        finally:
            self._stop_watching()
            await in_thread(self.guest.terminate)
        return self._lost_pages is not None

    async def _finish_or_cancel(self, forced: asyncio.Event) -> None:
        task, migration = self._task, self._migration
        if task is None or migration is None or task.done():
            return
        if not migration.relinquished:
            log.warning("guest=%s cancelling the migration", self.name)
            if isinstance(migration, OutgoingMigration):
                migration.interrupt()
            task.cancel()
            await asyncio.wait({task})
            return
        if migration.departure is not None:
            migration.departure.hurry()
        log.warning(
            "guest=%s runs at %s and %d of its pages are only here: finishing first; a second signal loses the guest",
            self.name, migration.options.to, migration.pages_left,
        )  # fmt: skip
        force = asyncio.create_task(forced.wait())
        await asyncio.wait({task, force}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            log.error("guest=%s forced to end: the guest is lost", self.name)
            self._lost_pages = migration.pages_left
            task.cancel()
        force.cancel()
        await asyncio.gather(task, force, return_exceptions=True)


def _told_of(options: MigrationOptions) -> Json:
    """Give what of the options bears on how long a migration will take."""
    told = dataclasses.asdict(options.limits) | {"auto_converge": options.auto_converge, "streams": options.streams}
    return told | {"delta_cache_bytes": options.delta_cache_bytes, "max_bandwidth_Bps": options.max_bandwidth_Bps}


def _shape_of(guest: GuestProcess) -> Json:
    return {"memory_bytes": guest.config.memory_bytes, "vcpus": guest.config.vcpus}


def _options_of(request: Json) -> MigrationOptions:
    """Read the options of a migration from a request."""
    return MigrationOptions(**{name: request[name] for name in _OPTION_NAMES & request.keys()})
