"""adversary: dirties pages as fast as a vCPU can, one word a page; no link converges on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import transaction
from pagefire.guest_workload.workloads.page_store import LAST_STORED, PAGE_WORDS, SUM, PageStore


@transaction
def _step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    at = registers[LAST_STORED] + PAGE_WORDS
    if at >= np.uint64(parameters[0]) * PAGE_WORDS:
        at = np.uint64(0)
    number = registers[0] + np.uint64(1)
    registers[SUM] += number - memory[at]
    memory[at] = number
    registers[LAST_STORED] = at


class Adversary(PageStore):
    name = "adversary"
    description = "one word into the next page, as fast as the vCPU can: page fires per second at their most"
    step = _step

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        return np.array([layout.working_set_pages], np.int64)
