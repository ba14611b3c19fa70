"""Publishing to a real mapping of another process: what is there already, what is not, and what the guest then reads."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.errors import GuestError
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from tests.conftest import MemoryMaker
from tests.support.kernel import need_userfaultfd
from tests.support.memory import allocated_pages
from tests.support.memory_user import MemoryUser

pytestmark = pytest.mark.kernel

PAGES = 64
Armed = tuple[memfd.Mapping, Publisher, int]


@pytest.fixture
def arm(user: MemoryUser, make_memory: MemoryMaker) -> Iterator[Callable[[], Armed]]:
    """Give memory whose pages the other process sees only when they are published, with its publisher and userfaultfd."""
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    opened: list[int] = []

    def make() -> Armed:
        memory = make_memory(PAGES)
        user.map(memory)
        opened.append(user.open_uffd(userfaultfd.DEMAND_PAGING, keep=True))
        publisher = Publisher(opened[-1], user.address, memory.size_bytes)
        publisher.arm()
        return memory, publisher, opened[-1]

    yield make
    for uffd in opened:
        os.close(uffd)
    user.ask("close_uffd")


def put(memory: memfd.Mapping, pages: range, value: int) -> None:
    memory.array[pages.start * PAGE_BYTES : pages.stop * PAGE_BYTES] = value


def test_published_pages_are_read_without_a_fault(arm: Callable[[], Armed], user: MemoryUser) -> None:
    memory, publisher, uffd = arm()
    put(memory, range(10), 7)
    publisher.publish(0, 10)
    assert user.load(range(10)) == [[7]] * 10
    assert userfaultfd.read_faults(uffd).size == 0


def test_present_absent_and_mapped_pages_in_one_run(arm: Callable[[], Armed], user: MemoryUser) -> None:
    memory, publisher, uffd = arm()
    put(memory, range(4), 1)
    put(memory, range(8, 12), 2)
    put(memory, range(14, 16), 3)
    # Mapped already, at the beginning, in the middle and at the end of what follows.
    publisher.publish(0, 2)
    publisher.publish(9, 10)
    publisher.publish(15, 16)
    publisher.publish(0, 16)
    publisher.publish(0, 16)
    assert user.load(range(16)) == [[1]] * 4 + [[0]] * 4 + [[2]] * 4 + [[0]] * 2 + [[3]] * 2
    assert userfaultfd.read_faults(uffd).size == 0
    assert allocated_pages(memory) == 16


def test_a_set_is_published_as_its_runs_are(arm: Callable[[], Armed], user: MemoryUser) -> None:
    memory, publisher, uffd = arm()
    put(memory, range(0, 12), 1)
    put(memory, range(20, 24), 2)
    put(memory, range(40, 48), 3)
    # Mapped already: all of a run, its beginning, its middle; and a run of which the file holds a half.
    for start, stop in ((0, 2), (4, 5), (42, 44)):
        publisher.publish(start, stop)
    pages = PageSet.of_runs([0, 4, 10, 18, 40], [2, 8, 12, 24, 48])
    publisher.publish_all(pages)
    publisher.publish_all(pages)
    publisher.publish_all(PageSet.empty())
    assert user.load(pages.page_numbers().tolist()) == [[1]] * 8 + [[0]] * 2 + [[2]] * 4 + [[3]] * 8
    assert userfaultfd.read_faults(uffd).size == 0
    publisher.disarm()
    publisher.publish_all(PageSet.of_runs([2, 30], [3, 31]))
    # A daemon that takes the place of one that died right after it has released the guest does so again.
    userfaultfd.wake(publisher._uffd, publisher._address, publisher._memory_bytes)
    publisher.disarm()


def test_zero_pages(arm: Callable[[], Armed], user: MemoryUser) -> None:
    memory, publisher, uffd = arm()
    publisher.publish_zero(3)
    publisher.publish_zero(3)
    assert user.load([3]) == [[0]]
    user.store([3], 5)
    publisher.publish_zero(3)
    assert user.load([3]) == [[0, 5]]
    # Where the file holds a page after all, that is published: nothing of it is lost.
    put(memory, range(4, 5), 9)
    publisher.publish_zero(4)
    assert user.load([4]) == [[9]]
    assert userfaultfd.read_faults(uffd).size == 0


@pytest.mark.parametrize("how", ["publish", "publish_zero", "disarm", "mapped already"])
def test_whoever_waits_is_woken(arm: Callable[[], Armed], user: MemoryUser, how: str) -> None:
    memory, publisher, uffd = arm()
    if how != "publish_zero":
        put(memory, range(5, 6), 4)
    if how == "mapped already":
        publisher.publish(5, 6)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(user.load, [5], 3)
        if how != "mapped already":
            while not (faults := userfaultfd.read_faults(uffd)).size:
                pass
            assert faults["address"][0] == user.address + 5 * PAGE_BYTES
            assert not reading.done()
        {"publish_zero": lambda: publisher.publish_zero(5), "disarm": publisher.disarm}.get(
            how, lambda: publisher.publish(5, 6)
        )()
        assert reading.result(20) == [[0 if how == "publish_zero" else 4]]


def test_many_threads_publish_the_same(arm: Callable[[], Armed], user: MemoryUser) -> None:
    memory, publisher, uffd = arm()
    put(memory, range(PAGES), 6)
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            for start in range(0, PAGES, 8):
                publisher.publish(start, start + 8)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert user.load(range(PAGES)) == [[6]] * PAGES
    assert userfaultfd.read_faults(uffd).size == 0


def test_publishing_after_the_end_does_nothing(arm: Callable[[], Armed], user: MemoryUser) -> None:
    memory, publisher, _ = arm()
    put(memory, range(3), 1)
    publisher.disarm()
    publisher.publish(0, 5)
    publisher.publish_zero(4)
    assert user.load(range(5)) == [[1]] * 3 + [[0]] * 2
    assert {"um", "ui"} & user.memory_flags() == set()


def test_a_guest_that_is_gone_is_named(make_memory: MemoryMaker) -> None:
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    memory = make_memory(PAGES)
    with MemoryUser() as short_lived:
        short_lived.map(memory)
        uffd = short_lived.open_uffd(userfaultfd.DEMAND_PAGING, keep=True)
        publisher = Publisher(uffd, short_lived.address, memory.size_bytes)
        publisher.arm()
        put(memory, range(3), 1)
    for publish in (
        lambda: publisher.publish(0, 3),
        lambda: publisher.publish_all(PageSet.of_runs([0, 2], [1, 3])),
        lambda: publisher.publish_zero(5),
    ):
        with pytest.raises(GuestError, match="the guest ended while its pages were arriving"):
            publish()
    os.close(uffd)


def test_what_nobody_expected_is_an_os_error(make_memory: MemoryMaker) -> None:
    publisher = Publisher(make_memory(1).fd, 0, PAGE_BYTES)
    with pytest.raises(OSError, match="UFFDIO_CONTINUE"):
        publisher.publish(0, 1)
    with pytest.raises(OSError, match="UFFDIO_CONTINUE"):
        publisher.publish_all(PageSet.span(0, 1))
    with pytest.raises(OSError, match="UFFDIO_ZEROPAGE"):
        publisher.publish_zero(0)
