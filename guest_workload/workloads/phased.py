"""phased: a guest whose working set moves on and that frees what it leaves, as a program with phases does.

Stores are random within a window, an eighth of the working set; after EIGHT x its pages transactions the window jumps to the next
eighth. In the first transactions after the jump the pages of the old window are made zero, one a transaction: pages that become
zero during a migration must overwrite the destination's older copy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import transaction
from pagefire.guest_workload.workloads.page_store import (
    LINE_WORDS,
    PAGE_LINES,
    PAGE_WORDS,
    PageStore,
    store_line,
    zero_page,
)

EIGHT = np.uint64(8)


@transaction
def _step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    window_pages = np.uint64(parameters[0])
    phase = registers[0] // (EIGHT * window_pages)
    turn = registers[0] % (EIGHT * window_pages)
    if phase > np.uint64(0) and turn < window_pages:
        zero_page(memory, registers, (phase - np.uint64(1)) % EIGHT * window_pages + turn)
    random = fill.draw(registers)
    page = phase % EIGHT * window_pages + fill.below(random, window_pages)
    store_line(memory, registers, page * PAGE_WORDS + random % PAGE_LINES * LINE_WORDS, random)


class Phased(PageStore):
    name = "phased"
    description = "random stores within a window that moves over the working set; pages that it leaves become zero"
    step = _step
    least_pages = int(EIGHT)

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        return np.array([layout.working_set_pages // int(EIGHT)], np.int64)
