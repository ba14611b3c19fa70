"""A real process that reads a registered mapping: pages that are here, zero, and missing, and how often each is fetched."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from pagefire.dest_host.fault_handler import PUBLISH_WINDOW_PAGES
from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.errors import GuestError, LinkLost
from pagefire.protocol.messages import Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from tests.conftest import MemoryMaker
from tests.support.kernel import need_userfaultfd
from tests.support.memory_user import MemoryUser
from tests.support.served_guest import ServedGuest
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.kernel

PAGES = 512
CURRENT = PageSet.span(0, 100)
MISSING = PageSet.of_runs([100, 300], [200, 310])
ZERO_AT_SOURCE = PageSet.span(300, 310)


class Served(ServedGuest):
    """Pages 0-99 are here, 100-199 and 300-309 are missing, all others are holes. Answers fetches itself."""

    def __init__(self, user: MemoryUser, memory: memfd.Mapping) -> None:
        super().__init__(user, memory, CURRENT, MISSING)
        self.fetched: list[int] = []
        #: Held back until it is set.
        self.answering = asyncio.Event()
        self.answering.set()

    def serve(self) -> None:
        self.start(self._answer())

    async def _answer(self) -> None:
        while True:
            message = (await self.source.receive()).message
            assert isinstance(message, Fetch)
            for page in message.pages.page_numbers().tolist():
                self.fetched.append(page)
                await self.answering.wait()
                single = PageSet.span(page, page + 1)
                if page in ZERO_AT_SOURCE:
                    await self.source.send(ZeroPages(single))
                else:
                    await self.source.send(Pages(single), bytes([2]) * PAGE_BYTES)


@pytest.fixture
async def served(user: MemoryUser, make_memory: MemoryMaker) -> AsyncIterator[Served]:
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    one = Served(user, make_memory(PAGES))
    one.serve()
    yield one
    await one.close()
    user.ask("close_uffd")


async def load(user: MemoryUser, pages: list[int], threads: int = 1) -> list[list[int]]:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.to_thread(user.load, pages, threads)


async def test_pages_that_are_here_are_published_with_their_neighbours(served: Served, user: MemoryUser) -> None:
    assert await load(user, list(range(100))) == [[1]] * 100
    # Counted behind the page: whoever waited may be faster.
    await eventually(lambda: served.handler.minor_faults == -(-100 // PUBLISH_WINDOW_PAGES))
    assert served.fetched == []
    assert served.intake.waits_ns == []


async def test_holes_are_zero_without_a_fetch(served: Served, user: MemoryUser) -> None:
    assert await load(user, [200, 250, 511]) == [[0]] * 3
    await asyncio.to_thread(user.store, [260], 3)
    assert await load(user, [260]) == [[0, 3]]
    await eventually(lambda: served.handler.minor_faults == 4)
    assert served.fetched == []


async def test_missing_pages_are_fetched(served: Served, user: MemoryUser) -> None:
    assert await load(user, [150, 151, 305]) == [[2], [2], [0]]
    assert served.fetched == [150, 151, 305]
    assert served.ledger.received() == (3, 0)
    await eventually(lambda: len(served.intake.waits_ns) == 3)
    assert min(served.intake.waits_ns) > 0
    assert served.handler.minor_faults == 0
    # The neighbours are neither here nor asked for.
    assert served.ledger.missing == MISSING.pages - 3


async def test_a_page_is_fetched_once_however_many_wait(served: Served, user: MemoryUser) -> None:
    served.answering.clear()
    loading = asyncio.create_task(load(user, [120, 309], threads=8))
    await eventually(lambda: served.fetched == [120])
    await asyncio.sleep(0.02)
    assert not loading.done()
    served.answering.set()
    assert await loading == [[2], [0]]
    assert served.fetched == [120, 309]
    assert served.ledger.received()[0] == 2
    assert served.ledger.duplicates == 0


async def test_a_push_answers_who_waits(served: Served, user: MemoryUser) -> None:
    served.answering.clear()
    loading = asyncio.create_task(load(user, [130]))
    await eventually(lambda: served.fetched == [130])
    pushed = PageSet.span(100, 200)
    await asyncio.to_thread(served.intake.take_fetched, pushed, bytes([2]) * pushed.size_bytes, served.landing)
    assert await loading == [[2]]
    await eventually(lambda: len(served.intake.waits_ns) == 1)
    # The fetched copy comes too late and is not applied.
    await asyncio.to_thread(user.store, [130], 9)
    served.answering.set()
    await eventually(lambda: served.ledger.duplicates == 1)
    assert await load(user, [130]) == [[2, 9]]


async def test_a_store_to_a_missing_page_comes_after_its_contents(served: Served, user: MemoryUser) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.to_thread(user.store, [140, 306, 7], 8)
    assert await load(user, [140, 306, 7]) == [[2, 8], [0, 8], [1, 8]]
    assert served.fetched == [140, 306]


async def test_everything_can_be_fetched(served: Served, user: MemoryUser) -> None:
    pages = list(range(PAGES))
    random.Random(1).shuffle(pages)
    expected = [
        [1] if page in CURRENT else [2] if page in MISSING and page not in ZERO_AT_SOURCE else [0] for page in pages
    ]
    assert await load(user, pages, threads=3) == expected
    async with asyncio.timeout(PATIENCE_S):
        await served.complete.wait()
    assert sorted(served.fetched) == MISSING.page_numbers().tolist()
    assert served.errors == []
    served.publisher.disarm()
    assert await load(user, pages) == expected


async def test_a_page_that_arrives_between_two_looks_settles_its_wait(served: Served, user: MemoryUser) -> None:
    """The handler looks, the page arrives and is published, and only then is the wait noted: it must not be left behind."""
    real = served.intake.note_wait
    for page, contents in ((160, bytes([2]) * PAGE_BYTES), (307, None)):
        single = PageSet.span(page, page + 1)

        def late(waiting: int, since_ns: int, single: PageSet = single, contents: bytes | None = contents) -> None:
            if contents is None:
                served.intake.take_zero(single, served.landing)
            else:
                served.intake.take_fetched(single, contents, served.landing)
            real(waiting, since_ns)

        served.intake.note_wait = late  # type: ignore[method-assign]
        assert await load(user, [page]) == [[0] if contents is None else [2]]
    await eventually(lambda: len(served.intake.waits_ns) == 2)
    assert served.intake._waiting == {}
    assert served.fetched == []


async def test_the_next_link_is_asked_for_what_is_waited_for(served: Served, user: MemoryUser) -> None:
    served.answering.clear()
    loading = asyncio.create_task(load(user, [120]))
    await eventually(lambda: served.fetched == [120])
    for task in served.tasks:
        task.cancel()
    served.source.close()
    await eventually(lambda: len(served.ends) == 1)
    assert isinstance(served.ends[0], LinkLost)
    served.handler.ask_by(None)
    served.ledger.forget_unfinished()
    asked: list[int] = []
    served.handler.ask_by(asked.extend)
    assert asked == [120]

    async def arrive(page: int) -> None:
        single = PageSet.span(page, page + 1)
        await asyncio.to_thread(served.intake.take_fetched, single, bytes([2]) * PAGE_BYTES, served.landing)

    await arrive(120)
    assert await loading == [[2]]
    # While there is no link: who needs no missing page goes on, who needs one waits, and nobody is asked.
    served.handler.ask_by(None)
    assert await load(user, [7, 200]) == [[1], [0]]
    loading = asyncio.create_task(load(user, [121]))
    await eventually(lambda: served.intake.waited_for() == [121])
    assert asked == [120]
    served.handler.ask_by(asked.extend)
    assert asked == [120, 121]
    await arrive(121)
    assert await loading == [[2]]
    assert served.errors == []


async def test_a_link_that_breaks_under_a_fault_is_left_to_whoever_reads_it(served: Served, user: MemoryUser) -> None:
    def lost(_pages: list[int]) -> None:
        raise LinkLost("the link is gone")

    served.handler.ask_by(lost)
    loading = asyncio.create_task(load(user, [150]))
    await eventually(lambda: served.intake.waited_for() == [150])
    assert served.errors == []
    served.ledger.forget_unfinished()
    served.handler.ask_by(served.connection.ask)
    assert await loading == [[2]]


async def test_an_error_stops_the_handler_and_is_told(make_memory: MemoryMaker) -> None:
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    memory = make_memory(PAGES)
    with MemoryUser() as short_lived:
        served = Served(short_lived, memory)
        loading = asyncio.create_task(asyncio.to_thread(short_lived.load, [3]))
        await eventually(lambda: loading.done() or userfaultfd.read_faults(served.uffd).size)
        short_lived.kill()
        with pytest.raises((AssertionError, OSError)):
            await loading
    served.handler.start()
    served.handler._serve()
    assert served.errors == []
    with pytest.raises(GuestError, match="the guest ended"):
        served.handler._resolve(3, 0)
    await served.close()
