"""A private copy of pages to which the guest may store: for what is computed from their bytes and is then sent as it was read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.protocol.pages import PageSet


def copy_into(room: npt.NDArray[np.uint8], memory: npt.NDArray[np.uint8], pages: PageSet) -> npt.NDArray[np.uint8]:
    """Copy `pages` of the memory, [pages, 4096], one behind the other, to where no guest stores; gives that part of the room."""
    at = 0
    for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
        room[at : at + stop - start] = memory[start:stop]
        at += stop - start
    return room[:at]
