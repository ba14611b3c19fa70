"""What becomes of arriving pages, on a real mapping: before the resume, after it, twice, concurrently, and at the end."""

from __future__ import annotations

import os
import socket
import threading
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from pagefire.dest_host.intake import Intake, percentiles_us
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.errors import LinkLost, RemoteProtocolError
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.wire import Wire
from tests.conftest import MemoryMaker
from tests.support.kernel import need_userfaultfd
from tests.support.memory import allocated_pages, contents
from tests.support.memory_user import MemoryUser

pytestmark = pytest.mark.kernel

PAGES = 256


class Destination:
    """A guest's memory here, armed, with connections that a test feeds by hand."""

    def __init__(self, user: MemoryUser, memory: memfd.Mapping, publisher_kind: type[Publisher] = Publisher) -> None:
        self.memory = memory
        user.map(memory)
        self.uffd = user.open_uffd(userfaultfd.DEMAND_PAGING, keep=True)
        self.publisher = publisher_kind(self.uffd, user.address, memory.size_bytes)
        self.publisher.arm()
        self.ledger = Ledger(memory.pages)
        self.intake = Intake(self.ledger, self.publisher, memory.pages)
        self.completions = 0
        self._connections: list[tuple[Landing, socket.socket, Wire]] = []

    def connection(self) -> tuple[Landing, socket.socket]:
        """Give a landing and the socket that feeds it."""
        ours, theirs = socket.socketpair()
        wire = Wire(theirs)
        self._connections.append((Landing(wire, self.memory, self.ledger), ours, wire))
        return self._connections[-1][:2]

    def resume(self, missing: PageSet) -> None:
        self.intake.resume_begins(missing, self._complete)

    def _complete(self) -> None:
        self.completions += 1

    def close(self) -> None:
        for _, ours, wire in self._connections:
            ours.close()
            wire.close()
        os.close(self.uffd)


@pytest.fixture
def destination(user: MemoryUser, make_memory: MemoryMaker) -> Iterator[Destination]:
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    one = Destination(user, make_memory(PAGES))
    yield one
    one.close()
    user.ask("close_uffd")


def bytes_of(pages: PageSet, value: int) -> bytes:
    return bytes([value]) * pages.size_bytes


def feed(source: socket.socket, contents: bytes) -> threading.Thread:
    thread = threading.Thread(target=source.sendall, args=(contents,))
    thread.start()
    return thread


def take(destination: Destination, pages: PageSet, value: int) -> None:
    landing, source = destination.connection()
    thread = feed(source, bytes_of(pages, value))
    destination.intake.take(pages, landing)
    thread.join()


def test_before_the_resume_pages_land_and_nobody_sees_them(destination: Destination, user: MemoryUser) -> None:
    pages = PageSet.of_runs([0, 40], [3, 80])
    take(destination, pages, 1)
    take(destination, PageSet.span(2, 60), 2)
    landing, _ = destination.connection()
    destination.intake.take_zero(PageSet.of_runs([1, 100], [2, 200]), landing)
    expected = np.zeros(PAGES, np.uint8)
    expected[0], expected[2:60], expected[60:80] = 1, 2, 1
    assert (contents(destination.memory) == expected[:, None]).all()
    # The zero pages that had no contents here stay holes.
    assert allocated_pages(destination.memory) == 80
    assert destination.ledger.received() == (0, 0)
    assert destination.completions == 0
    assert userfaultfd.read_faults(destination.uffd).size == 0


def test_after_the_resume_pages_are_taken_once_and_seen(destination: Destination, user: MemoryUser) -> None:
    take(destination, PageSet.span(0, 40), 1)
    missing = PageSet.of_runs([10, 100], [30, 104])
    destination.resume(missing)
    assert destination.ledger.missing == 24
    take(destination, PageSet.span(10, 30), 2)
    assert destination.completions == 0
    # A second copy, beside new pages, and of pages that were never missing: only the new ones count.
    take(destination, PageSet.of_runs([5, 28, 100], [7, 32, 102]), 3)
    landing, _ = destination.connection()
    single = PageSet.span(102, 103)
    assert all(destination.ledger.request(page) for page in (102, 103))
    destination.intake.take_fetched(single, bytes_of(single, 4), landing)
    destination.intake.take_fetched(single, bytes_of(single, 5), landing)
    assert destination.completions == 0
    destination.intake.take_zero(PageSet.span(103, 104), landing)
    assert destination.completions == 1
    assert destination.ledger.missing == 0
    assert destination.ledger.received() == (2, 22)
    assert destination.ledger.duplicates == 2 + 4 + 1
    destination.publisher.disarm()
    assert user.load([9, 10, 29, 30, 100, 101, 102, 103]) == [[1], [2], [2], [1], [3], [3], [4], [0]]


def test_a_stale_page_that_is_zero_now_reads_zero(destination: Destination, user: MemoryUser) -> None:
    take(destination, PageSet.span(0, 40), 1)
    destination.resume(PageSet.span(0, 50))
    landing, _ = destination.connection()
    destination.intake.take_zero(PageSet.span(0, 50), landing)
    destination.publisher.disarm()
    assert user.load(range(50)) == [[0]] * 50
    assert destination.completions == 1


def test_a_guests_stores_are_not_overwritten(destination: Destination, user: MemoryUser) -> None:
    destination.resume(PageSet.span(0, 32))
    take(destination, PageSet.span(0, 20), 1)
    destination.publisher.publish(0, 20)
    user.store([3], 9)
    take(destination, PageSet.span(0, 32), 2)
    destination.publisher.disarm()
    assert user.load([2, 3, 4, 20]) == [[1], [1, 9], [1], [2]]


def test_waits_are_measured_until_the_page_is_published(destination: Destination) -> None:
    destination.resume(PageSet.span(0, 4))
    destination.intake.note_wait(2, 1)
    destination.intake.note_wait(2, 10**18)
    assert destination.intake.waits_ns == []
    take(destination, PageSet.span(0, 4), 1)
    # From the first who waited.
    assert len(destination.intake.waits_ns) == 1
    assert destination.intake.waits_ns[0] > 0
    destination.intake.settle_waits(0, 4)
    assert len(destination.intake.waits_ns) == 1


def test_what_comes_is_shown_to_who_waits_for_it(destination: Destination, user: MemoryUser) -> None:
    missing = PageSet.of_runs([0, 40, 100], [3, 55, 228])
    destination.resume(missing)
    for page in (2, 101, 230):
        destination.intake.note_wait(page, 1)
    take(destination, missing, 1)
    assert destination.ledger.unpublished(missing) == missing - PageSet.of_pages([2, 101])
    assert destination.intake.waited_for() == [230]
    assert len(destination.intake.waits_ns) == 2
    assert destination.completions == 1
    destination.publisher.disarm()
    assert user.load([0, 2, 40, 100]) == [[1]] * 4


def test_pages_from_many_connections_are_each_taken_once(destination: Destination, user: MemoryUser) -> None:
    destination.resume(PageSet.span(0, PAGES))
    order = np.random.default_rng(5)
    threads = [
        threading.Thread(
            target=lambda starts: [take(destination, PageSet.span(start, start + 8), 7) for start in starts],
            args=(order.permutation(np.arange(0, PAGES, 8)).tolist(),),
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert destination.completions == 1
    assert destination.ledger.received() == (0, PAGES)
    assert destination.ledger.duplicates == 3 * PAGES
    destination.publisher.disarm()
    assert user.load(range(PAGES)) == [[7]] * PAGES


class SlowPublisher(Publisher):
    """Publishes for real, but the first page only when it is told to."""

    def __init__(self, uffd: int, address: int, memory_bytes: int) -> None:
        super().__init__(uffd, address, memory_bytes)
        self.publishing, self.go_on = threading.Event(), threading.Event()

    def publish(self, start: int, stop: int) -> None:
        if start == 0:
            self.publishing.set()
            assert self.go_on.wait(20)
        super().publish(start, stop)


def test_it_is_not_complete_while_somebody_publishes(user: MemoryUser, make_memory: MemoryMaker) -> None:
    """Completion makes the script close the userfaultfd: nobody may use its number any more."""
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    destination = Destination(user, make_memory(PAGES), SlowPublisher)
    publisher = destination.publisher
    assert isinstance(publisher, SlowPublisher)
    destination.resume(PageSet.span(0, 32))
    destination.intake.note_wait(0, 1)
    slow = threading.Thread(target=take, args=(destination, PageSet.span(0, 16), 1))
    slow.start()
    assert publisher.publishing.wait(20)
    take(destination, PageSet.span(16, 32), 1)
    assert destination.completions == 0
    publisher.go_on.set()
    slow.join()
    assert destination.completions == 1
    destination.close()
    user.ask("close_uffd")


@pytest.mark.parametrize("resumed", [False, True])
def test_pages_outside_the_memory_are_refused(destination: Destination, resumed: bool) -> None:
    if resumed:
        destination.resume(PageSet.span(0, 4))
    landing, _ = destination.connection()
    outside = PageSet.span(PAGES - 1, PAGES + 1)
    for take_them in (
        lambda: destination.intake.take(outside, landing),
        lambda: destination.intake.take_zero(outside, landing),
        lambda: destination.intake.take_fetched(outside, bytes_of(outside, 1), landing),
        lambda: destination.intake.resume_begins(outside, lambda: None),
    ):
        with pytest.raises(RemoteProtocolError, match=f"outside the guest's memory: page {PAGES}"):
            take_them()
    assert allocated_pages(destination.memory) == 0


def test_zero_pages_without_end_take_no_memory(make_memory: MemoryMaker) -> None:
    """They cost the peer a few bytes, so they must not cost us eight for each page of a guest that may have 6 TiB."""
    memory = make_memory(1 << 24)
    ledger = Ledger(memory.pages)
    intake = Intake(ledger, Publisher(-1, 0, 0), memory.pages)
    ours, theirs = socket.socketpair()
    landing = Landing(Wire(theirs), memory, ledger)
    tracemalloc.start()
    intake.take_zero(PageSet.span(0, memory.pages), landing)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 << 20
    ours.close()
    theirs.close()


def test_a_connection_that_ends_in_a_frame_leaves_the_page_unreceived(destination: Destination) -> None:
    destination.resume(PageSet.span(0, 40))
    for pages in (PageSet.span(0, 4), PageSet.span(10, 40)):
        landing, source = destination.connection()
        source.sendall(b"x" * (PAGE_BYTES + 10))
        source.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LinkLost, match="in the middle of a frame"):
            destination.intake.take(pages, landing)
    assert destination.ledger.missing == 40
    assert all(destination.ledger.publishable_around(page, 16) == (page, page) for page in range(40))
    assert not any(destination.ledger.is_zero(page) for page in range(40))


def test_percentiles() -> None:
    assert percentiles_us([]) == []
    assert percentiles_us([1000, 2000, 3000]) == pytest.approx([2.0, 2.98, 3.0])
