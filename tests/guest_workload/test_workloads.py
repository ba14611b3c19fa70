"""What each workload writes, and that its check finds what it is there to find."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest

from pagefire.guest_workload.layout import PAGE_WORDS
from pagefire.guest_workload.linux import memfd
from pagefire.guest_workload.workloads.oltp import BALANCE, RECORD_WORDS, ROW_WORDS, Bank
from pagefire.protocol.errors import UsageError
from tests.guest_workload.conftest import MachineMaker
from tests.guest_workload.machine import Machine

PAGE_STORES = ["sequential", "random", "hotspot", "phased", "adversary"]


def pages_of_vcpu(guest: Machine, vcpu: int) -> npt.NDArray[np.uint64]:
    return guest.layout.working_set(guest.memory.array, vcpu).reshape(-1, PAGE_WORDS)


def written(guest: Machine, transactions: int) -> npt.NDArray[np.bool_]:
    """Run, and say which pages of vCPU 0's working set changed."""
    before = pages_of_vcpu(guest, 0).copy()
    guest.run_to(transactions)
    return used(pages_of_vcpu(guest, 0) ^ before)


def used(pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Say which pages are not zero."""
    found: npt.NDArray[np.bool_] = np.bitwise_or.reduce(pages, axis=1) != 0
    return found


def test_only_resident_pages_exist(machine: MachineMaker) -> None:
    guest = machine("random", 2, resident_mib=4, working_set_kib=2048)
    guest.run_to(5000)
    extents = memfd.data_extents(guest.memory.fd)
    assert extents.pages == 1024
    assert extents.starts.tolist() == [0, guest.layout.partition_bytes // 4096]


def test_the_fill_is_incompressible_and_no_page_is_like_another(machine: MachineMaker) -> None:
    guest = machine("idle", 2, working_set_kib=4096)
    words = np.concatenate([pages_of_vcpu(guest, 0).ravel(), pages_of_vcpu(guest, 1).ravel()])
    assert np.unique(words).size == words.size


def test_idle_writes_nothing(machine: MachineMaker) -> None:
    assert not written(machine("idle", 1), 100).any()


@pytest.mark.parametrize("workload", ["sequential", "adversary"])
def test_the_next_page_each_time(machine: MachineMaker, workload: str) -> None:
    guest = machine(workload, 1)
    assert written(guest, 100).sum() == 100
    assert written(guest, 512).sum() == 412


def test_random_reaches_every_page_alike(machine: MachineMaker) -> None:
    share = written(machine("random", 1), 512).mean()
    assert 0.55 < share < 0.72  # 1 - 1/e


def test_hotspot_prefers_few_pages(machine: MachineMaker) -> None:
    hotspot = machine("hotspot", 1)
    pages = written(hotspot, 512)
    assert 0.15 < pages.mean() < 0.45
    assert written(hotspot, 100_000).mean() > 0.95  # the scatter is one to one: every page has its turn


def test_phased_leaves_zero_pages(machine: MachineMaker) -> None:
    guest = machine("phased", 1)
    window = 512 // 8
    guest.run_to(8 * window)
    assert used(pages_of_vcpu(guest, 0)).all()
    guest.run_to(9 * window)
    zero = ~used(pages_of_vcpu(guest, 0))
    assert zero[:window].all()
    assert not zero[window:].any()
    guest.run_to(8 * window * 20)
    assert guest.check().problems == ()


@pytest.mark.parametrize("workload", PAGE_STORES)
def test_a_stale_page_is_found(machine: MachineMaker, workload: str) -> None:
    guest = machine(workload, 2)
    before = pages_of_vcpu(guest, 1).copy()
    guest.run_to(300)
    assert guest.check().problems == ()
    stale = np.flatnonzero(used(pages_of_vcpu(guest, 1) ^ before))[0]
    pages_of_vcpu(guest, 1)[stale] = before[stale]
    assert any("vCPU 1" in problem for problem in guest.check().problems)


@pytest.mark.parametrize("workload", PAGE_STORES)
def test_a_lost_transaction_is_found(machine: MachineMaker, workload: str) -> None:
    guest = machine(workload, 1)
    guest.run_to(300)
    guest.control.registers[0, 0] += 1
    assert guest.check().problems


def test_the_bank_balances_at_every_pause(machine: MachineMaker) -> None:
    guest = machine("oltp", 3)
    pauses = random.Random(7)
    for _ in range(30):
        guest.run_for(pauses.random() * 0.003)
        check = guest.check()
        assert check.problems == ()
        assert check.committed == guest.control.commits()


@pytest.mark.parametrize("table", ["branches", "tellers", "accounts"])
def test_a_corrupted_balance_is_found(machine: MachineMaker, table: str) -> None:
    guest = machine("oltp", 2)
    guest.run_to(1000)
    bank = Bank.within(guest.layout.working_set_pages)
    words = guest.layout.working_set(guest.memory.array, 1)
    row = getattr(bank, table) - 1
    words[getattr(bank, f"{table}_at") + row * ROW_WORDS + BALANCE] += np.uint64(1)
    (problem,) = guest.check().problems
    assert problem.startswith("vCPU 1")
    assert "balances" in problem


@pytest.mark.parametrize(("ring", "named"), [("log_at", "log"), ("history_at", "history")])
def test_a_lost_record_is_found(machine: MachineMaker, ring: str, named: str) -> None:
    guest = machine("oltp", 1)
    guest.run_to(1000)
    bank = Bank.within(guest.layout.working_set_pages)
    at = getattr(bank, ring) + 700 * RECORD_WORDS
    guest.layout.working_set(guest.memory.array, 0)[at : at + RECORD_WORDS] = 0
    (problem,) = guest.check().problems
    assert f"the {named} has no good record of transaction 700" in problem


def test_the_log_is_checked_as_far_back_as_it_reaches(machine: MachineMaker) -> None:
    guest = machine("oltp", 1)
    records = Bank.within(guest.layout.working_set_pages).log_records
    guest.run_to(records * 2 + 17)
    assert guest.check().problems == ()
    guest.layout.working_set(guest.memory.array, 0)[0] += np.uint64(1)
    assert any("committed" in problem for problem in guest.check().problems)


def test_rows_and_rings_do_not_overlap() -> None:
    for pages in (8, 9, 100, 4096, 300_000):
        bank = Bank.within(pages)
        ends = [
            (bank.branches_at + bank.branches * ROW_WORDS, bank.tellers_at),
            (bank.tellers_at + bank.tellers * ROW_WORDS, bank.accounts_at),
            (bank.accounts_at + bank.accounts * ROW_WORDS, bank.history_at),
            (bank.history_at + bank.history_rows * RECORD_WORDS, bank.log_at),
            (bank.log_at + bank.log_records * RECORD_WORDS, pages * PAGE_WORDS),
        ]
        assert all(end <= limit for end, limit in ends)
        assert bank.accounts > 0


def test_too_small_a_bank_is_refused(machine: MachineMaker) -> None:
    with pytest.raises(UsageError, match="--working-set"):
        machine("oltp", 64, working_set_kib=1024)
