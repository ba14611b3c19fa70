"""Versions against a dictionary that has room for all of them, and who keeps his room when there is too little."""

from __future__ import annotations

import threading

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.source_host import sent_versions
from pagefire.source_host.sent_digests import Contents
from pagefire.source_host.sent_versions import SentVersions

PAGES = 64


def contents_of(pages: PageSet, version: int) -> Contents:
    """Make contents that tell page and version."""
    numbers = pages.page_numbers().astype(np.uint64)
    words = np.empty((numbers.size, PAGE_BYTES // 8), np.uint64)
    words[:] = (numbers * np.uint64(1000) + np.uint64(version))[:, None]
    return words.view(np.uint8)


def send(versions: SentVersions, pages: PageSet, version: int) -> PageSet:
    """Exchange these pages' contents; gives those of which there was a version, after a look at what they differ by."""
    differences = np.zeros((pages.pages, PAGE_BYTES), np.uint8)
    known = versions.exchange(pages, contents_of(pages, version), differences)
    return PageSet.of_pages(pages.page_numbers()[known])


spans = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 20))
steps = st.lists(
    st.tuples(st.lists(spans, min_size=1, max_size=4), st.lists(spans, max_size=2), st.booleans()),
    min_size=1,
    max_size=8,
)


def union(parts: list[tuple[int, int]]) -> PageSet:
    pages = PageSet.empty()
    for start, count in parts:
        pages |= PageSet.span(start, min(start + count, PAGES))
    return pages


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(1, PAGES))
def test_what_is_known_differs_by_what_was_changed(
    script: list[tuple[list[tuple[int, int]], list[tuple[int, int]], bool]], slots: int
) -> None:
    versions = SentVersions(PAGES, slots * PAGE_BYTES)
    sent: dict[int, int] = {}
    for version, (parts, otherwise, told) in enumerate(script, 1):
        due = union(parts)
        held_before = versions.held_among(PageSet.span(0, PAGES))
        versions.begin_round(due if told else None)
        for batch in due.batches(7):
            differences = np.zeros((batch.pages, PAGE_BYTES), np.uint8)
            copies = contents_of(batch, version)
            known = versions.exchange(batch, copies, differences)
            for at, page in enumerate(batch.page_numbers()[known].tolist()):
                assert np.array_equal(
                    differences[at], contents_of(PageSet.span(page, page + 1), sent[page])[0] ^ copies[known][at]
                )
            # Nobody whose turn is still to come, or has been, loses his room.
            assert not (held_before & due) - versions.held_among(due)
            for page in batch.page_numbers().tolist():
                sent[page] = version
        held = versions.held_among(PageSet.span(0, PAGES))
        assert held.pages <= slots
        assert all(page in sent for page in held.page_numbers().tolist())
        if told:
            # There is no room left over while a page of the round has none.
            assert held.pages == slots or not due - held
        gone = union(otherwise)
        versions.forget(gone)
        assert not versions.held_among(gone)
        for page in gone.page_numbers().tolist():
            sent.pop(page, None)


def test_who_was_sent_last_keeps_his_room() -> None:
    versions = SentVersions(PAGES, 30 * PAGE_BYTES)
    for start in (0, 10, 20):
        versions.begin_round(PageSet.span(start, start + 10))
        send(versions, PageSet.span(start, start + 10), 1)
    versions.begin_round(PageSet.span(0, 5))
    assert send(versions, PageSet.span(0, 5), 2) == PageSet.span(0, 5)
    # 5 to 9 were sent first, and not again; then comes the second round's.
    versions.begin_round(PageSet.span(40, 48))
    send(versions, PageSet.span(40, 48), 3)
    assert versions.held_among(PageSet.span(0, PAGES)) == PageSet.of_runs([0, 13, 40], [5, 30, 48])
    assert versions.turned_away_pages == 0


def test_a_working_set_that_is_larger_keeps_the_share_that_there_is_room_for() -> None:
    """Sent over and over in the same order, which least recently used alone would answer with no hit at all."""
    versions = SentVersions(PAGES, 24 * PAGE_BYTES)
    everything = PageSet.span(0, 48)
    hits = []
    for version in range(1, 6):
        versions.begin_round(everything)
        hits.append(sum(send(versions, batch, version).pages for batch in everything.batches(5)))
    assert hits == [0, 24, 24, 24, 24]
    assert versions.turned_away_pages == 5 * 24


def test_without_knowing_what_is_due_nobody_loses_his_room() -> None:
    versions = SentVersions(PAGES, 10 * PAGE_BYTES)
    for _ in range(2):
        versions.begin_round()
        send(versions, PageSet.span(0, 10), 1)
        send(versions, PageSet.span(20, 30), 1)
        assert versions.held_among(PageSet.span(0, PAGES)) == PageSet.span(0, 10)


def test_memory_is_taken_as_pages_are_sent() -> None:
    versions = SentVersions(1 << 30, 1 << 40)
    assert versions.used_bytes == 0
    versions.begin_round()
    send(versions, PageSet.span(1 << 29, (1 << 29) + 3), 1)
    assert versions.used_bytes == 3 * PAGE_BYTES


def test_memory_is_given_back() -> None:
    pages = PageSet.span(0, 8192)
    versions = SentVersions(pages.pages, pages.size_bytes)
    before = psutil.Process().memory_info().rss
    send(versions, pages, 1)
    assert psutil.Process().memory_info().rss > before + pages.size_bytes // 2
    for _ in range(2):
        versions.free()
    assert psutil.Process().memory_info().rss < before + pages.size_bytes // 2
    assert versions.used_bytes == pages.size_bytes


def test_a_guest_that_is_smaller_than_the_room_takes_no_more_than_it_has() -> None:
    assert SentVersions(PAGES, 1 << 40).slots == PAGES


def test_a_host_that_has_not_so_much_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(count: int) -> Contents:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(sent_versions, "sparse_zeros", refuse)
    with pytest.raises(
        PagefireError, match=r"there is no room for the last versions of sent pages.*smaller --delta-cache"
    ):
        SentVersions(PAGES, 1 << 20)


def test_threads_share_it() -> None:
    """Each sends pages of its own, and the room of one is what another is given: nobody meets a version that is not his page's."""
    pages, rounds, threads = 4096, 12, 3
    versions = SentVersions(pages, 700 * PAGE_BYTES)
    wrong: list[int] = []
    known_pages = [0] * threads

    def work(index: int, part: PageSet, version: int) -> None:
        differences = np.zeros((64, PAGE_BYTES), np.uint8)
        for batch in part.batches(64):
            copies = contents_of(batch, version)
            known = versions.exchange(batch, copies, differences)
            before = contents_of(batch, version)[known] ^ differences[: int(known.sum())]
            told = before.view(np.uint64)[:, 0]
            known_pages[index] += told.size
            wrong.extend(told[told // 1000 != batch.page_numbers()[known].astype(np.uint64)].tolist())

    rng = np.random.default_rng(1)
    for version in range(1, rounds + 1):
        due = PageSet.of_pages(rng.integers(0, pages, 900))
        versions.begin_round(due)
        parts = [PageSet.of_pages(due.page_numbers()[index::threads]) for index in range(threads)]
        workers = [threading.Thread(target=work, args=(index, part, version)) for index, part in enumerate(parts)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong
    assert all(known_pages)
