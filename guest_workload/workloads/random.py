"""random: every page of the working set equally often, in no order; the usual worst case for a dirty bitmap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import transaction
from pagefire.guest_workload.workloads.page_store import LINE_WORDS, PAGE_LINES, PAGE_WORDS, PageStore, store_line


@transaction
def _step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    random = fill.draw(registers)
    page = fill.below(random, np.uint64(parameters[0]))
    store_line(memory, registers, page * PAGE_WORDS + random % PAGE_LINES * LINE_WORDS, random)


class Random(PageStore):
    name = "random"
    description = "one 64-byte store into a random page of the working set"
    step = _step

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        return np.array([layout.working_set_pages], np.int64)
