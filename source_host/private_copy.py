"""A private copy of pages to which the guest may store: for what is computed from their bytes and is then sent as it was read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.protocol.pages import PageSet

#: Runs of fewer pages on average are copied by one call for all: 0.5 us a page instead of 0.9 where each lies alone, 0.6 in runs of
#: 16; long ones singly, 0.33 instead of 0.46 in runs of 256 (one thread, memory that is not in the CPU's cache).
_SHORT_PAGES = 32


def copy_into(room: npt.NDArray[np.uint8], memory: npt.NDArray[np.uint8], pages: PageSet) -> npt.NDArray[np.uint8]:
    """Copy `pages` of the memory, [pages, 4096], one behind the other, to where no guest stores; gives that part of the room."""
    if pages.pages < _SHORT_PAGES * len(pages):
        # Any mode but the default one, which copies once more.
        return np.take(memory, pages.page_numbers(), axis=0, out=room[: pages.pages], mode="clip")
    at = 0
    for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
        room[at : at + stop - start] = memory[start:stop]
        at += stop - start
    return room[:at]
