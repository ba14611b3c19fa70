"""One memory into another, through the real sender, TCP and the real receiver: PageStream, PageReceiver, Intake, Landing."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.page_receiver import PageReceiver
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import memfd
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, RemoteProtocolError
from pagefire.protocol.frames import Buffer
from pagefire.protocol.messages import MAX_FRAME_PAGES, MAX_FRAME_RUNS, CompressedPages, Message, Pages, ZeroPages
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from pagefire.protocol.state import Role
from pagefire.protocol.transport.wire import Wire
from pagefire.source_host.page_stream import SENDFILE_PAGES, PageStream, striped
from pagefire.source_host.zero_look import LARGE_PAGES
from tests.conftest import MemoryMaker
from tests.support.memory import allocated_pages, contents, fresh
from tests.support.page_link import PageLink, greeted
from tests.support.secured import KeyRing, wire_pair
from tests.support.waiting import eventually

PAGES = 4 * GRANULE_PAGES
NONE = PageSet.empty()
#: How pages may be carried: in the clear, with checksums, encrypted.
CARRIED = ("plain", "checked", "encrypted")


def link_of(kind: str, ring: KeyRing, here: memfd.Mapping, there: memfd.Mapping, streams: int = 1) -> PageLink:
    """Make a link that carries pages in this way; on the running loop."""
    return PageLink(here, there, streams, ring=ring if kind == "encrypted" else None, checksum=kind == "checked")


def fill(memory: memfd.Mapping, pages: PageSet, seed: int) -> None:
    """Give each of these pages contents of its own, none of them zero."""
    for page in pages.page_numbers().tolist():
        words = memory.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES].view(np.uint64)
        words[:] = np.arange(512, dtype=np.uint64) + np.uint64((seed << 40) + (page << 12) + 1)


def assert_equal(here: memfd.Mapping, there: memfd.Mapping) -> None:
    assert np.array_equal(contents(here), contents(there))


@pytest.mark.parametrize("kind", CARRIED)
@pytest.mark.parametrize("streams", [1, 3])
async def test_a_memory_arrives(make_memory: MemoryMaker, ring: KeyRing, streams: int, kind: str) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    there_is = PageSet.of_runs([0, 3, 40, 900, PAGES - 1], [1, 20, 41, 900 + 2 * GRANULE_PAGES, PAGES])
    fill(here, there_is, 1)
    async with link_of(kind, ring, here, there, streams) as link:
        await link.send_round(there_is)
        assert not link.ends
    assert_equal(here, there)
    assert memfd.data_extents(there.fd) == there_is
    assert allocated_pages(there) == there_is.pages
    assert link.ledger.filled_among(PageSet.span(0, PAGES)) == there_is


# Lengths around those at which sender and receiver change their way: 16 pages, 512 runs, 2,048 pages.
runs = st.lists(
    st.tuples(
        st.integers(1, 40) | st.just(1),
        st.one_of(st.integers(1, 3), st.integers(SENDFILE_PAGES - 1, SENDFILE_PAGES + 1), st.integers(1, 600)),
        st.sampled_from(["contents", "zero", "mixed"]),
    ),
    max_size=30,
)


@settings(max_examples=20, deadline=None)
@given(runs, st.integers(1, 3), st.booleans(), st.sampled_from(CARRIED))
def test_runs_of_every_shape_arrive(
    ring: KeyRing, shape: list[tuple[int, int, str]], streams: int, twice: bool, carried: str
) -> None:
    here, there = fresh(PAGES), fresh(PAGES)
    at, sent, zero = 0, NONE, NONE
    for gap, length, kind in shape:
        start, stop = min(at + gap, PAGES), min(at + gap + length, PAGES)
        at = stop
        run = PageSet.span(start, stop)
        sent |= run
        if kind != "contents":
            zero |= run if kind == "zero" else PageSet.of_pages(run.page_numbers()[::2])
    fill(here, sent, 1)
    for start, stop in zip(zero.starts, zero.stops, strict=True):
        here.array[start * PAGE_BYTES : stop * PAGE_BYTES] = 0

    async def send() -> int:
        async with link_of(carried, ring, here, there, streams) as link:
            if twice:
                # Over older contents: the other way into memory, and zero pages that have to overwrite.
                fill(here, sent, 2)
                await link.send_round(sent)
                fill(here, sent, 1)
                for start, stop in zip(zero.starts, zero.stops, strict=True):
                    here.array[start * PAGE_BYTES : stop * PAGE_BYTES] = 0
            before = link.zero_pages
            await link.send_round(sent)
            found = link.zero_pages - before
            # In a large round some that lie alone may be sent as they are (zero_look.py).
            assert found == zero.pages or (sent.pages >= LARGE_PAGES and found < zero.pages)
            assert not link.ends
            return found

    found = asyncio.run(send())
    assert_equal(here, there)
    assert allocated_pages(there) == (sent.pages if twice else sent.pages - found)
    here.close()
    there.close()


async def test_zero_pages_cost_no_payload(make_memory: MemoryMaker) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    here.array[:] = 0
    async with PageLink(here, there) as link:
        await link.send_round(PageSet.span(0, PAGES))
        assert link.zero_pages == link.streams[0].sent_pages == PAGES
        assert link.sent_bytes < 1000
    assert allocated_pages(there) == 0


async def test_a_page_with_a_single_word_is_not_zero(make_memory: MemoryMaker) -> None:
    here, there = make_memory(64), make_memory(64)
    for page in range(64):
        here.array[page * PAGE_BYTES + page * 64] = 1
    async with PageLink(here, there) as link:
        await link.send_round(PageSet.span(0, 64))
        assert link.zero_pages == 0
    assert_equal(here, there)


async def test_a_page_that_became_zero_overwrites_its_older_copy(make_memory: MemoryMaker) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, PageSet.span(0, 300), 1)
    async with PageLink(here, there) as link:
        await link.send_round(PageSet.span(0, 300))
        here.array[10 * PAGE_BYTES : 20 * PAGE_BYTES] = 0
        here.array[100 * PAGE_BYTES : 200 * PAGE_BYTES] = 0
        # One as a page that holds zeros, the other as a hole; of a hole the destination never had it makes nothing.
        await link.send_round(PageSet.span(10, 20), PageSet.of_runs([100, 1000], [200, 1500]))
    assert_equal(here, there)
    assert allocated_pages(there) == 300


async def test_frames_keep_their_limits(make_memory: MemoryMaker) -> None:
    here, there = make_memory(3 * MAX_FRAME_PAGES), make_memory(3 * MAX_FRAME_PAGES)
    fill(here, PageSet.span(0, here.pages), 1)
    # Every other page zero: a frame's worth of pages falls into more runs than one frame may have.
    here.array.reshape(-1, 2 * PAGE_BYTES)[:, :PAGE_BYTES] = 0
    async with PageLink(here, there) as link:
        sent: list[PageSet] = []
        connection = link.streams[0]._connection
        real = Connection.send

        def send(message: Pages | ZeroPages, payload_bytes: int = 0) -> bytes:
            if isinstance(message, Pages | ZeroPages):
                sent.append(message.pages)
            return real(connection, message, payload_bytes)

        connection.send = send  # type: ignore[method-assign,assignment]
        await link.send_round(PageSet.span(0, here.pages))
    assert_equal(here, there)
    assert max(pages.pages for pages in sent) <= MAX_FRAME_PAGES
    assert max(len(pages) for pages in sent) <= MAX_FRAME_RUNS


@pytest.mark.parametrize("held", [{}, {"checksum": True}, {"compress": "lz4"}, {"skip_unchanged": "on"}])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_frame_is_long_where_nothing_of_it_is_held(
    make_memory: MemoryMaker, ring: KeyRing, encrypted: bool, held: dict[str, Any]
) -> None:
    here, there = make_memory(3 * MAX_FRAME_PAGES), make_memory(3 * MAX_FRAME_PAGES)
    fill(here, PageSet.span(0, here.pages), 1)
    async with PageLink(here, there, ring=ring if encrypted else None, **held) as link:
        frames = list[int]()
        connection = link.streams[0]._connection
        real = connection.send

        def send(message: Message, payload_bytes: int = 0, payload: Iterable[Buffer] = ()) -> bytes:
            if isinstance(message, Pages | CompressedPages):
                frames.append(message.pages.pages)
            return real(message, payload_bytes, payload)

        connection.send = send  # type: ignore[method-assign]
        await link.send_round(PageSet.span(0, here.pages))
    assert_equal(here, there)
    assert sum(frames) == here.pages
    if held:
        assert max(frames) <= MAX_FRAME_PAGES
    else:
        assert frames == [here.pages]


async def test_bytes_and_pages_are_counted(make_memory: MemoryMaker) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, PageSet.span(5, 105), 1)
    async with PageLink(here, there) as link:
        await link.send_round(PageSet.span(5, 105), PageSet.span(200, 203))
        stream = link.streams[0]
        assert (stream.sent_pages, stream.zero_pages) == (103, 3)
        payload_bytes = 100 * PAGE_BYTES
        assert payload_bytes < stream.sent_bytes < payload_bytes + 500


@pytest.mark.parametrize("kind", CARRIED)
async def test_an_abort_in_the_middle_ends_both_threads(make_memory: MemoryMaker, ring: KeyRing, kind: str) -> None:
    here, there = make_memory(64 * GRANULE_PAGES), make_memory(64 * GRANULE_PAGES)
    async with link_of(kind, ring, here, there) as link:
        # More than can be under way at once.
        here.array[::PAGE_BYTES] = 1
        sending = asyncio.create_task(
            link.streams[0].ended(link.streams[0].begin_round([PageSet.span(0, here.pages)], NONE, 1))
        )
        # A task that is cancelled before its first step never runs, and aborts nothing.
        await asyncio.sleep(0)
        await eventually(lambda: link.streams[0].sent_bytes)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await eventually(lambda: link.ends)
        assert isinstance(link.ends[0], LinkLost)
    assert link.streams[0].sent_pages < here.pages
    await eventually(lambda: not {thread.name for thread in threading.enumerate()} & {"pages_0", "page-receiver"})


@pytest.mark.parametrize("kind", CARRIED)
async def test_a_receiver_that_goes_away_is_a_lost_link(make_memory: MemoryMaker, ring: KeyRing, kind: str) -> None:
    here, there = make_memory(64 * GRANULE_PAGES), make_memory(64 * GRANULE_PAGES)
    here.array[::PAGE_BYTES] = 1
    async with link_of(kind, ring, here, there) as link:
        sending = asyncio.create_task(
            link.streams[0].ended(link.streams[0].begin_round([PageSet.span(0, here.pages)], NONE, 1))
        )
        await eventually(lambda: link.streams[0].sent_bytes)
        link.receivers[0]._wire.sock.shutdown(2)
        with pytest.raises(LinkLost, match="a page connection broke"):
            await sending


@pytest.mark.parametrize("kind", ["checked", "encrypted"])
async def test_memory_that_is_written_to_meanwhile_arrives_undamaged(
    make_memory: MemoryMaker, ring: KeyRing, kind: str
) -> None:
    """What is summed or authenticated must be what is sent, however often the guest stores in between."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    here.array[:] = 1
    ended = threading.Event()

    def store() -> None:
        words = here.array.view(np.uint64)
        while not ended.is_set():
            words += np.uint64(1)

    writer = threading.Thread(target=store)
    writer.start()
    try:
        async with link_of(kind, ring, here, there) as link:
            for _ in range(5):
                await link.send_round(PageSet.span(0, PAGES))
            assert not link.ends
    finally:
        ended.set()
        writer.join()


async def test_a_damaged_page_never_gets_into_memory(make_memory: MemoryMaker, ring: KeyRing) -> None:
    """A byte of it is changed under way: named, before any of its frame is in memory."""
    here, there = make_memory(100), make_memory(100)
    fill(here, PageSet.span(0, 100), 1)
    async with link_of("checked", ring, here, there) as link:
        wire = link.streams[0]._wire
        real = wire.send

        def send(buffers: list[bytes], *, more: bool = False) -> None:
            head, contents = buffers
            real([head, contents[:5000] + bytes([contents[5000] ^ 1]) + contents[5001:]], more=more)

        wire.send = send  # type: ignore[method-assign,assignment]
        await link.streams[0].push(lambda stream: stream.send_pages(PageSet.span(40, 60)))
        await eventually(lambda: link.ends)
    assert isinstance(link.ends[0], RemoteProtocolError)
    assert "a frame was damaged on its way: its checksum is" in str(link.ends[0])
    assert allocated_pages(there) == 0
    assert not link.ledger.filled_among(PageSet.span(0, 100))


async def test_pages_outside_the_memory_end_the_connection(make_memory: MemoryMaker) -> None:
    here, there = make_memory(100), make_memory(50)
    fill(here, PageSet.span(40, 60), 1)
    async with PageLink(here, there) as link:
        await link.streams[0].push(lambda stream: stream.send_pages(PageSet.span(40, 60)))
        await eventually(lambda: link.ends)
    assert isinstance(link.ends[0], RemoteProtocolError)
    assert str(link.ends[0]) == "the peer sent a page outside the guest's memory: page 59."
    assert allocated_pages(there) == 0


@given(st.sets(st.integers(0, 300)), st.integers(1, 8))
def test_stripes_are_disjoint_and_nearly_equal(chosen: set[int], streams: int) -> None:
    pages = PageSet.of_pages(list(chosen))
    parts = striped(pages, streams)
    assert len(parts) == streams
    assert sorted(page for part in parts for page in part.page_numbers().tolist()) == sorted(chosen)
    if len(chosen) >= streams:
        assert max(part.pages for part in parts) <= -(-len(chosen) // streams)


class Held(socket.socket):
    """A socket whose user stands still between the look at its number and the system call, once, until `go`."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.number = super().fileno()
        self.stands, self.go = threading.Event(), threading.Event()

    def fileno(self) -> int:
        self.stands.set()
        self.go.wait(10.0)
        return self.number


@pytest.mark.parametrize("held", ["source", "destination"])
async def test_an_abort_under_a_thread_touches_no_other_connection(make_memory: MemoryMaker, held: str) -> None:
    """A thread must not go on with the number of a descriptor that was closed under it: it may be a stranger's by then."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    everything = PageSet.span(0, PAGES)
    fill(here, everything, 1)
    one, other = wire_pair()
    sock = Held((one if held == "source" else other).sock)
    one, other = (Wire(sock), other) if held == "source" else (one, Wire(sock))
    source, destination = greeted(Role.PAGES)
    stream, ledger = PageStream(one, source, here), Ledger(PAGES)
    landing, intake = Landing(other, there, ledger), Intake(ledger, Publisher(-1, 0, 0), PAGES)
    receiver = PageReceiver(other, destination, landing, intake, lambda number: None, lambda error: None)
    receiver.start()
    sending = stream.begin_round([everything], NONE, 1)
    assert await asyncio.to_thread(sock.stands.wait, 10.0)
    ending = asyncio.create_task(stream.abort() if held == "source" else asyncio.to_thread(receiver.abort))
    await asyncio.sleep(0.05)
    # It takes the lowest number that is free.
    ours, strangers = socket.socketpair()
    with ours, strangers:
        for end in (ours, strangers):
            end.sendall(b"a stranger's")
        sock.go.set()
        await asyncio.wait({ending}, timeout=5)
        for end in (ours, strangers):
            end.setblocking(False)
            assert end.recv(100) == b"a stranger's"
    await ending
    await stream.abort()
    receiver.abort()
    assert sending.done()
    assert sock.number not in (int(name) for name in os.listdir("/proc/self/fd"))
