"""PAGEMAP_SCAN, each mask and flag against memory whose pages are known."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pagefire.guest_workload.linux import memfd, pagemap, userfaultfd
from pagefire.guest_workload.linux.pagemap import Category, Flag, Scanner
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from tests.support.kernel import need_pagemap_scan

pytestmark = pytest.mark.kernel

PAGES = 2 * GRANULE_PAGES


class Tracked:
    """Memory of this process under asynchronous write tracking."""

    def __init__(self) -> None:
        self.memory = memfd.Mapping(memfd.create("pagefire-scanned", PAGES * PAGE_BYTES))
        self.uffd = userfaultfd.open_uffd(userfaultfd.TRACK_ASYNC)
        userfaultfd.register(self.uffd, self.memory.address, self.memory.size_bytes, userfaultfd.Mode.WP)
        self.pagemap_fd = pagemap.open_pagemap(os.getpid())

    def store(self, *pages: int) -> None:
        self.memory.array[np.array(pages) * PAGE_BYTES] = 1

    def scan(self, regions_per_call: int = 4096, pages: range = range(PAGES), **masks: object) -> PageSet:
        start = self.memory.address + pages.start * PAGE_BYTES
        found = Scanner(self.pagemap_fd, regions_per_call).scan(
            start, self.memory.address + pages.stop * PAGE_BYTES, **masks  # type: ignore[arg-type]
        )  # fmt: skip
        numbers = ((found[:, :2] - np.uint64(self.memory.address)) // np.uint64(PAGE_BYTES)).astype(np.int64)
        return PageSet.of_runs(numbers[:, 0], numbers[:, 1])

    def close(self) -> None:
        os.close(self.uffd)
        os.close(self.pagemap_fd)
        self.memory.close()


@pytest.fixture
def tracked() -> Iterator[Tracked]:
    need_pagemap_scan()
    one = Tracked()
    yield one
    one.close()


WRITTEN = {"require": Category.WRITTEN, "give": Category.WRITTEN}


def pages(*numbers: int) -> PageSet:
    return PageSet.of_pages(list(numbers))


def test_present_pages_are_told_from_holes(tracked: Tracked) -> None:
    tracked.store(3, 4, 5, GRANULE_PAGES + 1)
    there = pages(3, 4, 5, GRANULE_PAGES + 1)
    assert tracked.scan(any_of=Category.PRESENT, give=Category.PRESENT) == there
    absent = tracked.scan(require=Category.PRESENT, inverted=Category.PRESENT, give=Category.PRESENT)
    assert absent & PageSet.span(0, GRANULE_PAGES) == PageSet.span(0, GRANULE_PAGES) - there


def test_a_scan_looks_before_it_protects(tracked: Tracked) -> None:
    tracked.store(*range(10))
    assert tracked.scan(**WRITTEN) & PageSet.span(0, 10) == PageSet.span(0, 10)
    assert tracked.scan(**WRITTEN) & PageSet.span(0, 10) == PageSet.span(0, 10)
    protect = {"flags": Flag.WP_MATCHING | Flag.CHECK_WPASYNC}
    assert tracked.scan(**WRITTEN, **protect) & PageSet.span(0, 10) == PageSet.span(0, 10)
    assert not tracked.scan(**WRITTEN)
    tracked.store(4)
    assert tracked.scan(**WRITTEN, **protect) == pages(4)
    assert not tracked.scan(**WRITTEN)


@pytest.mark.parametrize("regions_per_call", [1, 7, 4096])
def test_a_small_buffer_takes_more_calls_and_finds_the_same(tracked: Tracked, regions_per_call: int) -> None:
    protect = {"flags": Flag.WP_MATCHING | Flag.CHECK_WPASYNC}
    tracked.store(*range(PAGES))
    tracked.scan(**WRITTEN, **protect)
    written = [*range(0, 100, 2), *range(200, 300), PAGES - 1]
    tracked.store(*written)
    assert tracked.scan(regions_per_call, **WRITTEN, **protect) == pages(*written)
    assert not tracked.scan(regions_per_call, **WRITTEN)


@pytest.mark.parametrize("regions_per_call", [1, 3, 4096])
def test_many_ranges_give_what_each_of_them_gives(tracked: Tracked, regions_per_call: int) -> None:
    tracked.store(*range(0, PAGES, 3))
    there = {"any_of": Category.PRESENT, "give": Category.PRESENT}
    ranges = [(0, 10), (10, 10), (11, 50), (200, 201), (300, PAGES)]
    starts, ends = (
        [tracked.memory.address + edge * PAGE_BYTES for edge in edges] for edges in zip(*ranges, strict=True)
    )
    scanner = Scanner(tracked.pagemap_fd, regions_per_call)
    each = np.concatenate([scanner.scan(start, end, **there) for start, end in zip(starts, ends, strict=True)])
    assert each.size
    assert np.array_equal(scanner.scan_ranges(starts, ends, **there), each)
    assert not scanner.scan_ranges([], [], **there).size


def test_only_the_range_is_scanned(tracked: Tracked) -> None:
    tracked.store(*range(20))
    assert tracked.scan(pages=range(5, 9), any_of=Category.PRESENT, give=Category.PRESENT) == PageSet.span(5, 9)
    assert not tracked.scan(pages=range(7, 7), any_of=Category.PRESENT, give=Category.PRESENT)


def test_results_do_not_change_with_the_next_scan(tracked: Tracked) -> None:
    tracked.store(1)
    scanner = Scanner(tracked.pagemap_fd, 16)
    first_granule = tracked.memory.address, tracked.memory.address + GRANULE_PAGES * PAGE_BYTES
    first = scanner.scan(*first_granule, any_of=Category.PRESENT, give=Category.PRESENT)
    kept = first.copy()
    tracked.store(7)
    scanner.scan(*first_granule, any_of=Category.PRESENT, give=Category.PRESENT)
    assert np.array_equal(first, kept)


def test_memory_that_is_not_tracked_is_refused(tracked: Tracked) -> None:
    plain = memfd.Mapping(memfd.create("plain", PAGE_BYTES))
    with pytest.raises(PermissionError, match="PAGEMAP_SCAN"):
        Scanner(tracked.pagemap_fd, 16).scan(
            plain.address, plain.address + PAGE_BYTES, flags=Flag.WP_MATCHING | Flag.CHECK_WPASYNC, **WRITTEN
        )
    plain.close()


def test_an_address_that_is_no_page_is_refused(tracked: Tracked) -> None:
    with pytest.raises(OSError, match="PAGEMAP_SCAN: Invalid argument"):
        Scanner(tracked.pagemap_fd, 16).scan(tracked.memory.address + 1, tracked.memory.address + PAGE_BYTES, **WRITTEN)


def test_a_team_finds_what_one_scanner_finds_and_keeps_off_its_own_way(tracked: Tracked) -> None:
    tracked.store(7, GRANULE_PAGES + 9)
    cpus, start = os.sched_getaffinity(0), tracked.memory.address
    middle, end = start + GRANULE_PAGES * PAGE_BYTES, start + PAGES * PAGE_BYTES
    members = min(2, len(cpus))
    team = pagemap.ScanTeam(tracked.pagemap_fd, members)
    try:
        parts = [([start], [middle]), ([middle], [end])] if members > 1 else [([start, middle], [middle, end])]
        found = team.scan_ranges(parts, **WRITTEN)
        one = Scanner(tracked.pagemap_fd).scan_ranges([start, middle], [middle, end], **WRITTEN)
        assert sorted(found.tolist()) == sorted(one.tolist())
        helpers = [thread for thread in threading.enumerate() if thread.name.startswith("scan")]
        assert len(helpers) == members - 1
        for helper in helpers:
            assert helper.native_id is not None
            assert os.sched_getaffinity(helper.native_id) < cpus
    finally:
        team.close()
    assert os.sched_getaffinity(0) == cpus
