"""What remains after the resume: each page leaves once, whoever takes it."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.errors import LinkLost
from pagefire.protocol.messages import Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.tasks import beside
from pagefire.source_host import postcopy
from pagefire.source_host.postcopy import PUSH_PAGES, Remaining
from tests.source_host.conftest import MemoryMaker
from tests.support.memory import contents
from tests.support.page_link import PageLink, fault_streams
from tests.support.waiting import eventually

NONE = PageSet.empty()
numbers = st.sets(st.integers(0, 2000))


def drain(remaining: Remaining) -> list[PageSet]:
    taken = []
    while batch := remaining.take_next():
        taken.append(batch)
    return taken


@given(numbers, numbers, st.lists(st.sets(st.integers(0, 2100)), max_size=4))
def test_each_page_leaves_once(named: set[int], recent: set[int], fetched: list[set[int]]) -> None:
    remaining = Remaining(PageSet.of_pages(list(named)), PageSet.of_pages(list(recent)))
    left = set(named)
    for wanted in fetched:
        taken = remaining.take(PageSet.of_pages(list(wanted)))
        assert set(taken.page_numbers().tolist()) == wanted & left
        left -= wanted
        assert remaining.count == len(left)
        assert set(remaining.named(PageSet.of_pages(list(wanted))).page_numbers().tolist()) == wanted & named
    pushed = [page for batch in drain(remaining) for page in batch.page_numbers().tolist()]
    assert sorted(pushed) == sorted(left)
    assert remaining.count == 0
    assert not remaining.take(PageSet.of_pages(list(named)))
    # What was written last goes first.
    assert all(page in recent for page in pushed[: len(left & recent)])


def test_a_push_takes_so_much_at_a_time() -> None:
    batches = drain(Remaining(PageSet.span(10, 10 + 3 * PUSH_PAGES + 5), NONE))
    assert [batch.pages for batch in batches] == [PUSH_PAGES] * 3 + [5]


def test_many_threads_take_each_page_once() -> None:
    named = PageSet.of_pages(np.flatnonzero(np.random.default_rng(1).integers(0, 3, 60_000)))
    remaining = Remaining(named, PageSet.span(20_000, 21_000))
    taken: list[list[int]] = [[] for _ in range(6)]
    start = threading.Barrier(6)

    def push(mine: list[int]) -> None:
        start.wait()
        while batch := remaining.take_next():
            mine += batch.page_numbers().tolist()

    def fetch(mine: list[int], seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait()
        for _ in range(400):
            mine += remaining.take(PageSet.of_pages(random.integers(0, 60_000, 20))).page_numbers().tolist()

    threads = [threading.Thread(target=push, args=(mine,)) for mine in taken[:3]]
    threads += [threading.Thread(target=fetch, args=(mine, seed)) for seed, mine in enumerate(taken[3:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(page for mine in taken for page in mine) == named.page_numbers().tolist()
    assert remaining.count == 0


async def test_every_fetch_is_answered_and_every_page_moves(make_memory: MemoryMaker) -> None:
    here, there = make_memory(4096), make_memory(4096)
    named = PageSet.of_pages(np.flatnonzero(np.random.default_rng(2).integers(0, 2, 4096)))
    words = here.array.view(np.uint64).reshape(-1, 512)
    words[named.page_numbers()] = named.page_numbers()[:, None] + 1
    zero = named.page_numbers()[::7]
    words[zero] = 0
    remaining = Remaining(named, NONE)
    ours, theirs = fault_streams()
    fetched: list[int] = []
    # Some before the push has begun, some when it has taken them already, and one that nobody named.
    asked = named.page_numbers()[::5].tolist()
    foreign = next(page for page in range(4096) if page not in named)

    async def fetch() -> None:
        await theirs.send(Fetch(PageSet.of_pages([asked[0], foreign])))
        for page in asked[1:]:
            await theirs.send(Fetch(PageSet.span(page, page + 1)))
        await eventually(lambda: not remaining.count and len(fetched) == len(asked))
        await theirs.send(Fetch(PageSet.span(asked[0], asked[0] + 1)))
        await eventually(lambda: len(fetched) > len(asked))

    async def receive() -> None:
        while True:
            arrival = await theirs.receive()
            match arrival.message:
                case Pages(pages):
                    contents = await theirs.receive_payload(arrival.payload_bytes)
                    page = int(pages.starts[0])
                    assert page not in zero
                    there.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = np.frombuffer(contents, np.uint8)
                case ZeroPages(pages):
                    assert int(pages.starts[0]) in zero
            assert pages.pages == 1
            fetched.append(int(pages.starts[0]))

    async with PageLink(here, there, streams=2) as link:
        receiving = asyncio.create_task(receive())
        async with asyncio.timeout(30):
            await beside(fetch(), postcopy.push(remaining, link.streams), postcopy.serve_faults(remaining, ours, here))
            await link.send_round(NONE)
        receiving.cancel()
        pushed_pages = sum(stream.sent_pages for stream in link.streams)
        assert fetched == [*asked, asked[0]]
        assert named.pages - len(asked) <= pushed_pages <= named.pages
    ours.close()
    theirs.close()
    assert np.array_equal(contents(here), contents(there))


async def test_a_lost_fault_connection_ends_the_server(make_memory: MemoryMaker) -> None:
    ours, theirs = fault_streams()
    theirs.close()
    with pytest.raises(LinkLost):
        await postcopy.serve_faults(Remaining(PageSet.span(0, 3), NONE), ours, make_memory(8))
    ours.close()
