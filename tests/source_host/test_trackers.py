"""What every dirty tracker promises, on real memory of another process."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator

import pytest

from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.errors import FeatureMissing
from pagefire.protocol.pages import GRANULE_PAGES, PageSet
from pagefire.source_host import tracker_choice, tracking
from pagefire.source_host.page_fire_tracker import PageFireTracker
from pagefire.source_host.pagemap_tracker import PagemapTracker
from pagefire.source_host.tracker_choice import choose_tracker
from pagefire.source_host.tracking import Collected, DirtyTracker
from tests.conftest import MemoryMaker
from tests.support.kernel import need_pagemap_scan, need_userfaultfd
from tests.support.memory_user import MemoryUser
from tests.support.tracing import install_at_once

pytestmark = pytest.mark.kernel

#: Eight granules and a part of one.
PAGES = 8 * GRANULE_PAGES + 77
TRACKERS = ["pagemap-scan", "page-fire"]
TrackerMaker = Callable[[memfd.Mapping], DirtyTracker]


@pytest.fixture(params=TRACKERS)
def make_tracker(request: pytest.FixtureRequest, user: MemoryUser) -> Iterator[TrackerMaker]:
    """Make a tracker, not yet installed, of memory that the other process then maps."""
    made: list[DirtyTracker] = []

    def make(memory: memfd.Mapping) -> DirtyTracker:
        user.map(memory)
        made.append(tracker_of(request.param, user, memory))
        return made[-1]

    yield make
    for tracker in made:
        tracker.remove()


def tracker_of(name: str, user: MemoryUser, memory: memfd.Mapping) -> DirtyTracker:
    if name == "pagemap-scan":
        need_pagemap_scan()
        uffd = user.open_uffd(userfaultfd.TRACK_ASYNC)
        return PagemapTracker(uffd, user.pid, user.address, memory.fd, memory.size_bytes)
    need_userfaultfd(userfaultfd.TRACK_SYNC)
    return PageFireTracker(user.open_uffd(userfaultfd.TRACK_SYNC), user.address, memory.fd, memory.size_bytes)


def pages(*numbers: int) -> PageSet:
    return PageSet.of_pages(list(numbers))


def assert_clean(tracker: DirtyTracker) -> None:
    assert tracker.collect_and_clear() == tracking.NOTHING


def test_install_gives_what_there_is(make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser) -> None:
    memory = make_memory(PAGES)
    tracker = make_tracker(memory)
    there = [0, 1, 5, GRANULE_PAGES - 1, GRANULE_PAGES, 3 * GRANULE_PAGES, PAGES - 1]
    user.store(there, 1)
    assert install_at_once(tracker) == pages(*there)
    assert memfd.data_extents(memory.fd) == pages(*there)
    assert_clean(tracker)


def test_written_pages_are_collected_once(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store(range(GRANULE_PAGES + 9), 1)
    install_at_once(tracker)
    user.store([0, 7, 8, 9, GRANULE_PAGES, GRANULE_PAGES + 8], 2)
    user.load(range(GRANULE_PAGES))
    user.store([7], 3)
    assert tracker.collect_and_clear() == Collected(
        pages(0, 7, 8, 9, GRANULE_PAGES, GRANULE_PAGES + 8), PageSet.empty()
    )
    assert_clean(tracker)
    user.store([7, 8], 3)
    assert tracker.collect_and_clear().written == pages(7, 8)
    assert_clean(tracker)


@pytest.mark.parametrize(
    "hole",
    [
        pytest.param(3, id="beside contents"),
        pytest.param(2 * GRANULE_PAGES + 9, id="a gap between contents"),
        pytest.param(6 * GRANULE_PAGES, id="a gap far away"),
        pytest.param(PAGES - 1, id="the last page"),
    ],
)
def test_a_first_write_into_a_hole_is_collected(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser, hole: int
) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store([0, 1, 4 * GRANULE_PAGES], 1)
    install_at_once(tracker)
    user.store([hole], 2)
    assert tracker.collect_and_clear().written == pages(hole)
    assert_clean(tracker)
    # Its neighbours, which are holes still, are tracked as well from now on.
    user.store([hole, hole - 1], 3)
    assert tracker.collect_and_clear().written == pages(hole - 1, hole)
    assert_clean(tracker)


def test_holes_that_nobody_wrote_are_not_written(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    memory = make_memory(PAGES)
    tracker = make_tracker(memory)
    user.store(range(0, 2 * GRANULE_PAGES, 3), 1)
    there = install_at_once(tracker)
    user.store([0], 2)
    collected = tracker.collect_and_clear()
    assert collected.written == pages(0)
    assert not collected.holes & there
    assert memfd.data_extents(memory.fd) == there


def test_pages_written_and_then_zapped_are_collected(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store(range(GRANULE_PAGES), 1)
    install_at_once(tracker)
    user.store([4, 5, 6, 3 * GRANULE_PAGES], 2)
    user.zap([5, 6, 3 * GRANULE_PAGES])
    assert tracker.collect_and_clear().written == pages(4, 5, 6, 3 * GRANULE_PAGES)
    assert_clean(tracker)
    # What was zapped is protected again although no page is mapped there.
    user.store([5], 3)
    assert tracker.collect_and_clear().written == pages(5)
    assert_clean(tracker)


def test_a_granule_written_and_then_zapped_at_once_is_collected(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    # No entry of its page table is in use then, and the kernel may free the table itself.
    tracker = make_tracker(make_memory(PAGES))
    granule = range(GRANULE_PAGES, 2 * GRANULE_PAGES)
    user.store(range(3 * GRANULE_PAGES), 1)
    install_at_once(tracker)
    user.store(granule, 2)
    user.zap_run(granule.start, len(granule))
    assert tracker.collect_and_clear().written == PageSet.span(granule.start, granule.stop)
    assert_clean(tracker)
    user.store(granule, 3)
    user.zap_run(granule.start, len(granule))
    assert tracker.collect_last().written == PageSet.span(granule.start, granule.stop)


def test_what_is_written_can_be_counted_before_it_is_collected(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store(range(3 * GRANULE_PAGES), 1)
    install_at_once(tracker)
    assert not tracker.written_so_far()
    user.store([3, 700], 2)
    assert tracker.written_so_far() == pages(3, 700)
    user.store([3, 900], 3)
    assert tracker.written_so_far() == tracker.written_so_far() == pages(3, 700, 900)
    assert tracker.collect_and_clear().written == pages(3, 700, 900)
    assert not tracker.written_so_far()
    user.store([900], 4)
    assert tracker.written_so_far() == tracker.collect_and_clear().written == pages(900)


def test_the_last_collection_gives_the_same_and_protects_nothing(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store(range(9), 1)
    install_at_once(tracker)
    user.store([2, 3, 5, 20, 5 * GRANULE_PAGES], 2)
    user.punch([5])
    last = tracker.collect_last()
    assert last.written == pages(2, 3, 20, 5 * GRANULE_PAGES)
    assert 5 in last.holes


def test_a_zap_alone_writes_nothing(make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store(range(64), 1)
    install_at_once(tracker)
    user.zap(range(16))
    user.load(range(8))
    assert_clean(tracker)
    user.store([3, 12], 2)
    assert tracker.collect_and_clear().written == pages(3, 12)


def test_writes_that_the_kernel_makes_for_the_guest(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store(range(16), 1)
    install_at_once(tracker)
    if tracker.name == "page-fire":
        # Opened for user mode only, so the kernel's store does not wait for a handler: it is refused, not lost.
        assert user.read_into(3, b"x" * 100) == errno.EFAULT
        assert_clean(tracker)
        user.store([3], 2)
    assert user.read_into(3, b"x" * 100) == 0
    assert tracker.collect_and_clear().written == pages(3)
    assert_clean(tracker)


def test_pages_that_the_guest_gave_back_are_holes(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    tracker = make_tracker(make_memory(PAGES))
    user.store(range(0, GRANULE_PAGES, 2), 1)
    install_at_once(tracker)
    user.store([4, 6, 8, 5], 2)
    user.punch([4, 6])
    collected = tracker.collect_and_clear()
    assert collected.written == pages(5, 8)
    assert collected.holes & PageSet.span(0, 10) == pages(4, 6)
    assert_clean(tracker)
    # Tracked they stay. Given back without having been written, a page reads clean: the known limit.
    user.punch([10])
    assert_clean(tracker)
    user.store([4, 10], 3)
    assert tracker.collect_and_clear().written == pages(4, 10)


def test_removal_leaves_no_tracing(make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser) -> None:
    memory = make_memory(PAGES)
    tracker = make_tracker(memory)
    user.store(range(32), 1)
    assert "uw" not in user.memory_flags()
    install_at_once(tracker)
    assert "uw" in user.memory_flags()
    user.store([2], 2)
    tracker.remove()
    tracker.remove()
    assert "uw" not in user.memory_flags()
    user.store([1, 2, 40, 7 * GRANULE_PAGES], 3)
    assert user.read_into(5, b"x") == 0
    assert user.load([1, 2]) == [[0, 3], [0, 3]]
    assert user.alive


def test_a_guest_is_tracked_again_after_a_removal(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    memory = make_memory(PAGES)
    first = make_tracker(memory)
    user.store(range(10), 1)
    install_at_once(first)
    user.store([1], 2)
    first.remove()
    user.store([2], 2)
    second = tracker_of(first.name, user, memory)
    try:
        assert install_at_once(second) == PageSet.span(0, 10)
        assert_clean(second)
        user.store([3, 11], 2)
        assert second.collect_and_clear().written == pages(3, 11)
    finally:
        second.remove()


def test_a_tracker_that_was_never_installed_is_removed(make_memory: MemoryMaker, make_tracker: TrackerMaker) -> None:
    make_tracker(make_memory(PAGES)).remove()


def test_a_sparse_guest_costs_what_it_holds(
    make_memory: MemoryMaker, make_tracker: TrackerMaker, user: MemoryUser
) -> None:
    memory = make_memory((64 << 30) // 4096)
    tracker = make_tracker(memory)
    before_bytes = user.page_table_bytes()
    there = [number * 1_000_003 for number in range(16)]
    user.store(there, 1)
    assert install_at_once(tracker) == pages(*there)
    # A table for each page of all 64 GiB would take 128 MiB.
    assert user.page_table_bytes() - before_bytes < 1 << 20
    began = time.monotonic()
    assert_clean(tracker)
    clean_s = time.monotonic() - began
    user.store([there[3], 500_000], 2)
    began = time.monotonic()
    assert tracker.collect_and_clear().written == pages(there[3], 500_000)
    assert_clean(tracker)
    # Against the machine's own speed: a walk over 32,768 tables takes the kernel tens of thousands of system calls' time.
    calls_s = time_of_calls(20_000)
    assert clean_s < calls_s
    assert time.monotonic() - began < 3 * calls_s
    assert user.page_table_bytes() - before_bytes < 1 << 20


def time_of_calls(count: int) -> float:
    began = time.monotonic()
    for _ in range(count):
        os.getppid()
        os.stat("/")
    return time.monotonic() - began


def test_fires_are_counted(make_memory: MemoryMaker, user: MemoryUser) -> None:
    memory = make_memory(PAGES)
    user.map(memory)
    user.store(range(20), 1)
    tracker = tracker_of("page-fire", user, memory)
    assert isinstance(tracker, PageFireTracker)
    install_at_once(tracker)
    user.store([1, 2, 3], 2)
    user.store([1, 2, 3], 3)
    assert tracker.fires == 3
    tracker.remove()


def test_a_later_collection_decides() -> None:
    earlier = Collected(pages(1, 2, 3), pages(7, 8))
    assert earlier | Collected(pages(4, 7), pages(2)) == Collected(pages(1, 3, 4, 7), pages(2, 8))
    assert tracking.NOTHING | earlier == earlier == earlier | tracking.NOTHING


def test_the_kernel_chooses_its_tracker() -> None:
    need_pagemap_scan()
    choice = choose_tracker()
    assert (choice.name, choice.features) == ("pagemap-scan", userfaultfd.TRACK_ASYNC)
    assert choice.reason == "the kernel passed the tracking self-test"
    asked = choose_tracker("page-fire")
    assert (asked.name, asked.features, asked.reason) == ("page-fire", userfaultfd.TRACK_SYNC, "asked for")


def test_a_kernel_that_loses_writes_gets_page_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    need_userfaultfd(userfaultfd.TRACK_SYNC)
    from pagefire.guest_workload.linux.selftest import Trial

    failed = [Trial("a written page reads written", False, "lost [5], invented []"), Trial("another", True, "")]
    monkeypatch.setattr(tracker_choice, "tracking_self_test", lambda: failed)
    choice = choose_tracker()
    assert choice.name == "page-fire"
    assert choice.reason == "a written page reads written: lost [5], invented []"
    with pytest.raises(
        FeatureMissing, match=r"cannot track writes with PAGEMAP_SCAN: a written page .* `pagefire doctor`"
    ):
        choose_tracker("pagemap-scan")


def test_a_kernel_without_userfaultfd_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> userfaultfd.Feature:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(userfaultfd, "supported_features", missing)
    with pytest.raises(FeatureMissing, match="this host has no userfaultfd: Function not implemented"):
        choose_tracker("page-fire")
    monkeypatch.setattr(userfaultfd, "supported_features", lambda: userfaultfd.Feature.MISSING_SHMEM)
    with pytest.raises(FeatureMissing, match="cannot track a guest's writes: userfaultfd offers"):
        choose_tracker("page-fire")
