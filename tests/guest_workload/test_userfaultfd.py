"""userfaultfd: each request against the kernel, on memory of this process or, where somebody has to wait, of another."""

from __future__ import annotations

import concurrent.futures
import errno
import os
from collections.abc import Iterator

import pytest

from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.guest_workload.linux.userfaultfd import Feature, Mode
from pagefire.protocol.pages import PAGE_BYTES
from tests.support.kernel import need_userfaultfd
from tests.support.memory_user import MemoryUser

pytestmark = pytest.mark.kernel

PAGES = 16


@pytest.fixture
def memory() -> Iterator[memfd.Mapping]:
    one = memfd.Mapping(memfd.create("pagefire-faults", PAGES * PAGE_BYTES))
    yield one
    one.close()


@pytest.fixture
def paging(memory: memfd.Mapping) -> Iterator[int]:
    """A descriptor for this process with all of `memory` registered for demand paging through a second mapping (`seen`)."""
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    fd = userfaultfd.open_uffd(userfaultfd.DEMAND_PAGING)
    yield fd
    os.close(fd)


@pytest.fixture
def seen(memory: memfd.Mapping, paging: int) -> Iterator[memfd.Mapping]:
    mapping = memfd.Mapping(os.dup(memory.fd))
    userfaultfd.register(paging, mapping.address, mapping.size_bytes, Mode.MISSING | Mode.MINOR)
    yield mapping
    userfaultfd.unregister(paging, mapping.address, mapping.size_bytes)
    mapping.close()


def test_features_are_what_can_be_opened() -> None:
    need_userfaultfd(Feature(0))
    offered = userfaultfd.supported_features()
    for feature in Feature:
        # Events of a forked child need privilege beyond being offered.
        if feature in offered and feature is not Feature.EVENT_FORK:
            os.close(userfaultfd.open_uffd(feature))


def test_a_feature_that_does_not_exist_is_refused() -> None:
    need_userfaultfd(Feature(0))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="UFFDIO_API: Invalid argument") as raised:
        userfaultfd.open_uffd(1 << 60)
    assert raised.value.errno == errno.EINVAL
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_never_blocks_and_is_not_inherited(paging: int) -> None:
    assert not os.get_blocking(paging)
    assert not os.get_inheritable(paging)
    assert userfaultfd.read_faults(paging).size == 0


def test_continue_maps_what_the_file_has(memory: memfd.Mapping, seen: memfd.Mapping, paging: int) -> None:
    memory.array[: 4 * PAGE_BYTES] = 7
    assert userfaultfd.continue_range(paging, seen.address, 4 * PAGE_BYTES) == (4 * PAGE_BYTES, 0)
    assert seen.array[: 4 * PAGE_BYTES].tolist() == [7] * (4 * PAGE_BYTES)
    # Mapped already: nothing is done. Nothing there: the rest of the range is given up, and what was mapped is told.
    assert userfaultfd.continue_range(paging, seen.address, PAGE_BYTES) == (0, errno.EEXIST)
    memory.array[4 * PAGE_BYTES : 6 * PAGE_BYTES] = 8
    mapped, error = userfaultfd.continue_range(paging, seen.address + 4 * PAGE_BYTES, 4 * PAGE_BYTES)
    assert (mapped, error) in ((2 * PAGE_BYTES, errno.EAGAIN), (2 * PAGE_BYTES, errno.EFAULT))
    assert userfaultfd.continue_range(paging, seen.address + 6 * PAGE_BYTES, PAGE_BYTES) == (0, errno.EFAULT)


def test_zeropage_fills_holes_and_nothing_else(memory: memfd.Mapping, seen: memfd.Mapping, paging: int) -> None:
    assert userfaultfd.zeropage(paging, seen.address, 2 * PAGE_BYTES) == (2 * PAGE_BYTES, 0)
    assert not seen.array[: 2 * PAGE_BYTES].any()
    memory.array[2 * PAGE_BYTES] = 5
    assert userfaultfd.zeropage(paging, seen.address + 2 * PAGE_BYTES, PAGE_BYTES) == (0, errno.EEXIST)
    assert memory.array[2 * PAGE_BYTES] == 5


def test_what_is_not_registered_is_not_served(memory: memfd.Mapping, paging: int) -> None:
    assert userfaultfd.continue_range(paging, memory.address, PAGE_BYTES) == (0, errno.ENOENT)
    assert userfaultfd.zeropage(paging, memory.address, PAGE_BYTES) == (0, errno.ENOENT)
    with pytest.raises(OSError, match="UFFDIO_REGISTER: Invalid argument"):
        userfaultfd.register(paging, memory.address + 1, PAGE_BYTES, Mode.MISSING)


def test_two_descriptors_do_not_share_a_range(seen: memfd.Mapping) -> None:
    other = userfaultfd.open_uffd(userfaultfd.DEMAND_PAGING)
    with pytest.raises(OSError, match="UFFDIO_REGISTER") as raised:
        userfaultfd.register(other, seen.address, seen.size_bytes, Mode.MISSING)
    assert raised.value.errno == errno.EBUSY
    os.close(other)


@pytest.mark.parametrize("present", [False, True])
def test_a_fault_is_an_event_and_waits(memory: memfd.Mapping, present: bool) -> None:
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    if present:
        memory.array[3 * PAGE_BYTES : 4 * PAGE_BYTES] = 6
    with MemoryUser() as user, concurrent.futures.ThreadPoolExecutor(1) as pool:
        user.map(memory)
        uffd = user.open_uffd(userfaultfd.DEMAND_PAGING)
        userfaultfd.register(uffd, user.address, memory.size_bytes, Mode.MISSING | Mode.MINOR)
        loading = pool.submit(user.load, [3])
        while not (faults := userfaultfd.read_faults(uffd)).size:
            pass
        assert faults["event"].tolist() == [userfaultfd.EVENT_PAGEFAULT]
        assert faults["address"].tolist() == [user.address + 3 * PAGE_BYTES]
        assert bool(faults["flags"][0] & userfaultfd.FAULT_MINOR) == present
        assert not faults["flags"][0] & userfaultfd.FAULT_WRITE
        assert not loading.done()
        # Woken without a page it faults again; with one it goes on.
        userfaultfd.wake(uffd, user.address + 3 * PAGE_BYTES, PAGE_BYTES)
        while not (again := userfaultfd.read_faults(uffd)).size:
            pass
        assert again["address"].tolist() == faults["address"].tolist()
        fill = userfaultfd.continue_range if present else userfaultfd.zeropage
        assert fill(uffd, user.address + 3 * PAGE_BYTES, PAGE_BYTES) == (PAGE_BYTES, 0)
        assert loading.result(20) == [[6 if present else 0]]
        storing = pool.submit(user.store, [9], 1)
        while not (faults := userfaultfd.read_faults(uffd)).size:
            pass
        assert faults["flags"][0] & userfaultfd.FAULT_WRITE
        userfaultfd.unregister(uffd, user.address, memory.size_bytes)
        userfaultfd.wake(uffd, user.address, memory.size_bytes)
        storing.result(20)
        os.close(uffd)


def test_a_protected_page_reports_its_first_write(memory: memfd.Mapping) -> None:
    need_userfaultfd(userfaultfd.TRACK_SYNC)
    with MemoryUser() as user, concurrent.futures.ThreadPoolExecutor(1) as pool:
        user.map(memory)
        user.store(range(PAGES), 1)
        uffd = user.open_uffd(userfaultfd.TRACK_SYNC)
        userfaultfd.register(uffd, user.address, memory.size_bytes, Mode.WP)
        userfaultfd.write_protect(uffd, user.address, memory.size_bytes, protect=True)
        assert user.load([4]) == [[0, 1]]
        storing = pool.submit(user.store, [4], 2)
        while not (faults := userfaultfd.read_faults(uffd)).size:
            pass
        assert faults["flags"][0] & userfaultfd.FAULT_WP
        assert not storing.done()
        userfaultfd.write_protect(uffd, user.address + 4 * PAGE_BYTES, PAGE_BYTES, protect=False)
        storing.result(20)
        user.store([4], 3)
        assert userfaultfd.read_faults(uffd).size == 0
        os.close(uffd)
        user.store(range(PAGES), 4)
