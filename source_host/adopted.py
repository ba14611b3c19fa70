"""A migration whose daemon died after the commit point, gone on with by the daemon that adopted the guest.

What the other daemon had measured is gone with it: the report tells what is still known, and what was proven.
"""

from __future__ import annotations

import logging

from pagefire.guest_workload import keepsake
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.ownership import Act, Event, Ownership
from pagefire.protocol.report import MigrationReport
from pagefire.protocol.state import Side, Status
from pagefire.protocol.totals import Moved
from pagefire.protocol.transport.points import Points
from pagefire.protocol.transport.software import versions
from pagefire.protocol.transport.tasks import in_thread
from pagefire.source_host.accounting import compression_of, moved_so_far, postcopy_of, verify
from pagefire.source_host.departure import Departure, Emit, OursAgain, forget_record

log = logging.getLogger("pagefire.source")


class AdoptedMigration:
    """The rest of one outgoing migration. `run` is called once."""

    def __init__(self, guest: GuestProcess, record: keepsake.Record, points: Points, emit: Emit) -> None:
        """`record` is what the other daemon left with the guest."""
        self._guest = guest
        self._ownership = Ownership(Side.SOURCE, guest.control)
        self.departure: Departure | None = Departure.of_record(guest, record, points, emit)
        self._identity: bytes = record["identity"]
        self._departure = self.departure
        self.options = self.departure.options
        self.report = MigrationReport(outcome="postcopy-paused", owner="destination", destination=self.options.to)
        self.report.versions = versions()
        self._commits = int(guest.control.registers[:, 0].sum())
        self._done: Status | None = None

    @property
    def status(self) -> Status:
        return self._done or (self.departure.status if self.departure is not None else Status.FAILED)

    @property
    def relinquished(self) -> bool:
        return self.departure is not None

    @property
    def pages_left(self) -> int:
        return self.departure.pages_left if self.departure is not None else 0

    @property
    def session(self) -> bytes:
        """The session's identity."""
        return self._identity

    def moved(self) -> Moved:
        """Give what this daemon has sent of it."""
        return moved_so_far(None, self._departure, 0)

    async def run(self) -> MigrationReport:
        """Ask, move what is missing, release; gives the report, or raises why it ended otherwise."""
        departure = self.departure
        assert departure is not None
        try:
            assert self._ownership.on(Event.RESTARTED) is Act.ASK
            await departure.ask(None)
            resident = await departure.move()
            assert self._ownership.on(Event.RESIDENT) is Act.FREE
        except OursAgain as error:
            self.departure, self._done = None, Status.FAILED
            self.report.owner, self.report.outcome, self.report.error = "source", "failed", str(error)
            await departure.close()
            self._guest.control.resume()
            await forget_record(self._guest)
            raise
        except PagefireError as error:
            self._done = Status.FAILED
            self.report.outcome, self.report.error = "failed", str(error)
            await departure.close()
            raise
        self._done = Status.COMPLETED
        self.report.outcome = "completed"
        self.report.recoveries, self.report.paused_s = departure.recoveries, departure.paused_s
        assert departure.link is not None
        self.report.wire_bytes = departure.link.sent_bytes + departure.earlier_bytes
        self.report.compression = compression_of(departure)
        self.report.postcopy = postcopy_of(resident)
        departure.link.close_pages()
        await in_thread(self._guest.terminate)
        if (aftermath := await departure.release()) is not None:
            verify(self.report, self._commits, aftermath)
        self.report.error = departure.error
        log.info("guest=%s status=completed destination=%s", self._guest.name, departure.options.to)
        return self.report
