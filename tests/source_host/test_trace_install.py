"""Install policies on a real guest that keeps writing: what they promise of it, and that no store is lost whoever protects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pagefire.guest_workload.control_block import BUCKET_NS, ControlBlock
from pagefire.guest_workload.guest_config import Backing, GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.memfd import data_extents
from pagefire.protocol.errors import UsageError
from pagefire.protocol.ownership import Owner
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from pagefire.source_host.trace_install import InstallOptions, Rolling, cost_of_install, install
from pagefire.source_host.tracker_choice import choose_tracker, granularity_of, make_tracker
from pagefire.source_host.tracking import DirtyTracker, Granularity
from tests.support.huge_pages import huge_pages, hugetlb_pool
from tests.support.kernel import need_pagemap_scan, need_userfaultfd

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

MIB = 1 << 20
TRACKERS = ("pagemap-scan", "page-fire")
WAYS = [("stop", "vcpu"), ("loose", "vcpu"), ("loose", "host"), ("rolling", "host")]
GuestMaker = Callable[..., GuestProcess]


@pytest.fixture
def make_guest(tmp_path: Path) -> Iterator[GuestMaker]:
    """Make guests that run."""
    made: list[GuestProcess] = []

    def make(workload: str = "random", **changes: object) -> GuestProcess:
        config = GuestConfig("g0", 64 * MIB, 32 * MIB, 16 * MIB, 2, workload, **changes)  # type: ignore[arg-type]
        made.append(GuestProcess.spawn(tmp_path / f"g{len(made)}.sock", config))
        made[-1].control.owner = Owner.OWNER
        made[-1].control.resume()
        return made[-1]

    yield make
    for guest in made:
        guest.terminate()


def options(
    policy: str, tracer: str, granularity: str = "4K", step_pages: int | None = GRANULE_PAGES
) -> InstallOptions:
    return InstallOptions(policy, tracer, Granularity(granularity), step_pages)


class Copier:
    """A destination without a network: copies what the tracker says, in its order, and is compared at the end."""

    def __init__(self, guest: GuestProcess, tracker: DirtyTracker) -> None:
        self.guest, self.tracker = guest, tracker
        self.copy = np.zeros(guest.memory.size_bytes, np.uint8).reshape(-1, PAGE_BYTES)
        self.memory = guest.memory.array.reshape(-1, PAGE_BYTES)

    def take(self, pages: PageSet) -> None:
        index = pages.page_numbers()
        self.copy[index] = self.memory[index]

    def install(self, way: InstallOptions) -> PageSet:
        granules = self.tracker.register()
        if way.policy == "rolling":
            rolling = Rolling(self.tracker, way, granules)
            for pages in rolling.chunks():
                self.take(pages)
            return rolling.sent
        install(self.tracker, self.guest, way, granules)
        pages = self.tracker.adopt(granules)
        self.take(pages)
        return pages

    def follow(self, rounds: int) -> None:
        """Copy what was written, round after round, and once more when the guest stands still; then compare all.

        More rounds than that while the guest was not given a CPU: then they have found nothing.
        """
        commits, deadline_s = self.guest.control.commits(), time.monotonic() + 30
        while rounds > 0 or self.guest.control.commits() == commits:
            assert time.monotonic() < deadline_s
            self.take(self.tracker.collect_and_clear().written)
            rounds -= 1
        self.guest.control.request_pause()
        assert self.guest.control.wait_parked(30)
        self.take(self.tracker.collect_last().written)
        there = data_extents(self.guest.memory.fd).page_numbers()
        wrong = there[(self.copy[there] != self.memory[there]).any(axis=1)]
        assert wrong.tolist() == []


@pytest.mark.parametrize("step_pages", [GRANULE_PAGES, None], ids=["2M", "all"])
@pytest.mark.parametrize(("policy", "tracer"), WAYS)
@pytest.mark.parametrize("tracker_name", TRACKERS)
def test_no_store_is_lost_whoever_protects(
    make_guest: GuestMaker, tracker_name: str, policy: str, tracer: str, step_pages: int | None
) -> None:
    need_tracker(tracker_name)
    # Page fires stop a vCPU for 50 us each: paced, or the installation would never catch the guest running.
    guest = make_guest(rate=20_000.0 if tracker_name == "page-fire" else None)
    tracker = make_tracker(guest, choose_tracker(tracker_name), Granularity.PAGE)
    try:
        copier = Copier(guest, tracker)
        pages = copier.install(options(policy, tracer, step_pages=step_pages))
        assert pages.pages == 32 * MIB // PAGE_BYTES
        commits = guest.control.commits()
        copier.follow(5)
        assert guest.control.commits() > commits
        assert tracker.fires > 0
        assert bool(tracker.answers_ns) is (tracker_name == "page-fire")
    finally:
        tracker.remove()


def test_a_stop_based_install_stops_every_vcpu_and_a_loose_one_only_the_claimed(
    make_guest: GuestMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_pagemap_scan()
    guest = make_guest()
    #: Commits when every vCPU was parked, and when they were let go: the calls were made between the two.
    stood_at: list[int] = []

    def note_commits(method: str) -> None:
        real = getattr(ControlBlock, method)

        def noting(control: ControlBlock, *arguments: object) -> object:
            if method == "resume":
                stood_at.append(control.commits())
            result = real(control, *arguments)
            if method == "wait_parked":
                stood_at.append(control.commits())
            return result

        monkeypatch.setattr(ControlBlock, method, noting)

    note_commits("wait_parked")
    note_commits("resume")
    for policy, tracer in (("stop", "vcpu"), ("loose", "vcpu")):
        tracker = make_tracker(guest, choose_tracker(), Granularity.PAGE)
        try:
            granules = tracker.register()
            epoch = guest.control.epoch
            # Page by page, 8,192 calls: long enough for a claimed vCPU's absence to stand out from the scheduler's doings.
            installed = install(tracker, guest, options(policy, tracer, step_pages=1), granules)
            assert installed.calls == granules.pages == 32 * MIB // PAGE_BYTES
            assert guest.control.epoch - epoch == (policy == "stop")
            time.sleep(3 * BUCKET_NS / 1e9)
            cost = cost_of_install(guest.control, installed, tracker)
        finally:
            tracker.remove()
        length_ns = installed.ended_ns - installed.began_ns
        assert (cost.policy, cost.tracer, cost.calls, cost.fires) == (policy, tracer, installed.calls, 0)
        assert cost.install_s == pytest.approx(length_ns / 1e9)
        if policy == "stop":
            assert len(stood_at) == 2
            assert stood_at[0] == stood_at[1]
            assert cost.guest_gap_s
            assert cost.claimed_vcpu_gap_s is None
        else:
            assert len(stood_at) == 2
            assert cost.claimed_vcpu_gap_s is not None
            assert cost.claimed_vcpu_gap_s > 0.2 * cost.install_s
            assert installed.commits > 0


def test_a_parked_guest_stays_parked_while_a_claimed_vcpu_protects(make_guest: GuestMaker) -> None:
    need_pagemap_scan()
    guest = make_guest()
    guest.control.request_pause()
    assert guest.control.wait_parked(30)
    commits = guest.control.commits()
    tracker = make_tracker(guest, choose_tracker(), Granularity.PAGE)
    try:
        granules = tracker.register()
        install(tracker, guest, options("loose", "vcpu"), granules)
        tracker.adopt(granules)
        assert guest.control.all_parked
        assert guest.control.commits() == commits
        assert not tracker.collect_and_clear()
    finally:
        tracker.remove()


def test_a_guest_runs_on_when_its_install_fails(make_guest: GuestMaker) -> None:
    need_pagemap_scan()
    guest = make_guest()
    for policy in ("stop", "loose"):
        tracker = make_tracker(guest, choose_tracker(), Granularity.PAGE)
        try:
            # Never registered: the kernel refuses to protect.
            with pytest.raises(OSError, match="UFFDIO_WRITEPROTECT"):
                install(tracker, guest, options(policy, "vcpu"), PageSet.span(0, GRANULE_PAGES))
        finally:
            tracker.remove()
        commits = guest.control.commits()
        deadline = time.monotonic() + 30
        while guest.control.commits() == commits:
            assert time.monotonic() < deadline


def test_page_fires_are_refused_by_2_mib(make_guest: GuestMaker) -> None:
    need_userfaultfd(choose_tracker("page-fire").features)
    with pytest.raises(UsageError, match="page-fire cannot protect this guest by 2M"):
        make_tracker(make_guest(), choose_tracker("page-fire"), Granularity.GRANULE)


@pytest.mark.parametrize(
    ("backing", "tracker", "wanted", "becomes"),
    [
        ("4k", "pagemap-scan", "auto", "4K"),
        ("thp", "pagemap-scan", "auto", "auto"),
        ("thp", "page-fire", "auto", "4K"),
        ("hugetlb", "pagemap-scan", "auto", "2M"),
        ("hugetlb", "page-fire", "auto", "2M"),
        ("hugetlb", "page-fire", "2M", "2M"),
        ("4k", "pagemap-scan", "2M", "2M"),
    ],
)
def test_what_memory_is_protected_by(backing: str, tracker: str, wanted: str, becomes: str) -> None:
    assert granularity_of(Backing(backing), tracker, Granularity(wanted)).value == becomes


def test_hugetlb_is_not_protected_by_4k() -> None:
    with pytest.raises(UsageError, match="a guest on hugetlb cannot be protected by 4K"):
        granularity_of(Backing.HUGETLB, "pagemap-scan", Granularity.PAGE)


@pytest.mark.root
@pytest.mark.parametrize("tracker_name", TRACKERS)
@pytest.mark.parametrize(("policy", "tracer"), WAYS)
def test_hugetlb_is_traced_by_2_mib_and_never_broken_down(
    make_guest: GuestMaker, tracker_name: str, policy: str, tracer: str
) -> None:
    need_pagemap_scan()
    with hugetlb_pool(64 * MIB):
        guest = make_guest(backing="hugetlb", rate=2_000.0)
        tracker = make_tracker(guest, choose_tracker(tracker_name), Granularity.AUTO)
        try:
            copier = Copier(guest, tracker)
            assert copier.install(options(policy, tracer, "2M")) == PageSet.span(0, 64 * MIB // PAGE_BYTES)
            dirty = PageSet.empty()
            deadline = time.monotonic() + 30
            while dirty.size_bytes < 16 * MIB:
                assert time.monotonic() < deadline
                collected = tracker.collect_and_clear().written
                assert collected == collected.rounded(GRANULE_PAGES, 1 << 40)
                copier.take(collected)
                dirty |= collected
            # Each vCPU writes the first 8 MiB of its half.
            assert dirty == PageSet([0, 8192], [2048, 10240])
            copier.follow(4)
        finally:
            tracker.remove()
            guest.terminate()


@pytest.mark.root
def test_auto_leaves_whole_what_is_written_throughout(make_guest: GuestMaker) -> None:
    """At full speed each vCPU writes all of its 8 MiB between two collections: only the probe is broken down."""
    need_pagemap_scan()
    with huge_pages():
        guest = make_guest(backing="thp", workload="sequential")
        tracker = make_tracker(guest, choose_tracker(), Granularity.AUTO)
        try:
            copier = Copier(guest, tracker)
            copier.install(options("loose", "host"))
            for _ in range(6):
                time.sleep(0.3)
                copier.take(tracker.collect_and_clear().written)
            # The guest's 32 MiB have a probe in either vCPU's half, and both write theirs.
            assert mapped_by_huge_pages(guest) == 32 * MIB - 4 * MIB
            copier.follow(3)
        finally:
            tracker.remove()
        assert guest.give_back_huge_mappings() == 0
        assert mapped_by_huge_pages(guest) == 32 * MIB


@pytest.mark.root
@pytest.mark.parametrize(("policy", "tracer"), WAYS)
def test_huge_mappings_are_broken_down_where_they_fire_and_given_back(
    make_guest: GuestMaker, policy: str, tracer: str
) -> None:
    need_pagemap_scan()
    with huge_pages():
        guest = make_guest(backing="thp")
        mapped = mapped_by_huge_pages(guest)
        assert mapped == 32 * MIB
        tracker = make_tracker(guest, choose_tracker(), Granularity.GRANULE)
        try:
            copier = Copier(guest, tracker)
            copier.install(options(policy, tracer))
            # Each vCPU writes its 8 MiB, soon all of them; what it does not write stays mapped as before.
            deadline = time.monotonic() + 30
            while mapped_by_huge_pages(guest) > 16 * MIB:
                copier.take(tracker.collect_and_clear().written)
                assert time.monotonic() < deadline
            copier.follow(6)
            assert mapped_by_huge_pages(guest) == 16 * MIB
        finally:
            tracker.remove()
        assert guest.give_back_huge_mappings() == 0
        assert mapped_by_huge_pages(guest) == mapped


@pytest.mark.root
def test_after_a_granule_fired_its_dirty_pages_are_exact(make_guest: GuestMaker) -> None:
    """Which pages a paced guest wrote is told by the pages themselves: a store changes one."""
    need_pagemap_scan()
    with huge_pages():
        guest = make_guest(backing="thp", rate=2_000.0)
        tracker = make_tracker(guest, choose_tracker(), Granularity.GRANULE)
        try:
            copier = Copier(guest, tracker)
            copier.install(options("loose", "host"))
            fired = PageSet.empty()
            deadline = time.monotonic() + 30
            while fired.pages < 16 * MIB // PAGE_BYTES:
                dirty = tracker.collect_and_clear().written
                copier.take(dirty)
                fired |= dirty.rounded(GRANULE_PAGES, 1 << 40)
                assert time.monotonic() < deadline
            for turn in range(6):
                guest.control.request_pause()
                assert guest.control.wait_parked(30)
                dirty = tracker.collect_and_clear().written
                there = data_extents(guest.memory.fd).page_numbers()
                changed = there[(copier.copy[there] != copier.memory[there]).any(axis=1)]
                # What was copied beside a running guest may hold more than the collection before it told; from here on it stands.
                assert turn == 0 or changed.size
                assert turn == 0 or dirty == PageSet.of_pages(changed)
                copier.take(dirty)
                guest.control.resume()
                time.sleep(0.05)
        finally:
            tracker.remove()


@pytest.mark.root
def test_4_kib_protection_splits_huge_mappings_and_they_come_back(make_guest: GuestMaker) -> None:
    need_pagemap_scan()
    with huge_pages():
        guest = make_guest(backing="thp")
        tracker = make_tracker(guest, choose_tracker(), Granularity.PAGE)
        try:
            copier = Copier(guest, tracker)
            copier.install(options("loose", "host"))
            assert mapped_by_huge_pages(guest) == 0
            copier.follow(3)
        finally:
            tracker.remove()
        assert guest.give_back_huge_mappings() == 0
        assert mapped_by_huge_pages(guest) == 32 * MIB


def need_tracker(name: str) -> None:
    if name == "pagemap-scan":
        need_pagemap_scan()
    else:
        need_userfaultfd(choose_tracker(name).features)


def mapped_by_huge_pages(guest: GuestProcess) -> int:
    """Ask the kernel how many bytes of shared memory the guest process has mapped by 2 MiB entries."""
    for line in Path(f"/proc/{guest.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("ShmemPmdMapped:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no ShmemPmdMapped")


def test_a_considerate_install_waits_for_a_guest_that_falls_behind(make_guest: GuestMaker) -> None:
    """A guest that is paused falls behind at once, and is waited for as long as is allowed, and no longer."""
    need_pagemap_scan()
    guest = make_guest()
    time.sleep(1.2)
    took_s: dict[float | None, float] = {}
    # A thread that lost its CPU makes one install of some milliseconds twice as long, and none shorter: the least counts.
    for loss in (None, None, None, 0.03):
        tracker = make_tracker(guest, choose_tracker(), Granularity.PAGE)
        try:
            granules = tracker.register()
            guest.control.request_pause()
            assert guest.control.wait_parked(30)
            way = InstallOptions("loose", "host", Granularity.PAGE, 64, loss)
            installed = install(tracker, guest, way, granules)
            took_s[loss] = min(took_s.get(loss, np.inf), (installed.ended_ns - installed.began_ns) / 1e9)
            guest.control.resume()
            time.sleep(1.2)
        finally:
            tracker.remove()
    allowed_s = 0.15 * 32 * MIB / (1 << 30)
    assert took_s[0.03] > allowed_s
    assert took_s[0.03] > took_s[None] + 0.5 * allowed_s
