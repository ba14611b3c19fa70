"""What a workload is: one native step, its parameters, what memory holds first, and how to tell that memory is right.

A step is one transaction of one vCPU. It sees the words of its own partition, its 16 registers and its parameters, and nothing
else; with no clock in it, a guest that has done N transactions on each vCPU is the same guest bit for bit, however often it was
paused or moved. A step runs without the GIL and must not allocate or print.

Registers: 0 counts transactions (the loop does it, after the step), 1 is the random number generator, the rest are the step's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from numba import njit, types

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import PAGE_WORDS, Layout
from pagefire.protocol.errors import UsageError

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

_WORDS = types.Array(types.uint64, 1, "C")
_PARAMETERS = types.Array(types.int64, 1, "C")
#: Every step has this signature, so one vCPU loop serves all (it calls the step by address) and is compiled once.
STEP_SIGNATURE = types.void(_WORDS, _WORDS, _PARAMETERS)


def transaction(step: Callable[..., None]) -> Any:
    """Compile `step(memory, registers, parameters)`; use it as a decorator on a module's function.

    `memory` is uint64[:] of the vCPU's partition, `registers` uint64[:16], `parameters` int64[:]. Mind that Numba makes a float of
    uint64 with a signed number: wrap constants in np.uint64.
    """
    return njit(STEP_SIGNATURE, nogil=True, cache=True, error_model="numpy")(step)


@dataclass(frozen=True, slots=True)
class Check:
    """What a check of a parked guest found.

    `invariant` names what was checked. `committed` is the sum over vCPUs of the transactions that guest memory itself knows to be
    committed; a host compares it with the commits it counted, to find lost or repeated ones. No problems: `problems` is empty.
    `counted` is what else it counted, by name, for the report.
    """

    invariant: str
    committed: int
    problems: tuple[str, ...] = ()
    counted: dict[str, int] = field(default_factory=dict)


class Workload(ABC):
    """One kind of guest. Subclasses have no state but what `attach` makes: everything follows from the layout."""

    name: ClassVar[str]
    description: ClassVar[str]
    #: Whether memory follows, byte for byte, from the seed and the number of transactions; one that is not says why in its module.
    deterministic: ClassVar[bool] = True
    #: Whether each vCPU serves a client who waits for its transactions: then the vCPU notes how long each of them took.
    serves_clients: ClassVar[bool] = False
    #: The compiled step; see `transaction`.
    step: ClassVar[Any]
    #: Pace of a vCPU when the person asked for no rate: nanoseconds from one transaction to the next, 0 for as fast as it can.
    interval_ns: ClassVar[int] = 0
    #: The smallest working set of one vCPU.
    least_pages: ClassVar[int] = 1

    def attach(self, memory: Bytes, layout: Layout) -> None:  # noqa: B027 (nothing is what most have)
        """Make what belongs to the process and not to the guest, before all else; most workloads have nothing of that kind.

        Called once on every host, while pages may still be missing: it must not look at memory, which stays mapped where it is.
        """

    @abstractmethod
    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        """Give what the step is told; computed anew on every host. A step may keep there what is not to travel."""

    def require(self, layout: Layout) -> None:
        """Raise UsageError where this workload cannot run in `layout`."""
        if layout.working_set_pages < self.least_pages:
            raise UsageError(
                f"the workload {self.name} cannot run in a working set of {layout.working_set_bytes} bytes",
                f"it needs {self.least_pages} pages for each of its {layout.vcpus} vCPUs",
                "raise --working-set or lower --vcpus",
            )

    def fill(self, memory: Bytes, layout: Layout, vcpu: int, seed: int) -> None:
        """Give the resident pages of a new guest's vCPU their content; by default incompressible, all different."""
        partition = layout.partition(memory, vcpu)[: layout.resident_pages * PAGE_WORDS]
        fill.fill_pages(partition, np.uint64(seed), np.uint64(vcpu * layout.partition_bytes // (PAGE_WORDS * 8)))

    def first_registers(self, memory: Bytes, layout: Layout, vcpu: int, seed: int) -> Words:
        """Give a new guest's vCPU its registers, after `fill`; by default a random number generator of its own."""
        registers = np.zeros(16, np.uint64)
        registers[1] = fill.mix(np.uint64(seed)) ^ fill.mix(np.uint64(vcpu + 1))
        return registers

    def check(self, memory: Bytes, layout: Layout, registers: Words) -> Check:
        """Look for lost, stale or torn pages in a parked guest whose every page is here; `registers` is [vcpus, 16]."""
        return Check("no invariant", int(registers[:, 0].sum()))
