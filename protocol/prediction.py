"""What `pagefire predict` tells of a migration that has not begun: every figure, where it comes from, and what it leaves out.

Units and names are those of report.py, so that a prediction can be laid beside the report of what then happens. Measured here are
the guest's writes, the path (real pages, landed at the destination) and the setup; what follows from them is computed. None means
"does not apply to this mode". Fields are added, never renamed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class DirtyPoint:
    """`pages` different pages were written in the first `after_s` seconds of the watch; `granule_pages` have contents in the 2 MiB
    granules that these lie in."""

    after_s: float
    pages: int
    granule_pages: int


@dataclass(slots=True)
class PathSample:
    """One sample of what the path carries: real pages of the guest, until the destination had them in its memory.

    `pages` were sent within `duration_s`, `zero_pages` of them without payload; payload_bytes and wire_bytes as in `Round`.
    """

    pages: int
    zero_pages: int
    payload_bytes: int
    wire_bytes: int
    duration_s: float

    @property
    def pages_per_s(self) -> float:
        """Pages a second, compressed and zero ones among them."""
        return self.pages / max(self.duration_s, 1e-9)

    @property
    def wire_Bps(self) -> float:
        """Bytes a second on the wire."""
        return self.wire_bytes / max(self.duration_s, 1e-9)


@dataclass(slots=True)
class PredictedRound:
    """One pre-copy round as `Round` has them: `pages` are sent, `skipped_pages` are written before their turn and are not."""

    round: int
    pages: int
    skipped_pages: int
    duration_s: float
    dirty_pages_after: int
    dirty_pages_per_s: float


@dataclass(slots=True)
class Prediction:
    """Every figure of one prediction.

    outcome: completed, or cancelled: the migration would give up, and the guest stay. converges: whether the rounds come to where
    the downtime limit holds, by themselves or by auto-converge (None: a mode without rounds). verdict: all of it in a sentence.
    stop_reason: why pre-copy would end, in the words of the migration itself. caveats: what the figures do not know, in sentences.

    total_s: migrate request to full residency, as in the report (cancelled: until it gives up); it is the sum of setup_s (measured:
    until tracing is installed), precopy_s (first round until the pause), downtime_s (pause until the vCPUs run at the destination)
    and resident_after_s (from there to the last page). stun_s: the guest's blackout, which ends a little later, with its first
    commit. stun_pages: sent while the guest stands still. remaining_pages: moved after the resume.

    resident_pages: guest pages that have contents; swapped_pages of them are swapped out, and go last where the mode allows it.
    dirty: what was seen in `watched_s` seconds of the guest's writes; longer times are extrapolated from it. slowdown: by how much
    longer the guest took for the same pages while pages were being sent (1: no longer). first: a sample of pages that the
    destination did not have, as in round 1. again: of pages that were written since, as in later rounds (None: too few were).
    empty_round_s: how long a round without a page takes, which every round does at least. predicting_s: how long all this took.
    """

    mode: str
    destination: str
    outcome: str
    verdict: str
    converges: bool | None
    stop_reason: str
    total_s: float
    setup_s: float
    precopy_s: float
    downtime_s: float | None
    stun_s: float | None
    resident_after_s: float | None
    stun_pages: int
    remaining_pages: int
    rounds: list[PredictedRound]
    resident_pages: int
    swapped_pages: int
    first: PathSample
    again: PathSample | None
    empty_round_s: float
    watched_s: float = 0.0
    dirty: list[DirtyPoint] = field(default_factory=list)
    slowdown: float = 1.0
    caveats: list[str] = field(default_factory=list)
    tracker: str = "none"
    predicting_s: float = 0.0
    guest: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Give the JSON form: nested dictionaries of numbers, strings, lists and None."""
        return asdict(self)
