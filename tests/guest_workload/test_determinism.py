"""After N transactions a guest is the same bit for bit, whatever happened on the way."""

from __future__ import annotations

import random

import pytest

from pagefire.guest_workload.registry import BUILT_IN, workload_named
from tests.guest_workload.conftest import MachineMaker

TRANSACTIONS = 20_000
#: A database whose connections come in between each other is not among them: `test_sqlite` has what holds of it.
DETERMINISTIC = [name for name in BUILT_IN if workload_named(name).deterministic]


@pytest.mark.parametrize("vcpus", [1, 2, 8])
@pytest.mark.parametrize("workload", DETERMINISTIC)
def test_pauses_and_moves_leave_no_trace(machine: MachineMaker, workload: str, vcpus: int) -> None:
    undisturbed = machine(workload, vcpus)
    undisturbed.run_to(TRANSACTIONS)

    paused = machine(workload, vcpus)
    pauses = random.Random(vcpus)
    for _ in range(3):
        paused.control.stop_at = TRANSACTIONS
        paused.run_for(pauses.random() * 0.002)
    moved = machine(workload, vcpus, other=paused)
    moved.run_to(TRANSACTIONS)

    assert moved.state() == undisturbed.state()
    assert moved.check() == undisturbed.check()
    assert moved.check().problems == ()
    assert moved.check().committed == vcpus * TRANSACTIONS


def test_another_seed_is_another_guest(machine: MachineMaker) -> None:
    assert machine("random", 1, seed=1).state() != machine("random", 1, seed=2).state()


def test_each_vcpu_counts(machine: MachineMaker) -> None:
    guest = machine("random", 2)
    guest.run_to(10)
    before = guest.state()
    guest.run_to(11)
    assert guest.state() != before
