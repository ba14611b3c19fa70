"""The workloads whose transaction is one store into one page: what they have in common.

A store replaces a 64-byte line by words that follow from the random number and the transaction's number, and register 4 follows
along as the sum of all words in the vCPU's working set. So the check is exact: one stale, lost or torn line anywhere in the
working set changes the sum, and nobody needs a second copy to find it.

Registers: 2 is the index of the first word last stored, 4 the sum.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import Bytes, Check, Words, Workload

PAGE_WORDS = np.uint64(512)
LINE_WORDS = np.uint64(8)
PAGE_LINES = np.uint64(64)
LAST_STORED, SUM = 2, 4
_ODD = np.uint64(0xD134_2543_DE82_EF95)


@njit("void(uint64[::1], uint64[::1], uint64, uint64)", nogil=True, cache=True)
def store_line(memory, registers, first_word, random):  # type: ignore[no-untyped-def]
    """Replace the 64-byte line at `first_word`; its first word becomes the number of this transaction."""
    difference = np.uint64(0)
    number = registers[0] + np.uint64(1)
    word = number
    for offset in range(8):
        at = first_word + np.uint64(offset)
        difference += word - memory[at]
        memory[at] = word
        word = (word ^ random) * _ODD
    registers[LAST_STORED] = first_word
    registers[SUM] += difference


@njit("void(uint64[::1], uint64[::1], uint64)", nogil=True, cache=True)
def zero_page(memory, registers, page):  # type: ignore[no-untyped-def]
    """Make a page zero, as a guest's kernel does with freed memory."""
    total = np.uint64(0)
    for at in range(page * PAGE_WORDS, (page + np.uint64(1)) * PAGE_WORDS):
        total += memory[at]
        memory[at] = np.uint64(0)
    registers[SUM] -= total


class PageStore(Workload):
    """A workload whose step keeps register 4 and, if it stores lines or words, register 2."""

    #: Whether every transaction stores its number at register 2.
    stores_number = True

    def first_registers(self, memory: Bytes, layout: Layout, vcpu: int, seed: int) -> Words:
        registers = super().first_registers(memory, layout, vcpu, seed)
        registers[SUM] = fill.sum_words(layout.working_set(memory, vcpu))
        return registers

    def check(self, memory: Bytes, layout: Layout, registers: Words) -> Check:
        problems = []
        for vcpu in range(layout.vcpus):
            words = layout.working_set(memory, vcpu)
            count, last_stored, total = (int(registers[vcpu, at]) for at in (0, LAST_STORED, SUM))
            found = fill.words_total(words)
            if found != total:
                problems.append(
                    f"vCPU {vcpu}: the words of its working set add up to {found:#x}, its register says {total:#x}"
                )
            if not self.stores_number or not count:
                continue
            if last_stored >= words.size:
                problems.append(f"vCPU {vcpu}: register {LAST_STORED} points outside its working set")
            elif int(words[last_stored]) != count:
                problems.append(
                    f"vCPU {vcpu}: transaction {count} is not where it was stored, but {int(words[last_stored])}"
                )
        invariant = "the sum of all words in each working set, and where the last transaction stored its number"
        return Check(invariant, int(registers[:, 0].sum()), tuple(problems))
