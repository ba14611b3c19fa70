"""Digests of what was sent: what counts as the same, what is forgotten, and what they take of memory."""

from __future__ import annotations

import numpy as np
import pytest

from pagefire.guest_workload.linux.memory_use import memory_use_bytes
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.source_host.sent_digests import Contents, SentDigests


def drawn(count: int, seed: int) -> Contents:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE_BYTES), np.uint8)


def same(digests: SentDigests, pages: PageSet, copies: Contents) -> list[int]:
    """Name the pages that are held with just these contents."""
    found, _ = digests.look(pages, digests.of(copies))
    return [int(page) for page in pages.page_numbers()[found]]


def test_only_the_very_same_contents_are_the_same() -> None:
    digests, pages, sent = SentDigests(1000), PageSet.of_runs([3, 500], [5, 503]), drawn(5, 1)
    assert same(digests, pages, sent) == []
    digests.hold(pages.page_numbers(), digests.of(sent))
    assert same(digests, pages, sent) == [3, 4, 500, 501, 502]
    for place in (0, 2047, PAGE_BYTES - 1):
        changed = sent.copy()
        changed[2, place] ^= 1
        assert same(digests, pages, changed) == [3, 4, 501, 502]
    # The same contents in another page are none of it.
    assert same(digests, pages, sent[::-1].copy()) == [500]
    assert same(digests, PageSet.span(503, 508), sent) == []


def test_nothing_is_the_same_as_what_is_not_known() -> None:
    """Not even a page whose digest would be the mark of an unknown one."""
    digests = SentDigests(10)
    found, known = digests.look(PageSet.span(0, 10), np.zeros((10, 2), np.uint64))
    assert (found.any(), known) == (False, 0)


def test_zero_pages_are_known_as_such() -> None:
    digests, zeros = SentDigests(100), np.zeros((1, PAGE_BYTES), np.uint8)
    digests.hold_zeros(PageSet.of_runs([10, 20], [12, 21]))
    assert digests.zero_there(PageSet.span(0, 100)) == PageSet.of_runs([10, 20], [12, 21])
    assert same(digests, PageSet.span(10, 11), zeros) == [10]
    digests.hold(np.array([11]), digests.of(drawn(1, 1)))
    assert digests.zero_there(PageSet.span(0, 100)) == PageSet.of_pages([10, 20])


def test_what_is_forgotten_is_not_known() -> None:
    digests, pages, sent = SentDigests(100), PageSet.span(0, 50), drawn(50, 1)
    digests.hold(pages.page_numbers(), digests.of(sent))
    digests.forget(PageSet.of_runs([0, 30], [10, 90]))
    assert same(digests, pages, sent) == list(range(10, 30))
    assert digests.look(pages, digests.of(sent))[1] == 20


def test_each_migration_digests_differently() -> None:
    """So that nobody can prepare pages that collide."""
    page = drawn(1, 1)
    assert not np.array_equal(SentDigests(1).of(page), SentDigests(1).of(page))


@pytest.mark.parametrize("every", [1, 4096])
def test_a_guest_of_six_tib_costs_what_it_has_of_contents(every: int) -> None:
    """In one place, and page by page all over it; to ask of pages that were never sent costs next to nothing."""
    digests = SentDigests((6 << 40) // PAGE_BYTES)
    numbers = np.arange(0, 4096 * every, every)
    sent = np.zeros((4096, 2), np.uint64) + np.uint64(7)
    before_bytes, _ = memory_use_bytes()
    for at in range(0, 1 << 28, 1 << 18):
        pages = PageSet.span(at, at + 1)
        digests.look(pages, sent[:1])
        digests.forget(pages)
    asked_bytes, _ = memory_use_bytes()
    digests.hold(numbers, sent)
    held_bytes, _ = memory_use_bytes()
    # The interpreter may take some for itself meanwhile.
    assert asked_bytes - before_bytes < 1 << 20
    assert held_bytes - asked_bytes < min(4096 * every * 16, 4096 * PAGE_BYTES) + (1 << 20)
