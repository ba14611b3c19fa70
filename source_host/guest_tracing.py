"""The tracing of one guest during one migration: begun with the tracker that this host gets, ended whatever happens.

Ended means that the guest is as fast as it was before: nothing protected, and huge mappings given back that tracing has split.
"""

from __future__ import annotations

import contextlib
import threading
import time

from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.memfd import data_among
from pagefire.protocol.errors import GuestError
from pagefire.protocol.pages import PageSet
from pagefire.protocol.report import TraceInstall
from pagefire.source_host.trace_install import Installed, InstallOptions, Rolling, cost_of_install, install
from pagefire.source_host.tracker_choice import TrackerChoice, make_tracker
from pagefire.source_host.tracking import DirtyTracker

#: A page that a socket still holds cannot be made part of a huge one (4 of 64 granules after a migration that failed in its stun):
#: a connection that was just closed lets go of it some moments later.
_GIVE_BACK_TIMES, _GIVE_BACK_PAUSE_S = 10, 0.05


class GuestTracing:
    """Blocking calls, for a thread. `tracker` is None before `begin` and where nothing is traced."""

    def __init__(self, guest: GuestProcess) -> None:
        self._guest = guest
        self.tracker: DirtyTracker | None = None
        #: A rolling install, to be done by the first round.
        self.rolling: Rolling | None = None
        self._installed: Installed | None = None
        self._interrupted = threading.Event()

    def interrupt(self) -> None:
        """Have an installation that is under way end soon, with Cancelled; in any thread."""
        self._interrupted.set()

    def begin(self, choice: TrackerChoice, options: InstallOptions) -> PageSet:
        """Protect all that holds data, or prepare to do it as the first round goes; gives the pages that have contents."""
        # Set before anything else is done: a cancellation meanwhile must not lose its descriptors.
        self.tracker = make_tracker(self._guest, choice, options.granularity)
        granules = self.tracker.register()
        if options.policy == "rolling":
            self.rolling = Rolling(self.tracker, options, granules)
            return data_among(self._guest.memory.fd, granules)
        self._installed = install(self.tracker, self._guest, options, granules, self._interrupted.is_set)
        return self.tracker.adopt(granules)

    @property
    def installed(self) -> Installed | None:
        """Tell how tracing was installed, once it is."""
        return self.rolling.installed if self.rolling is not None else self._installed

    def cost(self, requested_ns: int) -> TraceInstall | None:
        """Tell what tracing cost the guest, while its control block is there; None where nothing was traced."""
        if self.tracker is None or self.installed is None:
            return None
        cost = cost_of_install(self._guest.control, self.installed, self.tracker)
        if self.rolling is not None:
            # Between its first call and its last the first round was sent: gaps in that time are not the install's alone.
            cost.guest_gap_s = cost.vcpu_gap_s = None
        cost.at_s = (self.installed.began_ns - requested_ns) / 1e9
        return cost

    def end(self, *, guest_lives: bool) -> None:
        """Remove it; more than once does nothing."""
        if self.tracker is None:
            return
        self.tracker.remove()
        if guest_lives:
            # A guest that dies at this moment has no mappings to be given back.
            with contextlib.suppress(GuestError):
                for _ in range(_GIVE_BACK_TIMES):
                    if not self._guest.give_back_huge_mappings():
                        break
                    time.sleep(_GIVE_BACK_PAUSE_S)
