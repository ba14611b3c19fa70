"""Which pages hold data, asked of the memory file itself: a tracker that reads holes through a mapping would allocate them."""

from __future__ import annotations

import numpy as np

from pagefire.guest_workload.linux.memfd import data_extents
from pagefire.protocol.pages import PAGE_BYTES, PageSet


def data_among(memory_fd: int, ranges: PageSet) -> PageSet:
    """Find those pages of `ranges` that are no holes; two system calls a run and an extent."""
    found = [
        data_extents(memory_fd, start * PAGE_BYTES, stop * PAGE_BYTES)
        for start, stop in zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True)
    ]
    found = [extents for extents in found if extents]
    if not found:
        return PageSet.empty()
    return PageSet.of_runs(
        np.concatenate([extents.starts for extents in found]), np.concatenate([extents.stops for extents in found])
    )
