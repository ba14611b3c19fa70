"""sequential: the next page each time, over and over; a round of pre-copy is never ahead of it for long."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import transaction
from pagefire.guest_workload.workloads.page_store import LINE_WORDS, PAGE_LINES, PAGE_WORDS, PageStore, store_line


@transaction
def _step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    pages = np.uint64(parameters[0])
    page = registers[0] % pages
    line = registers[0] // pages % PAGE_LINES
    store_line(memory, registers, page * PAGE_WORDS + line * LINE_WORDS, fill.draw(registers))


class Sequential(PageStore):
    name = "sequential"
    description = "one 64-byte store into the next page of the working set, round and round"
    step = _step

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        return np.array([layout.working_set_pages], np.int64)
