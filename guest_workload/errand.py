"""Errands: the host has vCPUs make a list of system calls, one claimed vCPU or all of them together.

What vMotion does with a trace install: the calls change the guest's own page tables, so they may be made by its own threads, on
the CPUs where its translations are cached. A claimed vCPU leaves its workload until the list is done and the others run on; all
together (only sensible while they are parked) take one call after another off the list.

The list and the descriptor reach the guest before anything stops (`prepare`): setting vCPUs to it is a store and a wake. While an
errand lasts the guest holds a copy of the descriptor. Of a userfaultfd no copy may outlive the host: the guest's server drops it
with the connection.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from pagefire.guest_workload import control_block as at
from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import futex, memfd
from pagefire.guest_workload.linux.calls import Calls
from pagefire.protocol.errors import GuestError
from pagefire.protocol.pages import PAGE_BYTES

_LOOK_S = 0.05


class Errand:
    """A prepared list. `do` may be called once."""

    def __init__(
        self, control: ControlBlock, calls: Calls, fd_there: int, table_address: int, alive: Callable[[], bool]
    ) -> None:
        """Take what the guest knows of it: the number of the descriptor there, and where the arguments lie."""
        self._control = control
        self._calls = calls
        self._fd, self._table = fd_there, table_address
        self._alive = alive

    def do(self, vcpu: int | None) -> None:
        """Let a vCPU (None: all of them) make the calls; returns when all are made. Raises OSError, GuestError if it dies."""
        control = self._control
        header = control.header
        u32, u64 = header.view("<u4"), header.view("<u8")
        u32[at.AT_ERRAND_FD // 4], u64[at.AT_ERRAND_REQUEST // 8] = self._fd, self._calls.request
        u64[at.AT_ERRAND_TABLE // 8], u64[at.AT_ERRAND_STRIDE // 8] = self._table, self._calls.arguments.shape[1]
        u32[at.AT_ERRAND_CALLS // 4] = len(self._calls)
        for word in (at.AT_ERRAND_NEXT, at.AT_ERRAND_DONE, at.AT_ERRAND_ERROR):
            u32[word // 4] = 0
        u32[at.AT_CLAIMED // 4] = at.EVERY_VCPU if vcpu is None else vcpu + 1
        control.ring_doorbell()
        try:
            while (done := int(u32[at.AT_ERRAND_DONE // 4])) != len(self._calls):
                futex.wait(control.address + at.AT_ERRAND_DONE, done, _LOOK_S)
                if not self._alive():
                    raise GuestError("the guest process ended", "in the middle of a trace install")
        finally:
            # Nobody begins from now on: the doorbell is a full barrier here, the count of workers one there. Whoever had begun
            # is waited for, because the next errand's words must not reach it.
            u32[at.AT_CLAIMED // 4] = 0
            control.ring_doorbell()
            while u32[at.AT_ERRAND_WORKERS // 4] and self._alive():
                time.sleep(0)
        if error := int(u32[at.AT_ERRAND_ERROR // 4]):
            raise self._calls.failed(error)


@contextlib.contextmanager
def prepared(guest: GuestProcess, calls: Calls) -> Iterator[Errand]:
    """Hand a list to the guest for as long as the context lasts. Raises GuestError, OSError."""
    size_bytes = -(-max(calls.arguments.size, 1) // PAGE_BYTES) * PAGE_BYTES
    table = memfd.Mapping(memfd.create("pagefire-errand", size_bytes))
    try:
        table.array[: calls.arguments.size] = calls.arguments.ravel()
        reply, _ = guest.request("take_errand", [calls.fd, table.fd])
        yield Errand(guest.control, calls, int(reply["fd"]), int(reply["address"]), lambda: guest.alive)
    finally:
        table.close()
        # A guest that is dead holds nothing any more.
        with contextlib.suppress(GuestError):
            guest.request("drop_errand")
