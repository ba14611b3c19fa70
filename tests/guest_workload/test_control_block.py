"""The control block as bytes, and what is refused."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from pagefire.guest_workload import control_block as layout
from pagefire.guest_workload.control_block import ControlBlock, RunState, VcpuState
from pagefire.guest_workload.linux import futex, memfd
from pagefire.protocol.errors import GuestError, UsageError
from pagefire.protocol.ownership import Owner


def test_fields_lie_where_they_are_documented() -> None:
    control = ControlBlock.create(3)
    control.owner = Owner.RELINQUISHED
    control.session = bytes(range(16))
    control.stop_at = 77
    control.interval_ns = 1234
    control.throttle(np.array([0, 6, 7], np.uint64), 5)
    control.registers[2, 15] = 99
    raw = os.pread(control.fd, 1 << 23, 0)
    assert len(raw) == 4096 + 3 * (4096 + 32_768 * 16 + 65_536 * 16)

    def u32(at: int) -> int:
        return int.from_bytes(raw[at : at + 4], "little")

    def u64(at: int) -> int:
        return int.from_bytes(raw[at : at + 8], "little")

    assert raw[:8] == b"PAGEFIRE"
    assert (u32(8), u32(12)) == (4, 3)
    assert (u32(64), u32(68)) == (RunState.PAUSE, 0)
    assert u32(72) == 2  # two changes rang the doorbell
    assert u32(128) == 2
    assert raw[144:160] == bytes(range(16))
    assert (u64(192), u64(200), u64(208)) == (77, 1234, 5)
    assert u64(4096 + 2 * layout.BLOCK_BYTES + 15 * 8) == 99
    assert [u64(4096 + vcpu * layout.BLOCK_BYTES + 192) for vcpu in range(3)] == [0, 6, 7]
    control.close()


def test_the_park_word_is_one_aligned_word() -> None:
    assert layout.AT_RUN_STATE % 8 == 0
    assert layout.AT_PARKED == layout.AT_RUN_STATE + 4


def test_a_second_mapping_sees_the_same() -> None:
    control = ControlBlock.create(2)
    observer = ControlBlock.attach(os.dup(control.fd), writable=False)
    control.registers[1, 3] = 5
    resumed_ns = control.resume()
    assert observer.vcpus == 2
    assert observer.run_state is RunState.RUN
    assert (observer.epoch, observer.resumed_at_ns) == (1, resumed_ns)
    assert observer.registers[1, 3] == 5
    assert observer.states() == [VcpuState.STARTING] * 2
    with pytest.raises(ValueError, match="read-only"):
        observer.registers[0, 0] = 1
    observer.close()
    control.close()
    control.close()


def test_a_new_block_costs_little() -> None:
    control = ControlBlock.create(256)
    assert os.fstat(control.fd).st_blocks * 512 < 1 << 20
    control.close()


def test_registers_travel() -> None:
    here, there = ControlBlock.create(2), ControlBlock.create(2)
    here.registers[:] = np.arange(32).reshape(2, 16)
    there.install_registers(here.checkpoint_registers())
    assert (there.registers == here.registers).all()
    with pytest.raises(ValueError, match="256 bytes"):
        there.install_registers(bytes(255))
    here.close()
    there.close()


def test_a_throttle_under_which_a_vcpu_never_runs_is_refused() -> None:
    control = ControlBlock.create(2)
    for impossible in ([0, layout.THROTTLE_PERIOD_NS], [0], [0, 0, 0]):
        with pytest.raises(ValueError, match="2 vCPUs"):
            control.throttle(np.array(impossible, np.uint64), 1 << 60)
    assert control.throttled_until_ns == 0
    control.throttle(np.array([0, layout.THROTTLE_PERIOD_NS - 1], np.uint64), 1 << 60)
    assert control.throttled_until_ns == 1 << 60
    control.lift_throttle()
    assert control.throttled_until_ns == 0
    control.close()


@pytest.mark.parametrize("vcpus", [0, 257])
def test_an_impossible_number_of_vcpus_is_refused(vcpus: int) -> None:
    with pytest.raises(UsageError):
        ControlBlock.create(vcpus)


@pytest.mark.parametrize(
    ("at", "patch", "why"),
    [(0, b"X", "magic"), (8, b"\x09", "version 9"), (8, b"\x02", "version 2"), (12, b"\x07", "7 vCPUs")],
)
def test_what_is_no_control_block_is_refused(at: int, patch: bytes, why: str) -> None:
    control = ControlBlock.create(2)
    os.pwrite(control.fd, patch, at)
    with pytest.raises(GuestError, match=why):
        ControlBlock.attach(os.dup(control.fd))
    control.close()


def test_a_short_file_is_refused_and_closed() -> None:
    fd = memfd.create("short", 4096)
    with pytest.raises(GuestError, match="short"):
        ControlBlock.attach(fd)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)


def test_waiting_for_a_park_ends_with_the_last_one_or_the_time() -> None:
    control = ControlBlock.create(1)
    assert not control.wait_parked(0.01)

    def park() -> None:
        time.sleep(0.02)
        control._u32[layout.AT_PARKED // 4] = 1
        futex.wake(control.address + layout.AT_PARKED)

    thread = threading.Thread(target=park)
    thread.start()
    assert control.wait_parked(10)
    assert control.all_parked
    thread.join()
    control.close()


def test_a_resume_counts_the_vcpus_that_start_anew() -> None:
    control = ControlBlock.create(2)
    control._u32[layout.AT_STARTED // 4] = 2
    assert control.wait_started(0)
    control.resume()
    assert not control.wait_started(0.01)
    control.close()


def test_buckets_hold_what_the_ring_still_holds() -> None:
    control = ControlBlock.create(2)
    ten_ms = layout.BUCKET_NS
    newest = 5 * layout.RING_BUCKETS + 3
    for vcpu, commits in ((0, 4), (1, 6)):
        control._newest_buckets[vcpu] = newest
        slot = newest % layout.RING_BUCKETS * layout.SLOT_BYTES // 4
        control._ring[vcpu, slot : slot + 3] = commits, commits * 1000, commits * 100
    window = control.buckets((newest - 2) * ten_ms, (newest + 2) * ten_ms)
    assert window.tolist() == [0, 0, 10, 0]
    assert control.longest_gap_ns(newest * ten_ms, (newest + 1) * ten_ms) == 6000
    assert control.longest_gaps_ns(newest * ten_ms, (newest + 1) * ten_ms).tolist() == [4000, 6000]
    assert control.longest_guest_gap_ns(newest * ten_ms, (newest + 1) * ten_ms) == 600
    older = newest - layout.RING_BUCKETS
    assert control.buckets(older * ten_ms, (older + 1) * ten_ms).tolist() == [0]
    assert control.buckets(older * ten_ms, older * ten_ms).tolist() == []
    control.close()
