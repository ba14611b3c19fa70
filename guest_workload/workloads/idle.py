"""idle: a guest that writes nothing and commits 100 times a second, so that its stun can be seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import transaction
from pagefire.guest_workload.workloads.page_store import PageStore


@transaction
def _step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    pass


class Idle(PageStore):
    name = "idle"
    description = "one commit per 10 ms on each vCPU, no page is ever written"
    step = _step
    interval_ns = 10_000_000
    stores_number = False

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        return np.zeros(1, np.int64)
