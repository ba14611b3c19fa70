"""A guest inside the test's own process: memory, control block and vCPU threads, without the process around them."""

from __future__ import annotations

import time

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.digest import memory_digest
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.linux import memfd
from pagefire.guest_workload.registry import workload_named
from pagefire.guest_workload.vcpu import start_vcpus
from pagefire.guest_workload.workload import Check

PATIENCE_S = 30.0


class Machine:
    """Filled and parked when made; `other` makes one that goes on from where another stands, as a migration does."""

    def __init__(
        self,
        workload: str,
        vcpus: int,
        *,
        other: Machine | None = None,
        seed: int = 1,
        memory_mib: int = 64,
        resident_mib: int = 4,
        working_set_kib: int = 2048,
        interval_ns: int = 0,
    ) -> None:
        self.workload = workload_named(workload)
        self.layout = Layout(memory_mib << 20, resident_mib << 20, working_set_kib << 10, vcpus, seed)
        self.workload.require(self.layout)
        self.memory = memfd.Mapping(memfd.create("machine", self.layout.memory_bytes))
        self.control = ControlBlock.create(vcpus)
        self.control.interval_ns = interval_ns
        self.workload.attach(self.memory.array, self.layout)
        if other is None:
            for vcpu in range(vcpus):
                self.workload.fill(self.memory.array, self.layout, vcpu, seed)
                self.control.registers[vcpu] = self.workload.first_registers(self.memory.array, self.layout, vcpu, seed)
        else:
            extents = memfd.data_extents(other.memory.fd)
            for start, stop in zip(extents.starts * 4096, extents.stops * 4096, strict=True):
                self.memory.array[start:stop] = other.memory.array[start:stop]
            self.control.install_registers(other.control.checkpoint_registers())
        self.threads = start_vcpus(self.workload, self.memory.array, self.layout, self.control)
        assert self.control.wait_parked(PATIENCE_S)

    def pause(self) -> None:
        self.control.request_pause()
        assert self.control.wait_parked(PATIENCE_S)

    def run_for(self, seconds: float) -> None:
        self.control.resume()
        time.sleep(seconds)
        self.pause()

    def run_to(self, transactions: int) -> None:
        """Run every vCPU to its transaction of that number, and pause."""
        self.control.stop_at = transactions
        self.control.resume()
        deadline = time.monotonic() + PATIENCE_S
        while not self.control.all_finished():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        self.pause()

    def state(self) -> tuple[str, bytes]:
        return memory_digest(self.memory), self.control.checkpoint_registers()

    def check(self) -> Check:
        return self.workload.check(self.memory.array, self.layout, self.control.registers)

    def close(self) -> None:
        self.control.request_exit()
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        self.control.close()
        self.memory.close()
