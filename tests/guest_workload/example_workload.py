"""A workload of one's own: a counter table, as docs/own-workload.md shows it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.fill import below, draw
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import Bytes, Check, Words, Workload, transaction


@transaction
def step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    """Add one to a random word of the working set."""
    memory[below(draw(registers), np.uint64(parameters[0]))] += np.uint64(1)


class Counters(Workload):
    name = "counters"
    description = "adds one to a random counter"
    step = step

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        return np.array([layout.working_set_pages * 512], np.int64)

    def fill(self, memory: Bytes, layout: Layout, vcpu: int, seed: int) -> None:
        layout.working_set(memory, vcpu)[:] = 0

    def check(self, memory: Bytes, layout: Layout, registers: Words) -> Check:
        found = [int(layout.working_set(memory, vcpu).sum()) for vcpu in range(layout.vcpus)]
        problems = tuple(
            f"vCPU {vcpu}: its counters add up to {total}, it did {int(registers[vcpu, 0])} transactions"
            for vcpu, total in enumerate(found)
            if total != registers[vcpu, 0]
        )
        return Check("the sum of all counters", sum(found), problems)
