"""futex, memfd and scheduling: each function against the kernel."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagefire.guest_workload.linux import futex, memfd, scheduling
from pagefire.protocol.pages import GRANULE_BYTES, PAGE_BYTES, PageSet

TIB = 1 << 40


def test_a_futex_waits_only_for_what_it_expects() -> None:
    word = ctypes.c_uint32(7)
    address = ctypes.addressof(word)
    assert futex.wait(address, 8, 60)
    began = time.monotonic()
    assert not futex.wait(address, 7, 0.02)
    assert time.monotonic() - began >= 0.02
    assert futex.wake(address) == 0


def test_a_futex_is_woken_through_another_mapping() -> None:
    here = memfd.Mapping(memfd.create("futex", PAGE_BYTES))
    there = memfd.Mapping(os.dup(here.fd))
    assert here.address != there.address
    outcome: list[bool] = []
    waiter = threading.Thread(target=lambda: outcome.append(futex.wait(here.address, 0, 30)))
    waiter.start()
    deadline = time.monotonic() + 10
    while not futex.wake(there.address):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    waiter.join()
    assert outcome == [True]
    here.close()
    there.close()


def test_a_bad_futex_address_is_an_os_error() -> None:
    with pytest.raises(OSError, match="futex wait: Bad address"):
        futex.wait(4096, 0, 1)


def test_a_memfd_keeps_its_size() -> None:
    fd = memfd.create("sealed", 2 * PAGE_BYTES)
    for size in (PAGE_BYTES, 3 * PAGE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)


@pytest.mark.parametrize("size_bytes", [PAGE_BYTES, 3 * GRANULE_BYTES + PAGE_BYTES, 6 * TIB])
def test_a_mapping_is_aligned_whatever_its_size(size_bytes: int) -> None:
    mapping = memfd.Mapping(memfd.create("any", size_bytes))
    assert mapping.address % GRANULE_BYTES == 0
    assert mapping.array.size == size_bytes
    assert mapping.pages == size_bytes // PAGE_BYTES
    mapping.array[size_bytes - 1] = 9
    assert os.pread(mapping.fd, 1, size_bytes - 1) == b"\x09"
    assert memfd.data_extents(mapping.fd) == PageSet.span(mapping.pages - 1, mapping.pages)
    mapping.close()
    mapping.close()


def test_a_closed_mapping_leaves_nothing_mapped() -> None:
    mapping = memfd.Mapping(memfd.create("pagefire-gone", GRANULE_BYTES))
    assert "pagefire-gone" in Path("/proc/self/maps").read_text()
    mapping.close()
    assert "pagefire-gone" not in Path("/proc/self/maps").read_text()


def test_a_mapping_takes_whole_pages() -> None:
    fd = os.memfd_create("odd")
    os.ftruncate(fd, 100)
    with pytest.raises(OSError, match="whole pages"):
        memfd.Mapping(fd)
    os.close(fd)


def test_extents_are_what_was_touched() -> None:
    mapping = memfd.Mapping(memfd.create("extents", TIB))
    assert memfd.data_extents(mapping.fd) == PageSet.empty()
    pages = np.array([0, 1, 5, 1000, 1001, 1 << 20])
    mapping.array[pages * PAGE_BYTES] = 1
    assert memfd.data_extents(mapping.fd) == PageSet.of_pages(pages)
    assert memfd.data_extents(mapping.fd, 5 * PAGE_BYTES, 1001 * PAGE_BYTES) == PageSet.of_pages([5, 1000])
    assert memfd.data_extents(mapping.fd, 6 * PAGE_BYTES, 7 * PAGE_BYTES) == PageSet.empty()
    mapping.close()


def test_many_ranges_cost_what_their_extents_do(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping, seeks, really = memfd.Mapping(memfd.create("ranges", 4 * GRANULE_BYTES)), [0], os.lseek

    def counted(fd: int, at: int, whence: int) -> int:
        seeks[0] += 1
        return really(fd, at, whence)

    monkeypatch.setattr(os, "lseek", counted)
    there = PageSet.of_runs([3, 700, 1200], [600, 1100, 2000])
    for page in there.page_numbers().tolist():
        mapping.array[page * PAGE_BYTES] = 1
    random = np.random.default_rng(11)
    for _ in range(50):
        ranges = PageSet.of_pages(np.flatnonzero(random.random(mapping.pages) < random.random()))
        assert memfd.data_among(mapping.fd, ranges) == ranges - (PageSet.span(0, mapping.pages) - there)
    seeks[0] = 0
    large = PageSet.of_runs(range(0, mapping.pages, 50), range(40, mapping.pages + 40, 50))
    assert memfd.data_among(mapping.fd, large).pages > 1000
    assert seeks[0] <= 30  # of 41 ranges, in three extents
    mapping.close()


def test_nice_and_name_are_the_threads_own() -> None:
    seen: list[tuple[int, str]] = []

    def thread() -> None:
        scheduling.set_nice(7)
        scheduling.set_slice(1_000_000)
        scheduling.set_timer_slack(1000)
        scheduling.set_name("a-rather-long-name")
        own = threading.get_native_id()
        comm = Path(f"/proc/self/task/{own}/comm").read_text().strip()
        seen.append((os.getpriority(os.PRIO_PROCESS, own), comm))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    other = threading.Thread(target=thread)
    other.start()
    other.join()
    assert seen == [(7, "a-rather-long-n")]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_the_autogroup_is_optional() -> None:
    script = "from pagefire.guest_workload.linux import scheduling; print(scheduling.set_autogroup_nice(1))"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, start_new_session=True
    )
    assert output.stdout.strip() in ("True", "False")


def _policy_after_real_time(first: str = "") -> list[str]:
    script = (
        f"import os; from pagefire.guest_workload.linux import scheduling; {first}"
        "print(scheduling.set_real_time(), os.sched_getscheduler(0) == os.SCHED_FIFO)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_real_time_is_taken_where_it_is_allowed() -> None:
    told, is_so = _policy_after_real_time()
    assert told == is_so
    assert told == "True" or os.geteuid() != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: only root can become another user")
def test_without_privilege_it_stays_an_ordinary_process() -> None:
    assert _policy_after_real_time("os.setgroups([]); os.setuid(65534); ") == ["False", "False"]
