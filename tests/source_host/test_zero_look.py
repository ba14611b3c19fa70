"""Zero pages among those to be sent: all of them where it is cheap to look, runs of them where it is not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.source_host.zero_look import EVERY_PAGES, LARGE_PAGES, ZeroLook
from tests.conftest import MemoryMaker
from tests.support.memory import fresh

PAGES = 4 * LARGE_PAGES


def filled(memory: memfd.Mapping, zero: PageSet) -> memfd.Mapping:
    """Give every page contents of its own but for these."""
    words = memory.array.view(np.uint64).reshape(-1, PAGE_BYTES // 8)
    words[:, 0] = np.arange(memory.pages) + 1
    words[zero.page_numbers(), 0] = 0
    return memory


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, LARGE_PAGES - 2)), st.integers(0, LARGE_PAGES - 2))
def test_every_zero_page_of_a_small_batch_is_found(zero: set[int], first: int) -> None:
    memory = filled(fresh(LARGE_PAGES), PageSet.of_pages(list(zero)))
    look = ZeroLook(memory)
    for _ in range(2):
        batch = PageSet.span(first, LARGE_PAGES - 1)
        assert look.among(batch) == PageSet.of_pages([page for page in zero if page >= first])
    memory.close()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2 * LARGE_PAGES), st.integers(EVERY_PAGES, 2 * LARGE_PAGES), st.integers(1, 3))
def test_a_run_of_zero_pages_is_found_whole_wherever_it_lies(first: int, length: int, apart: int) -> None:
    run = PageSet.span(first, min(first + length, PAGES))
    memory = filled(fresh(PAGES), run)
    look = ZeroLook(memory)
    batch = PageSet.of_pages(np.arange(0, PAGES, apart))
    found = PageSet.empty()
    for part in batch.batches(2048):
        found |= look.among(part)
    # A run that covers no window of its batch is too short there to be worth its search; what is found is zero.
    assert not found - (run & batch)
    if (run & batch).pages >= 2 * EVERY_PAGES:
        assert found == run & batch
    memory.close()


def test_a_word_behind_the_first_makes_a_page_no_zero_page(make_memory: MemoryMaker) -> None:
    memory = filled(make_memory(PAGES), PageSet.span(0, PAGES))
    memory.array[5 * PAGE_BYTES - 1] = 1
    assert ZeroLook(memory).among(PageSet.span(0, 2048)) == PageSet.span(0, 2048) - PageSet.span(4, 5)


def test_pages_of_data_are_not_touched_but_for_a_sixteenth(make_memory: MemoryMaker) -> None:
    # What a fresh mapping of the same memory has mapped afterwards is what was looked at.
    memory = filled(make_memory(PAGES), PageSet.empty())
    other = memfd.Mapping(os.dup(memory.fd), writable=False)
    look = ZeroLook(other)
    look.among(PageSet.span(0, 2048))
    before = resident_pages(other)
    assert before >= 2048
    assert not look.among(PageSet.span(2048, 4096))
    assert resident_pages(other) - before <= 2048 // 8
    other.close()


def resident_pages(mapping: memfd.Mapping) -> int:
    """Read from /proc/self/smaps how much of a mapping this process has mapped."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="ascii").splitlines())
    for line in lines:
        if line.startswith(f"{mapping.address:x}-"):
            return next(int(one.split()[1]) for one in lines if one.startswith("Rss:")) * 1024 // PAGE_BYTES
    raise AssertionError("not mapped")
