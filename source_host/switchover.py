"""What a switchover measured: the instants of the stun on the source's clock, and the breakdown that follows from them.

Every part of the breakdown is the difference of two neighbouring instants, so that the parts add up to the downtime by
construction; only the two that cross the link are put together from both hosts' clocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pagefire.protocol.bitmap_raw import raw_bytes
from pagefire.protocol.messages import Ready, Resumed
from pagefire.protocol.pages import PageSet
from pagefire.protocol.report import Bitmap, Clock, DowntimeBreakdown


@dataclass(slots=True)
class Stun:
    """Filled in while the guest stands still. Instants in ns of CLOCK_MONOTONIC here; 0: not reached."""

    pause_ns: int = 0
    parked_ns: int = 0
    scanned_ns: int = 0
    coded_ns: int = 0
    sent_ns: int = 0
    ready_ns: int = 0
    verified_ns: int = 0
    handover_ns: int = 0
    ready: Ready | None = None
    resumed: Resumed | None = None
    bitmap: Bitmap | None = None
    remaining: PageSet = field(default_factory=PageSet.empty)
    #: Of `remaining`, what the source has swapped out, and the size of its bitmap.
    swapped: PageSet = field(default_factory=PageSet.empty)
    swap_bitmap_bytes: int = 0
    #: Each vCPU's last commit here, and how many it has committed since the guest was born.
    last_commits_ns: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    commits: list[int] = field(default_factory=list)

    def mark(self, instant: str) -> int:
        """Note that an instant (a field's name without `_ns`) is now."""
        now = time.monotonic_ns()
        setattr(self, f"{instant}_ns", now)
        return now

    def note_bitmap(self, total_pages: int, stun_bytes: int, ahead_bytes: int, ahead_pages: int) -> None:
        """Note what the bitmap took, of which `stun_bytes` were sent while the guest stood still; READY has come."""
        assert self.ready is not None
        self.bitmap = Bitmap(
            raw_bytes=raw_bytes(total_pages),
            compacted_bytes=ahead_bytes + stun_bytes,
            pages=self.remaining.pages,
            encode_s=(self.coded_ns - self.scanned_ns) / 1e9,
            decode_s=self.ready.decode_s,
            ahead_bytes=ahead_bytes,
            ahead_pages=ahead_pages,
        )

    def downtime_s(self, clock: Clock) -> float:
        """Give the time from the pause request to the instant at which the destination let its vCPUs run."""
        assert self.resumed is not None
        return (self.resumed.resumed_ns - self.pause_ns) / 1e9 - clock.offset_s

    def breakdown(self, clock: Clock) -> DowntimeBreakdown | None:
        """Divide the downtime; see `DowntimeBreakdown` for what each part counts.

        None where nobody knows when HANDOVER came: a daemon that took the place of one that died finds in the guest's control block
        when it was resumed, and no more.
        """
        assert self.ready is not None
        assert self.resumed is not None
        if not self.resumed.handover_received_ns:
            return None
        install_s, drain_s = self.ready.decode_s + self.ready.install_s, self.ready.drain_s
        to_ready_s = (self.ready_ns - self.sent_ns) / 1e9
        to_handover_s = (self.resumed.handover_received_ns - self.verified_ns) / 1e9 - clock.offset_s
        return DowntimeBreakdown(
            quiesce_s=(self.parked_ns - self.pause_ns) / 1e9,
            final_scan_s=(self.scanned_ns - self.parked_ns) / 1e9,
            bitmap_s=(self.coded_ns - self.scanned_ns) / 1e9,
            checkpoint_s=(self.sent_ns - self.coded_ns) / 1e9,
            drain_s=drain_s,
            transfer_s=to_ready_s - drain_s - install_s + to_handover_s,
            install_s=install_s,
            verify_s=(self.verified_ns - self.ready_ns) / 1e9,
            resume_s=(self.resumed.resumed_ns - self.resumed.handover_received_ns) / 1e9,
        )
