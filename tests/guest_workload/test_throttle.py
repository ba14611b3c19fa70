"""The throttle word: how much of its time a vCPU loses by it, and that it loses nothing else."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest

from pagefire.guest_workload.control_block import THROTTLE_PERIOD_NS, now_ns
from tests.guest_workload.conftest import MachineMaker
from tests.guest_workload.machine import Machine

SECOND_NS = 1_000_000_000
#: As long as any test lasts.
LONG_NS = 600 * SECOND_NS


def throttle(guest: Machine, *shares: float, for_ns: int = LONG_NS) -> None:
    """Have each vCPU sleep a share of its time."""
    asleep_ns = (np.array(shares) * THROTTLE_PERIOD_NS).astype(np.uint64)
    guest.control.throttle(np.minimum(asleep_ns, np.uint64(THROTTLE_PERIOD_NS - 1)), now_ns() + for_ns)


def run(guest: Machine, seconds: float) -> tuple[float, float]:
    """Let a guest run; gives its commits per second, and the share of that time that vCPU 0 slept for its throttle."""
    commits, slept_ns, began_ns = guest.control.commits(), int(guest.control.slept_ns()[0]), now_ns()
    guest.run_for(seconds)
    took_ns = now_ns() - began_ns
    return (guest.control.commits() - commits) / took_ns * SECOND_NS, (
        int(guest.control.slept_ns()[0]) - slept_ns
    ) / took_ns


def cpu_s(guest: Machine) -> float:
    """CPU time that vCPU 0 has had."""
    ident = guest.threads[0].ident
    assert ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


@pytest.mark.parametrize("interval_ns", [0, 100_000, 2_000_000])
def test_a_vcpu_loses_about_what_is_asked(machine: MachineMaker, interval_ns: int) -> None:
    """As fast as it can, or paced: of what it could do without a throttle, a quarter is left of three quarters.

    What it could do is its pace, or what it does in a second of CPU time: of one that waits for a CPU anyway, a throttle takes less
    than it asks, because a vCPU that has slept is given the CPU sooner.
    """
    guest = machine("random", 1, interval_ns=interval_ns)
    run(guest, 0.05)
    ratios: list[float] = []
    shares: list[float] = []
    # One that wakes and then waits for a CPU has slept for longer and done less: no more is taken than was asked is seen where none
    # of the turns' time went to others.
    while len(ratios) < 7 or (len(ratios) < 70 and not (max(ratios) > 0.02 and min(shares) < 0.85)):
        throttle(guest, 0.75)
        slowed_per_s, share = run(guest, 0.06)
        guest.control.lift_throttle()
        had_s, commits = cpu_s(guest), guest.control.commits()
        _, none = run(guest, 0.06)
        assert none == 0
        free_per_s = (
            SECOND_NS / interval_ns if interval_ns else (guest.control.commits() - commits) / (cpu_s(guest) - had_s)
        )
        ratios.append(slowed_per_s / free_per_s)
        shares.append(share)
    assert statistics.median(ratios) < 0.45
    assert statistics.median(shares) > 0.6
    assert max(ratios) > 0.02
    assert min(shares) < 0.85


def test_each_vcpu_has_its_own(machine: MachineMaker) -> None:
    guest = machine("random", 3, interval_ns=200_000)
    throttle(guest, 0, 0.9, 0)
    guest.run_for(0.3)
    slept_ns = guest.control.slept_ns()
    assert slept_ns[[0, 2]].tolist() == [0, 0]
    assert slept_ns[1] > 0
    first, slowed, last = guest.control.commits_by_vcpu().tolist()
    assert 0 < slowed < min(first, last) / 2


def test_no_throttle_stops_a_vcpu(machine: MachineMaker) -> None:
    guest = machine("random", 1)
    throttle(guest, 1.0)
    guest.run_for(0.3)
    # A transaction, then a period's sleep: nothing that is owed lets it sleep twice.
    slept_ns, commits = int(guest.control.slept_ns()[0]), guest.control.commits()
    assert commits > 5
    assert 0 < slept_ns // commits < 3 * THROTTLE_PERIOD_NS


def test_a_pause_does_not_wait_for_a_throttled_sleep(machine: MachineMaker) -> None:
    guest = machine("random", 2, interval_ns=1_000_000)
    took_ns: dict[float, list[int]] = {0.0: [], 0.99: []}
    for turn in range(60):
        share = (0.0, 0.99)[turn % 2]
        throttle(guest, share, share)
        guest.control.resume()
        time.sleep(0.012 + turn % 7 / 1000)
        asked_ns = now_ns()
        guest.pause()
        took_ns[share].append(now_ns() - asked_ns)
    # Nearly always both sleep when they are asked: one that slept on would take half a period on average, the later of two more.
    assert statistics.median(took_ns[0.99]) < statistics.median(took_ns[0.0]) + THROTTLE_PERIOD_NS / 4


def test_a_throttle_that_nobody_renews_ends(machine: MachineMaker) -> None:
    guest = machine("random", 2, interval_ns=200_000)
    throttle(guest, 0.9, 0.9, for_ns=SECOND_NS // 10)
    guest.run_for(0.2)
    slept_ns = guest.control.slept_ns()
    assert (slept_ns > 0).all()
    # One that was asleep when its time came has slept to the end of that.
    assert (slept_ns < SECOND_NS // 10 + 3 * THROTTLE_PERIOD_NS).all()
    guest.run_for(0.1)
    assert guest.control.slept_ns().tolist() == slept_ns.tolist()


def test_a_lifted_throttle_costs_a_vcpu_its_present_sleep_at_most(machine: MachineMaker) -> None:
    guest = machine("random", 2, interval_ns=200_000)
    throttle(guest, 0.99, 0.99)
    guest.control.resume()
    time.sleep(0.05)
    guest.control.lift_throttle()
    guest.control.resume()  # rings: who sleeps looks again
    deadline = time.monotonic() + 10
    commits = guest.control.commits()
    while guest.control.commits() < commits + 200:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    slept_ns = guest.control.slept_ns()
    time.sleep(0.05)
    assert guest.control.slept_ns().tolist() == slept_ns.tolist()
    guest.pause()


def test_a_throttled_guest_ends_as_one_that_was_not(machine: MachineMaker) -> None:
    slowed, free = machine("phased", 2), machine("phased", 2)
    throttle(slowed, 0.5, 0.8)
    for guest in (slowed, free):
        guest.run_to(200_000)
    assert slowed.control.slept_ns().all()
    assert slowed.state() == free.state()
    assert slowed.check().problems == ()
