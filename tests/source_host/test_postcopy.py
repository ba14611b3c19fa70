"""What remains after the resume: each page leaves once, whoever takes it."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.errors import LinkLost
from pagefire.protocol.messages import Fetch, Pages, ZeroPages
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.frame_stream import FrameStream
from pagefire.protocol.transport.tasks import beside
from pagefire.source_host import postcopy
from pagefire.source_host.fault_stream import FaultStream
from pagefire.source_host.postcopy import Remaining
from tests.conftest import MemoryMaker
from tests.support.memory import contents
from tests.support.page_link import PageLink, fault_ends
from tests.support.waiting import eventually

NONE = PageSet.empty()
AT_ONCE = 100
numbers = st.sets(st.integers(0, 2000))


def drain(remaining: Remaining) -> list[PageSet]:
    taken = []
    while batch := remaining.take_next(AT_ONCE):
        taken.append(batch)
    return taken


@given(numbers, st.lists(st.sets(st.integers(0, 2100)), max_size=4))
def test_each_page_leaves_once(named: set[int], fetched: list[set[int]]) -> None:
    remaining = Remaining(PageSet.of_pages(list(named)))
    left = set(named)
    for wanted in fetched:
        # What has left the set is sent again if it is asked for; what was never in it is not.
        assert set(remaining.fetch(PageSet.of_pages(list(wanted)))) == wanted & named
        left -= wanted
        assert remaining.count == len(left)
    pushed = [page for batch in drain(remaining) for page in batch.page_numbers().tolist()]
    assert pushed == sorted(left)
    assert remaining.count == 0


def test_a_push_takes_so_much_at_a_time() -> None:
    remaining = Remaining(PageSet.span(10, 10 + 3 * AT_ONCE + 5))
    assert [batch.pages for batch in drain(remaining)] == [AT_ONCE] * 3 + [5]


def test_what_a_fetch_took_is_left_out_of_its_batch() -> None:
    remaining = Remaining(PageSet.span(0, 2 * AT_ONCE))
    remaining.fetch(PageSet.of_runs([5, AT_ONCE], [7, 2 * AT_ONCE]))
    assert drain(remaining) == [PageSet.of_runs([0, 7], [5, AT_ONCE])]


@pytest.mark.parametrize("window_pages", [1, 16, 64])
def test_what_lies_around_a_fault_goes_next(window_pages: int) -> None:
    remaining = Remaining(PageSet.of_runs([0, 500], [400, 1000]), prefetch_pages=window_pages)
    remaining.take_next(100)
    remaining.fetch(PageSet.of_pages([410, 505]))
    remaining.fetch(PageSet.of_pages([320]))
    # The later fault first, the earlier one's window as far as it is in the set, then on in ascending order.
    windows = []
    for fault in (320, 505):
        first = fault // window_pages * window_pages
        window = PageSet.span(first, first + window_pages) & PageSet.of_runs([0, 500], [400, 1000])
        if window := window - PageSet.span(fault, fault + 1):
            windows.append(window)
    assert [remaining.take_next(AT_ONCE) for _ in windows] == windows
    assert int(remaining.take_next(AT_ONCE).starts[0]) == 100
    drain(remaining)
    assert remaining.count == 0


def test_nothing_goes_next_unless_it_is_asked_for() -> None:
    remaining = Remaining(PageSet.span(0, 1000))
    remaining.fetch(PageSet.of_pages([505]))
    assert remaining.take_next(AT_ONCE) == PageSet.span(0, AT_ONCE)


@given(numbers, st.lists(st.integers(0, 2000), max_size=20), st.sampled_from([1, 16, 512]))
def test_each_page_leaves_once_with_what_lies_around_faults(named: set[int], faults: list[int], window: int) -> None:
    remaining, left, pushed = Remaining(PageSet.of_pages(list(named)), prefetch_pages=window), set(named), []
    for fault in faults:
        remaining.fetch(PageSet.of_pages([fault]))
        left.discard(fault)
        taken = set(remaining.take_next(AT_ONCE).page_numbers().tolist())
        assert taken <= left
        left -= taken
        pushed += taken
    assert {page for batch in drain(remaining) for page in batch.page_numbers().tolist()} == left
    assert remaining.count == 0


def test_many_threads_push_each_page_at_most_once() -> None:
    named = PageSet.of_pages(np.flatnonzero(np.random.default_rng(1).integers(0, 3, 60_000)))
    remaining = Remaining(named)
    first = remaining.fetch(PageSet.span(0, 100))
    pushed: list[list[int]] = [[] for _ in range(3)]
    fetched: list[set[int]] = [set() for _ in range(3)]
    start = threading.Barrier(6)

    def push(mine: list[int]) -> None:
        start.wait()
        while batch := remaining.take_next(AT_ONCE):
            mine += batch.page_numbers().tolist()

    def fetch(mine: set[int], seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait()
        for _ in range(400):
            mine |= set(remaining.fetch(PageSet.of_pages(random.integers(0, 60_000, 20))))

    threads = [threading.Thread(target=push, args=(mine,)) for mine in pushed]
    threads += [threading.Thread(target=fetch, args=(mine, seed)) for seed, mine in enumerate(fetched)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers_pushed = [page for mine in pushed for page in mine]
    assert len(numbers_pushed) == len(set(numbers_pushed))
    assert not set(numbers_pushed) & set(first)
    everything = set(numbers_pushed) | set(first) | set().union(*fetched)
    assert everything == set(named.page_numbers().tolist())
    assert remaining.count == 0


def test_a_fetch_costs_itself_and_not_the_set() -> None:
    # As many runs as pages: an algebra over all of them takes a thousand times as long as looking one page up.
    remaining = Remaining(PageSet.of_pages(np.arange(0, 300_000, 3)))
    single = PageSet.span(300, 301)
    began = time.perf_counter()
    assert PageSet.of_pages(np.arange(0, 300_000, 3)) & single == single
    whole_s = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(10):
        assert remaining.fetch(single) == [300]
    assert time.perf_counter() - began < whole_s


async def test_every_fetch_is_answered_and_every_page_moves(make_memory: MemoryMaker) -> None:
    here, there = make_memory(4096), make_memory(4096)
    named = PageSet.of_pages(np.flatnonzero(np.random.default_rng(2).integers(0, 2, 4096)))
    words = here.array.view(np.uint64).reshape(-1, 512)
    words[named.page_numbers()] = named.page_numbers()[:, None] + 1
    zero = named.page_numbers()[::7]
    words[zero] = 0
    remaining = Remaining(named)
    ours, theirs = fault_ends()
    source, theirs = FaultStream(*ours, here), FrameStream(*theirs)
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
            source.serve(remaining)
            await beside(fetch(), postcopy.push(remaining, link.streams), source.ended())
            await link.send_round(NONE)
        receiving.cancel()
        pushed_pages = sum(stream.sent_pages for stream in link.streams)
        assert fetched == [*asked, asked[0]]
        assert named.pages - len(asked) <= pushed_pages <= named.pages
    await source.close()
    theirs.close()
    assert np.array_equal(contents(here), contents(there))


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_push_tells_that_its_link_is_lost(make_memory: MemoryMaker, lost: int) -> None:
    """As it is told of any connection: what waits for the destination after a lost link looks for this error."""
    here, there = make_memory(1 << 14), make_memory(1 << 14)
    here.array[:] = 1
    async with PageLink(here, there, streams=2) as link:
        for receiver in link.receivers[:lost]:
            await asyncio.to_thread(receiver.abort)
        with pytest.raises(LinkLost, match="a page connection broke"):
            await postcopy.push(postcopy.Remaining(PageSet.span(0, 1 << 14)), link.streams)


async def test_a_lost_fault_connection_ends_the_server(make_memory: MemoryMaker) -> None:
    ours, (theirs, _) = fault_ends()
    source = FaultStream(*ours, make_memory(8))
    source.serve(Remaining(PageSet.span(0, 3)))
    theirs.close()
    with pytest.raises(LinkLost, match="the peer closed the fault connection"):
        await source.ended()
    await source.close()
    await source.close()


async def test_what_is_fetched_too_early_is_answered_when_the_guest_is_the_destinations(
    make_memory: MemoryMaker,
) -> None:
    memory = make_memory(8)
    memory.array[:] = 1
    ours, theirs = fault_ends()
    source, stream = FaultStream(*ours, memory), FrameStream(*theirs)
    await stream.send(Fetch(PageSet.span(2, 3)))
    await asyncio.sleep(0.02)
    passed: list[str] = []
    source.serve(Remaining(PageSet.span(0, 3)), lambda: passed.append("serving"))
    assert isinstance(await stream.expect(Pages, 10), Pages)
    assert passed == ["serving"]
    await source.close()
    stream.close()


async def test_a_server_that_was_never_let_serve_can_be_closed(make_memory: MemoryMaker) -> None:
    ours, theirs = fault_ends()
    source, stream = FaultStream(*ours, make_memory(8)), FrameStream(*theirs)
    await stream.send(Fetch(PageSet.span(2, 3)))
    await asyncio.sleep(0.02)
    await source.close()
    with pytest.raises(LinkLost, match="closed here"):
        await source.ended()
    stream.close()
