"""Errands: system calls that vCPUs make for their host."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator

import pytest

from pagefire.guest_workload.control_block import now_ns
from pagefire.guest_workload.errand import Errand
from pagefire.guest_workload.linux import pagemap, userfaultfd
from pagefire.guest_workload.linux.calls import Calls
from pagefire.protocol.errors import GuestError
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from tests.guest_workload.conftest import MachineMaker
from tests.guest_workload.machine import Machine
from tests.support.kernel import need_pagemap_scan

pytestmark = pytest.mark.kernel

PAGES = 1024


@pytest.fixture
def uffd() -> Iterator[int]:
    """A descriptor under which this process's memory can be tracked."""
    need_pagemap_scan()
    fd = userfaultfd.open_uffd(userfaultfd.TRACK_ASYNC)
    yield fd
    os.close(fd)


def protection(machine: Machine, uffd: int, pages: int = PAGES) -> Calls:
    """List calls that protect so many pages, one by one."""
    userfaultfd.register(uffd, machine.memory.address, machine.memory.size_bytes, userfaultfd.Mode.WP)
    return userfaultfd.protect_calls(uffd, machine.memory.address, PageSet.span(0, pages).steps(1))


def errand(machine: Machine, calls: Calls, *, alive: bool = True) -> Errand:
    return Errand(machine.control, calls, calls.fd, calls.arguments.ctypes.data, lambda: alive)


def unwritten(machine: Machine) -> int:
    """Count the first pages that read protected."""
    fd = pagemap.open_pagemap(os.getpid())
    try:
        regions = pagemap.Scanner(fd).scan(
            machine.memory.address, machine.memory.address + PAGES * PAGE_BYTES,
            require=pagemap.WRITTEN_ONLY, give=pagemap.WRITTEN_ONLY,
        )  # fmt: skip
    finally:
        os.close(fd)
    return PAGES - int((regions[:, 1] - regions[:, 0]).sum()) // PAGE_BYTES


@pytest.mark.parametrize("vcpu", [None, 0, 3])
@pytest.mark.parametrize("parked", [False, True])
def test_every_call_is_made_once(machine: MachineMaker, uffd: int, vcpu: int | None, parked: bool) -> None:
    guest = machine("idle", 4, working_set_kib=4096)
    if not parked:
        guest.control.resume()
    errand(guest, protection(guest, uffd)).do(vcpu)
    assert unwritten(guest) == PAGES
    assert guest.control.all_parked is parked


def test_only_the_claimed_vcpu_leaves_its_work(machine: MachineMaker, uffd: int) -> None:
    guest = machine("idle", 2, interval_ns=1_000_000)
    calls = protection(guest, uffd)
    guest.control.resume()
    time.sleep(0.05)
    began_ns = now_ns()
    for _ in range(50):
        errand(guest, calls).do(1)
    took_ns = now_ns() - began_ns
    before = guest.control.commits_by_vcpu()
    deadline = time.monotonic() + 30
    while (guest.control.commits_by_vcpu() == before).any():
        assert time.monotonic() < deadline
    assert took_ns > 0
    guest.pause()


def test_a_paced_vcpu_is_woken_for_an_errand(machine: MachineMaker, uffd: int) -> None:
    guest = machine("idle", 2, interval_ns=3_600_000_000_000)
    guest.run_for(0.02)
    guest.control.resume()
    time.sleep(0.02)
    errand(guest, protection(guest, uffd)).do(0)
    assert unwritten(guest) == PAGES


def test_a_call_that_fails_is_told(machine: MachineMaker) -> None:
    guest = machine("idle", 2)
    nothing = userfaultfd.protect_calls(-1 & 0xFFFF_FFFF, guest.memory.address, PageSet.span(0, 8).steps(1))
    for vcpu in (None, 1):
        with pytest.raises(OSError, match="UFFDIO_WRITEPROTECT") as failure:
            errand(guest, nothing).do(vcpu)
        assert failure.value.errno == errno.EBADF


def test_errands_follow_one_another_while_the_guest_is_paused_and_resumed(machine: MachineMaker, uffd: int) -> None:
    """A vCPU that is late in leaving one errand must not take the next one's calls for its own."""
    guest = machine("idle", 4)
    calls = protection(guest, uffd)
    ending = threading.Event()

    def pause_and_resume() -> None:
        while not ending.is_set():
            guest.control.resume()
            guest.pause()

    beside = threading.Thread(target=pause_and_resume)
    beside.start()
    try:
        for turn in range(300):
            few = Calls(calls.fd, calls.request, calls.arguments[: 1 + turn % 7], calls.name)
            errand(guest, few).do((None, 0, 3)[turn % 3])
    finally:
        ending.set()
        beside.join()


def test_a_guest_that_died_is_not_waited_for(machine: MachineMaker, uffd: int) -> None:
    guest = machine("idle", 1)
    calls = protection(guest, uffd)
    claimed_of_nobody = 7
    with pytest.raises(GuestError, match="the guest process ended: in the middle of a trace install"):
        errand(guest, calls, alive=False).do(claimed_of_nobody)
