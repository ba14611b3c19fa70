"""Swapped-out pages of a guest: not read in before the resume, moved last, and right when they arrive."""

from __future__ import annotations

import ctypes
import os
import struct
import time

import pytest

from pagefire.guest_workload.linux.memfd import data_extents
from pagefire.guest_workload.observation import open_memory
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.control_socket import request
from tests.e2e.host_pair import HostPair, guest_arguments
from tests.support.kernel import need_pagemap_scan
from tests.support.swap import zram_swap

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.root, pytest.mark.alone]

MIB = 1 << 20
_PROCESS_MADVISE = 440
_MADV_PAGEOUT = 21
_libc = ctypes.CDLL(None, use_errno=True)


def page_out(pid: int, pages: PageSet) -> None:
    """Have the kernel swap out pages of a guest process, found by the name of its memory."""
    with open(f"/proc/{pid}/maps") as maps:
        address = next(int(line.split("-")[0], 16) for line in maps if "memfd:guest-" in line)
    pidfd = os.pidfd_open(pid)
    try:
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
            for at in range(start, stop, 512):
                size_bytes = (min(at + 512, stop) - at) * PAGE_BYTES
                vector = ctypes.create_string_buffer(struct.pack("=QQ", address + at * PAGE_BYTES, size_bytes), 16)
                if _libc.syscall(_PROCESS_MADVISE, pidfd, vector, 1, _MADV_PAGEOUT, 0) < 0:
                    raise OSError(ctypes.get_errno(), "process_madvise")
    finally:
        os.close(pidfd)


def migrate_half_swapped(memory_mib: int, mode: str) -> tuple[dict, int]:  # type: ignore[type-arg]
    """Migrate a guest whose upper half is swapped out, and compare it with its twin; gives the report and how many pages were."""
    shape = {"memory": f"{memory_mib}MiB", "workload": "oltp", "vcpus": 1, "working_set": "25%", "seed": 3}
    with zram_swap(2 * memory_mib * MIB):
        with HostPair(guest_arguments(**shape, rate=5000)) as pair:  # type: ignore[arg-type]
            described = request(pair.source_socket, "guests")[pair.name]
            half = memory_mib * MIB // PAGE_BYTES // 2
            page_out(described["guest_pid"], PageSet.span(half, 2 * half))
            memory = open_memory(described)
            try:
                swapped = (data_extents(memory.fd) - memory.in_memory(data_extents(memory.fd))).pages
            finally:
                memory.close()
            time.sleep(0.2)
            report = pair.migrate(mode=mode, check=True)
            steps = 2 * pair.transactions(pair.dest_socket) + 1000
            pair.on_dest("run_to", steps=steps)
            migrated = pair.on_dest("digest")
        with HostPair(guest_arguments(**shape, stop_at=steps)) as pair:  # type: ignore[arg-type]
            pair.on_source("run_to", steps=steps)
            assert pair.on_source("digest") == migrated
    assert swapped > 0.9 * half, f"the kernel swapped out {swapped} of {half} pages"
    assert report["verified"]["problems"] == []
    postcopy = report["postcopy"]
    assert postcopy["pushed_pages"] + postcopy["faulted_pages"] == report["bitmap"]["pages"]
    return report, swapped


def assert_left_alone(report: dict, swapped: int) -> None:  # type: ignore[type-arg]
    """What was swapped out stood in the swap bitmap, was not read in before the resume, and was afterwards."""
    swap = report["swap"]
    print(f"swapped={swapped} swap={swap} rounds={[one['pages'] for one in report['rounds']]}")
    assert swap["pages"] == swapped
    assert 0 < swap["bitmap_bytes"] < 2000
    # Others on this machine may have pages in swap: a few of theirs are not ours.
    assert swap["swapped_in_before"] < 0.01 * swapped
    assert swap["swapped_in_after"] >= 0.9 * swapped


@pytest.mark.parametrize("mode", ["hybrid", "postcopy"])
def test_swapped_pages_are_moved_last(mode: str) -> None:
    need_pagemap_scan()
    report, swapped = migrate_half_swapped(128, mode)
    assert_left_alone(report, swapped)
    if mode == "hybrid":
        assert report["rounds"][0]["pages"] <= 128 * MIB // PAGE_BYTES - swapped


def test_a_mode_that_resumes_last_sends_them_before() -> None:
    need_pagemap_scan()
    report, swapped = migrate_half_swapped(64, "precopy")
    assert report["swap"]["pages"] == 0
    assert report["rounds"][0]["pages"] > 64 * MIB // PAGE_BYTES - swapped


@pytest.mark.soak
def test_half_of_a_gib_is_swapped_out(record_property: pytest.RecordProperty) -> None:
    """A 1 GiB guest with half its pages swapped."""
    need_pagemap_scan()
    report, swapped = migrate_half_swapped(1024, "hybrid")
    assert_left_alone(report, swapped)
    for name, value in report["swap"].items():
        record_property(name, value)
    record_property("swapped_pages", swapped)
