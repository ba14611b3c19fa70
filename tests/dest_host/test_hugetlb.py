"""The destination on hugetlb: pages of 4 KiB arrive in any pieces, and the guest sees 2 MiB at a time, each when it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.messages import Fetch
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from tests.support.huge_pages import hugetlb_pool
from tests.support.kernel import need_userfaultfd
from tests.support.memory import fresh
from tests.support.memory_user import MemoryUser
from tests.support.served_guest import ServedGuest
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.root]

GRANULES = 4
#: Two whole granules, and a part of the fourth, as a source of 4 KiB pages has it.
MISSING = PageSet.of_runs([512, 1600], [1536, 1700])


class Served(ServedGuest):
    """What is here holds 1, what arrives 2; fetches are noted, and answered by the test."""

    def __init__(self, user: MemoryUser, memory: memfd.Mapping) -> None:
        super().__init__(user, memory, PageSet.span(0, memory.pages), MISSING)
        self.fetched = PageSet.empty()

    def serve(self) -> None:
        self.start(self._note())

    async def _note(self) -> None:
        while True:
            message = (await self.source.receive()).message
            assert isinstance(message, Fetch)
            self.fetched |= message.pages

    async def arrive(self, pages: PageSet) -> None:
        await asyncio.to_thread(self.intake.take_fetched, pages, bytes([2]) * pages.size_bytes, self.landing)


@pytest.fixture
async def served(user: MemoryUser) -> AsyncIterator[Served]:
    need_userfaultfd(userfaultfd.DEMAND_PAGING_HUGETLB)
    with hugetlb_pool(GRANULES * GRANULE_PAGES * PAGE_BYTES):
        memory = fresh(GRANULES * GRANULE_PAGES, hugetlb=True)
        one = Served(user, memory)
        one.serve()
        yield one
        await one.close()
        user.ask("close_uffd")
        user.unmap()
        memory.close()


async def load(user: MemoryUser, pages: list[int]) -> list[list[int]]:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.to_thread(user.load, pages, 1)


async def test_a_file_on_hugetlb_has_no_holes(served: Served) -> None:
    assert served.memory.unit_pages == GRANULE_PAGES
    assert memfd.data_extents(served.memory.fd) == PageSet.span(0, served.memory.pages)


async def test_what_is_here_is_shown_without_a_fetch(served: Served, user: MemoryUser) -> None:
    assert await load(user, [0, 511]) == [[1], [1]]
    await eventually(lambda: served.handler.minor_faults == 1)
    assert not served.fetched


async def test_a_fault_fetches_all_that_its_2_mib_lack(served: Served, user: MemoryUser) -> None:
    loading = asyncio.create_task(load(user, [700]))
    await eventually(lambda: served.fetched == PageSet.span(512, 1024))
    await served.arrive(PageSet.span(512, 1024))
    assert await loading == [[2]]
    assert served.ledger.received() == (512, 0)
    assert served.ledger.missing == MISSING.pages - 512


async def test_of_2_mib_that_are_mostly_here_only_the_rest_is_fetched(served: Served, user: MemoryUser) -> None:
    loading = asyncio.create_task(load(user, [1540, 1650]))
    await eventually(lambda: served.fetched == PageSet.span(1600, 1700))
    await served.arrive(PageSet.span(1600, 1700))
    assert await loading == [[1], [2]]


async def test_2_mib_are_shown_when_their_last_page_is_here(served: Served, user: MemoryUser) -> None:
    """The pieces come out of order, some before anybody waits, some twice; a waiting vCPU sees none of them before all."""
    await served.arrive(PageSet.span(900, 1200))
    loading = asyncio.create_task(load(user, [950, 1023, 512]))
    await eventually(lambda: served.fetched == PageSet.span(512, 900))
    await served.arrive(PageSet.span(512, 600))
    await served.arrive(PageSet.of_runs([550, 700], [650, 950]))
    await asyncio.sleep(0.05)
    assert not loading.done()
    await served.arrive(PageSet.span(650, 700))
    assert await loading == [[2], [2], [2]]
    assert served.ledger.duplicates == 50 + 50
    await asyncio.to_thread(user.store, [1023], 9)
    await served.arrive(PageSet.span(1000, 1100))
    assert await load(user, [1023]) == [[2, 9]]


async def test_zeros_arrive_in_pages_too(served: Served, user: MemoryUser) -> None:
    await served.arrive(PageSet.span(512, 1000))
    loading = asyncio.create_task(load(user, [512, 1010]))
    await eventually(lambda: served.fetched == PageSet.span(1000, 1024))
    await asyncio.to_thread(served.intake.take_zero, PageSet.span(1000, 1024), served.landing)
    assert await loading == [[2], [0]]


async def test_it_is_complete_when_every_page_is_here(served: Served, user: MemoryUser) -> None:
    await served.arrive(PageSet.span(512, 1536))
    assert not served.complete.is_set()
    await served.arrive(PageSet.span(1600, 1700))
    async with asyncio.timeout(PATIENCE_S):
        await served.complete.wait()
    assert served.errors == []
    served.publisher.disarm()
    pages = list(range(0, served.memory.pages, 100))
    assert await load(user, pages) == [[2] if page in MISSING else [1] for page in pages]
    assert not served.fetched
