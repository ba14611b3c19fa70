"""oltp: a bank in the manner of TPC-B, one in each vCPU's partition, whose books must balance at any pause.

A transaction changes one account, its teller's and its branch's balance by the same amount, inserts a history row, and writes a
record into a write-ahead log first and the committed sequence number last. Rows are 128 bytes, half of them blank as in the
benchmark, so this guest compresses; records are 64 bytes.

Invariant, whenever the guest is parked: the balances of accounts, tellers and branches have one sum, the one in register 4; the
log holds every sequence number up to the committed one that fits into it, once, with its checksum; and the committed one is
register 0. So a lost, repeated or torn transaction is found by reading this guest's memory alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import PAGE_WORDS, Layout
from pagefire.guest_workload.workload import Bytes, Check, Words, Workload, transaction

ROW_WORDS = 16
RECORD_WORDS = 8
BALANCE = 1
ACCOUNTS_PER_BRANCH = 100_000
TELLERS_PER_BRANCH = 10
BOOKS = 4

_ROW, _RECORD, _BALANCE = np.uint64(ROW_WORDS), np.uint64(RECORD_WORDS), np.uint64(BALANCE)
_TELLERS_PER_BRANCH = np.uint64(TELLERS_PER_BRANCH)
_LARGEST_DELTA = np.uint64(99_999)


@dataclass(frozen=True, slots=True)
class Bank:
    """How many of each table a working set holds, and at which word each begins. Word 0 is the committed sequence number."""

    branches: int
    tellers: int
    accounts: int
    history_rows: int
    log_records: int
    branches_at: int
    tellers_at: int
    accounts_at: int
    history_at: int
    log_at: int

    @classmethod
    def within(cls, pages: int) -> Bank:
        """Divide a working set: an eighth for the log, an eighth for the history, the rest for the balances."""
        ring_pages = max(1, pages // 8)
        table_pages = pages - 1 - 2 * ring_pages
        rows_per_page = PAGE_WORDS // ROW_WORDS
        branches = max(1, table_pages * rows_per_page // ACCOUNTS_PER_BRANCH)
        branch_pages = -(-branches // rows_per_page)
        teller_pages = -(-branches * TELLERS_PER_BRANCH // rows_per_page)
        account_pages = table_pages - branch_pages - teller_pages
        at = [PAGE_WORDS]
        for table in (branch_pages, teller_pages, account_pages, ring_pages):
            at.append(at[-1] + table * PAGE_WORDS)
        ring = ring_pages * PAGE_WORDS // RECORD_WORDS
        return cls(branches, branches * TELLERS_PER_BRANCH, account_pages * rows_per_page, ring, ring, *at)

    def table(self, words: Words, at: int, rows: int) -> Words:
        """View one table as [rows, 16]."""
        return words[at : at + rows * ROW_WORDS].reshape(rows, ROW_WORDS)


@njit("uint64(uint64, uint64, uint64, uint64, uint64)", nogil=True, cache=True)
def _checksum(sequence, account, teller, branch, delta):  # type: ignore[no-untyped-def]
    return fill.mix(sequence ^ fill.mix(account ^ fill.mix(teller ^ fill.mix(branch ^ fill.mix(delta)))))


@njit("void(uint64[::1], uint64, uint64, uint64, uint64, uint64, uint64)", nogil=True, cache=True)
def _write_record(memory, at, sequence, account, teller, branch, delta):  # type: ignore[no-untyped-def]
    memory[at] = sequence
    memory[at + np.uint64(1)] = account
    memory[at + np.uint64(2)] = teller
    memory[at + np.uint64(3)] = branch
    memory[at + np.uint64(4)] = delta
    memory[at + np.uint64(5)] = np.uint64(0)
    memory[at + np.uint64(6)] = np.uint64(0)
    memory[at + np.uint64(7)] = _checksum(sequence, account, teller, branch, delta)


@transaction
def _step(memory, registers, bank):  # type: ignore[no-untyped-def]
    sequence = registers[0] + np.uint64(1)
    account = fill.below(fill.draw(registers), np.uint64(bank[2]))
    random = fill.draw(registers)
    teller = fill.below(random, np.uint64(bank[1]))
    branch = teller // _TELLERS_PER_BRANCH
    delta = (random & np.uint64(0xFFFF_FFFF)) % (_LARGEST_DELTA + _LARGEST_DELTA + np.uint64(1)) - _LARGEST_DELTA
    log_at = np.uint64(bank[9]) + sequence % np.uint64(bank[4]) * _RECORD
    _write_record(memory, log_at, sequence, account, teller, branch, delta)
    memory[np.uint64(bank[7]) + account * _ROW + _BALANCE] += delta
    memory[np.uint64(bank[6]) + teller * _ROW + _BALANCE] += delta
    memory[np.uint64(bank[5]) + branch * _ROW + _BALANCE] += delta
    history_at = np.uint64(bank[8]) + sequence % np.uint64(bank[3]) * _RECORD
    _write_record(memory, history_at, sequence, account, teller, branch, delta)
    registers[BOOKS] += delta
    memory[0] = sequence


@njit("uint64(uint64[::1], uint64, uint64)", nogil=True, cache=True)
def _first_bad_record(ring, records, committed):  # type: ignore[no-untyped-def]
    """Find the oldest sequence number that is not in its place with its checksum; 0: all are."""
    first = np.uint64(1)
    if committed > records:
        first = committed - records + np.uint64(1)
    for sequence in range(first, committed + np.uint64(1)):
        at = sequence % records * _RECORD
        expected = _checksum(
            ring[at], ring[at + np.uint64(1)], ring[at + np.uint64(2)], ring[at + np.uint64(3)], ring[at + np.uint64(4)]
        )
        if ring[at] != sequence or ring[at + np.uint64(7)] != expected:
            return sequence
    return np.uint64(0)


class Oltp(Workload):
    name = "oltp"
    description = "a bank after TPC-B with a write-ahead log; its books are checked wherever it stops"
    step = _step
    least_pages = 8

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        bank = Bank.within(layout.working_set_pages)
        return np.array([getattr(bank, field) for field in Bank.__slots__], np.int64)

    def fill(self, memory: Bytes, layout: Layout, vcpu: int, seed: int) -> None:
        super().fill(memory, layout, vcpu, seed)
        bank, words = Bank.within(layout.working_set_pages), layout.working_set(memory, vcpu)
        for at, rows in (
            (bank.branches_at, bank.branches),
            (bank.tellers_at, bank.tellers),
            (bank.accounts_at, bank.accounts),
        ):
            table = bank.table(words, at, rows)
            table[:, 0] = np.arange(rows)
            table[:, BALANCE] = 0
            table[:, ROW_WORDS // 2 :] = 0
        words[:PAGE_WORDS] = 0

    def check(self, memory: Bytes, layout: Layout, registers: Words) -> Check:
        bank, committed = Bank.within(layout.working_set_pages), 0
        problems = []
        for vcpu in range(layout.vcpus):
            words = layout.working_set(memory, vcpu)
            sequence, count, books = int(words[0]), int(registers[vcpu, 0]), int(registers[vcpu, BOOKS].view(np.int64))
            committed += sequence
            if sequence != count:
                problems.append(f"vCPU {vcpu}: the bank committed {sequence}, its register counts {count}")
            for table, at, rows in (
                ("branch", bank.branches_at, bank.branches),
                ("teller", bank.tellers_at, bank.tellers),
                ("account", bank.accounts_at, bank.accounts),
            ):
                total = int(bank.table(words, at, rows)[:, BALANCE].sum().view(np.int64))
                if total != books:
                    problems.append(f"vCPU {vcpu}: the {table} balances add up to {total}, the books to {books}")
            for ring, at, records in (
                ("log", bank.log_at, bank.log_records),
                ("history", bank.history_at, bank.history_rows),
            ):
                bad = int(
                    _first_bad_record(words[at : at + records * RECORD_WORDS], np.uint64(records), np.uint64(sequence))
                )
                if bad:
                    problems.append(f"vCPU {vcpu}: the {ring} has no good record of transaction {bad} (of {sequence})")
        invariant = (
            "balances of accounts, tellers and branches agree; log and history reach the committed number without gap"
        )
        return Check(invariant, committed, tuple(problems))
