"""Which pages the vCPUs need first: found by short collections right before the guest is stopped.

A vCPU resumes in the middle of what it was doing, so its first steps touch the pages that its last steps wrote: its counters, the
tops of its tables, the page that its log has come to. In post-copy each of them is a demand fetch, one after another, and the
blackout lasts until the last of them is there. They are few and they can be told: a page that is written in every one of some
short windows, and the last page of a long run that one window wrote, since a sequential writer goes on from there. So they travel
with the switchover, beside the bitmap; everything else waits.
"""

from __future__ import annotations

import numpy as np

from pagefire.protocol.pages import PageSet

#: How many windows are looked at, and how long the guest runs on between two collections: some transactions of each vCPU.
WINDOWS = 4
WINDOW_S = 0.001
#: Pages that may travel during the stun because they were always written (512 KiB), and runs of one window whose ends may.
STEADY_PAGES, ENDS = 128, 16
#: What is a run. A pair is too often chance: of 500 scattered stores in 256 MiB four hit neighbours, and one page that goes during
#: the stun costs it a drain (half a millisecond).
RUN_PAGES = 3


class HotPages:
    """What the windows have told so far."""

    def __init__(self, *, enabled: bool = True) -> None:
        """Look at windows, unless what they tell is too coarse to be of use (`enabled` False): then nothing is hot."""
        self._enabled = enabled
        self._always: PageSet | None = None
        self._chosen = PageSet.empty()

    def note(self, window: PageSet) -> None:
        """Take in the pages that the next window wrote."""
        if not self._enabled:
            return
        self._always = window if self._always is None else self._always & window
        self._chosen = next(self._always.batches(STEADY_PAGES), self._always) | run_ends(window)

    def choose(self, last: PageSet) -> PageSet:
        """Give the hot pages, `last` being what was written between the last window and the stop.

        What is always written is not asked of that time: it may be so short that not every vCPU ran in it.
        """
        return self._chosen | run_ends(last) if self._enabled else PageSet.empty()


def run_ends(window: PageSet) -> PageSet:
    """Choose the last pages of the `ENDS` longest runs that a window wrote."""
    stops = window.stops[window.counts >= RUN_PAGES]
    if stops.size > ENDS:
        counts = window.counts[window.counts >= RUN_PAGES]
        stops = stops[np.argpartition(counts, -ENDS)[-ENDS:]]
    return PageSet.of_pages(stops - 1)
