"""The vCPU loop and the park protocol, on real threads."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from pagefire.guest_workload.control_block import ANY_COMMIT_NS, BUCKET_NS, VcpuState, now_ns
from tests.guest_workload.conftest import MachineMaker


def pause_again_and_again(machine: MachineMaker, vcpus: int, times: int) -> None:
    """Pause right after a resume, while vCPUs are still leaving: "all parked" must never be said of one that will still run."""
    guest = machine("adversary", vcpus, resident_mib=1, working_set_kib=1024)
    pauses = random.Random(vcpus)
    for _ in range(times):
        guest.control.resume()
        if pauses.random() < 0.5:
            time.sleep(pauses.random() * 0.0005)
        guest.control.request_pause()
        deadline = time.monotonic() + 30
        while not guest.control.all_parked:
            assert time.monotonic() < deadline
        registers, commits = guest.control.checkpoint_registers(), guest.control.commits()
        memory = guest.memory.array[: 1 << 20].copy()
        assert guest.control.all_parked
        if pauses.random() < 0.1:
            time.sleep(0.001)
        assert guest.control.checkpoint_registers() == registers
        assert guest.control.commits() == commits == guest.control.transactions()
        assert np.array_equal(guest.memory.array[: 1 << 20], memory)
        assert guest.control.all_parked
    assert guest.control.epoch == times


@pytest.mark.parametrize("vcpus", [1, 2, 16])
def test_all_started_means_that_each_has_committed(machine: MachineMaker, vcpus: int) -> None:
    guest = machine("random", vcpus, interval_ns=1_000_000)
    for _ in range(30):
        guest.control.resume()
        assert guest.control.wait_started(30)
        assert guest.control.first_commits_ns().all()
        guest.pause()
    # One that finishes before its first transaction has not started.
    guest.control.stop_at = int(guest.control.registers[0, 0])
    guest.control.resume()
    assert not guest.control.wait_started(0.02)


@pytest.mark.parametrize("vcpus", [1, 2, 16, 64])
def test_all_parked_means_that_nothing_moves(machine: MachineMaker, vcpus: int) -> None:
    # 64 busy threads take their time to run again on two cores.
    pause_again_and_again(machine, vcpus, 60 if vcpus < 64 else 10)


@pytest.mark.soak
@pytest.mark.parametrize("vcpus", [1, 2, 16, 64])
def test_all_parked_means_that_nothing_moves_at_length(machine: MachineMaker, vcpus: int) -> None:
    pause_again_and_again(machine, vcpus, 2000)


def test_stop_at_finishes_and_goes_on_when_raised(machine: MachineMaker) -> None:
    guest = machine("random", 2)
    guest.run_to(1000)
    assert guest.control.registers[:, 0].tolist() == [1000, 1000]
    guest.control.resume()
    time.sleep(0.01)
    assert guest.control.states() == [VcpuState.FINISHED] * 2
    assert guest.control.all_parked  # finished ones count, even while the guest runs
    guest.control.stop_at = 1500
    deadline = time.monotonic() + 10
    while guest.control.commits() < 3000:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    guest.pause()
    assert guest.control.registers[:, 0].tolist() == [1500, 1500]
    guest.control.stop_at = 0
    guest.run_for(0.01)
    assert guest.control.transactions() > 3000


def test_a_pause_interrupts_a_paced_sleep(machine: MachineMaker) -> None:
    guest = machine("random", 4, interval_ns=3_600_000_000_000)
    guest.run_for(0.05)
    assert guest.control.commits() == 4  # the first is due at once
    guest.control.resume()
    time.sleep(0.05)
    assert guest.control.states() == [VcpuState.RUNNING] * 4
    asked = time.monotonic()
    guest.pause()
    assert time.monotonic() - asked < 5


def test_a_new_rate_holds_at_once(machine: MachineMaker) -> None:
    guest = machine("random", 1, interval_ns=3_600_000_000_000)
    guest.control.resume()
    time.sleep(0.02)
    guest.control.interval_ns = 1_000_000
    time.sleep(0.5)
    guest.pause()
    assert 50 < guest.control.commits() <= 520


def test_what_was_missed_in_a_pause_is_not_made_up_for(machine: MachineMaker) -> None:
    guest = machine("random", 1, interval_ns=1_000_000)
    guest.run_for(0.1)
    time.sleep(0.5)
    before = guest.control.commits()
    guest.run_for(0.05)
    assert guest.control.commits() - before < 300


def test_commits_stamps_and_buckets_agree(machine: MachineMaker) -> None:
    guest = machine("random", 3, interval_ns=100_000)
    began_ns = now_ns()
    resumed_ns = guest.control.resume()
    time.sleep(0.2)
    guest.pause()
    time.sleep(0.05)
    guest.run_for(0.1)
    ended_ns = now_ns()
    control = guest.control
    assert control.commits() == control.transactions() == int(control.commits_by_vcpu().sum())
    assert int(control.buckets(began_ns, ended_ns).sum()) == control.commits()
    assert (control.first_commits_ns() > control.resumed_at_ns).all()
    assert control.resumed_at_ns > resumed_ns > began_ns
    assert control.last_commit_ns() == control.last_commits_ns().max() <= ended_ns
    # The pause is a gap of every vCPU, counted where it ended.
    assert (control.longest_gaps_ns(began_ns, ended_ns) >= 50_000_000).all()
    assert control.longest_gap_ns(began_ns, ended_ns) == control.longest_gaps_ns(began_ns, ended_ns).max()
    assert len(control.buckets(began_ns, began_ns // BUCKET_NS * BUCKET_NS + 7 * BUCKET_NS)) == 7


def test_first_commits_are_of_the_last_resume(machine: MachineMaker) -> None:
    guest = machine("random", 2)
    while not guest.control.commits_by_vcpu().all():  # beside other work a vCPU may get no turn in one go
        guest.run_for(0.01)
    guest.control.stop_at = 1
    resumed_ns = guest.control.resume()
    time.sleep(0.02)
    assert guest.control.first_commits_ns().tolist() == [0, 0]  # both are past transaction 1: nobody may run
    guest.control.stop_at = 0
    deadline_s = time.monotonic() + 10.0
    while not guest.control.first_commits_ns().all() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert (guest.control.first_commits_ns() >= resumed_ns).all()


def test_a_pause_is_a_gap_of_the_whole_guest(machine: MachineMaker) -> None:
    guest = machine("random", 3)
    guest.run_for(0.03)
    began_ns = now_ns()
    time.sleep(0.03)
    guest.run_for(0.03)
    gap_ns = guest.control.longest_guest_gap_ns(began_ns, now_ns() + BUCKET_NS)
    assert 30_000_000 <= gap_ns < now_ns() - began_ns + 30_000_000


def test_a_gap_of_the_guest_is_a_gap_of_each_vcpu(machine: MachineMaker) -> None:
    guest = machine("random", 3, interval_ns=3_000_000)
    guest.control.resume()
    time.sleep(0.1)
    began_ns = now_ns()
    time.sleep(0.3)
    until_ns = now_ns()
    time.sleep(0.1)
    guest.pause()
    gap_ns = guest.control.longest_guest_gap_ns(began_ns, until_ns)
    assert 0 < gap_ns <= guest.control.longest_gaps_ns(began_ns, until_ns + BUCKET_NS).min() + ANY_COMMIT_NS
