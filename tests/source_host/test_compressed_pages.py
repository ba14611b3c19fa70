"""Compressed pages through the real sender, TCP and the real receiver: what arrives, what is refused, and what is told of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import memfd
from pagefire.protocol import compression
from pagefire.protocol.codecs import CODECS, new_codec
from pagefire.protocol.compression import LEAST_PAGES, PACKED_PAGES
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.messages import MAX_FRAME_PAGES, CompressedPages
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from pagefire.source_host.page_stream import PageStream
from pagefire.source_host.zero_look import LARGE_PAGES
from tests.conftest import MemoryMaker
from tests.support.huge_pages import hugetlb_pool
from tests.support.memory import allocated_pages, contents, fresh
from tests.support.page_link import PageLink
from tests.support.secured import KeyRing
from tests.support.waiting import eventually

PAGES = 4 * GRANULE_PAGES
EVERYTHING = PageSet.span(0, PAGES)
CARRIED = ("plain", "checked", "encrypted")
every_codec = pytest.mark.parametrize("codec", CODECS)
LINE = b"All work and no play makes a dull guest. Page %9d, seed %9d. "


class Shown(Publisher):
    """Notes what would be shown to a guest."""

    def __init__(self) -> None:
        super().__init__(-1, 0, 0)
        self.pages = PageSet.empty()

    def publish(self, start: int, stop: int) -> None:
        self.pages |= PageSet.span(start, stop)

    def publish_zero(self, page: int) -> None:
        self.pages |= PageSet.span(page, page + 1)


def link_of(
    kind: str, ring: KeyRing, here: memfd.Mapping, there: memfd.Mapping, compress: str, streams: int = 1
) -> PageLink:
    """Make a link that carries pages in this way, compressed so; on the running loop."""
    keys = ring if kind == "encrypted" else None
    return PageLink(here, there, streams, Shown(), keys, checksum=kind == "checked", compress=compress)


def write_text(memory: memfd.Mapping, pages: PageSet, seed: int) -> None:
    """Give each of these pages text of its own."""
    for page in pages.page_numbers().tolist():
        line = LINE % (page, seed)
        text = (line * (PAGE_BYTES // len(line) + 1))[:PAGE_BYTES]
        memory.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = np.frombuffer(text, np.uint8)


def write_random(memory: memfd.Mapping, pages: PageSet, seed: int) -> None:
    for page in pages.page_numbers().tolist():
        drawn = np.random.default_rng((seed, page)).integers(0, 256, PAGE_BYTES, np.uint8)
        memory.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = drawn


@every_codec
@pytest.mark.parametrize("kind", CARRIED)
@pytest.mark.parametrize("streams", [1, 3])
async def test_a_memory_arrives(make_memory: MemoryMaker, ring: KeyRing, streams: int, kind: str, codec: str) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    there_is = PageSet.of_runs([0, 40, 900], [30, 600, PAGES])
    write_text(here, there_is, 1)
    async with link_of(kind, ring, here, there, codec, streams) as link:
        await link.send_round(there_is)
        assert not link.ends
        # Over older contents: the other way into memory.
        write_text(here, there_is, 2)
        await link.send_round(there_is)
        told = [stream.packing.told() for stream in link.streams if stream.packing is not None]
        sent_bytes, payload_bytes = link.sent_bytes, sum(stream.payload_bytes for stream in link.streams)
    assert np.array_equal(contents(here), contents(there))
    assert memfd.data_extents(there.fd) == there_is
    assert allocated_pages(there) == there_is.pages
    assert sum(one.compressed_pages + one.raw_pages for one in told) == 2 * there_is.pages
    # All but what is too little for a batch.
    assert sum(one.compressed_pages for one in told) > 0.9 * 2 * there_is.pages
    assert {one.codec for one in told} == {codec}
    assert payload_bytes < sent_bytes < 0.2 * 2 * there_is.size_bytes


shapes = st.lists(
    st.tuples(
        st.integers(1, 20) | st.just(1),
        st.one_of(st.integers(1, 3), st.integers(LEAST_PAGES - 1, LEAST_PAGES + 1), st.integers(1, 600)),
        st.sampled_from(["text", "random", "zero", "mixed"]),
    ),
    max_size=20,
)


@settings(max_examples=20, deadline=None)
@given(shapes, st.booleans(), st.sampled_from(CARRIED), st.sampled_from([*CODECS, "auto"]))
def test_runs_of_every_shape_arrive(
    ring: KeyRing, shape: list[tuple[int, int, str]], twice: bool, carried: str, compress: str
) -> None:
    here, there = fresh(PAGES), fresh(PAGES)
    at, sent, zero = 0, PageSet.empty(), PageSet.empty()
    for gap, length, kind in shape:
        run = PageSet.span(min(at + gap, PAGES), min(at + gap + length, PAGES))
        at = min(at + gap + length, PAGES)
        sent |= run
        (write_random if kind == "random" else write_text)(here, run, 1)
        if kind in ("zero", "mixed"):
            zero |= run if kind == "zero" else PageSet.of_pages(run.page_numbers()[::2])

    async def send() -> int:
        async with link_of(carried, ring, here, there, compress) as link:
            if twice:
                await link.send_round(sent)
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
    assert np.array_equal(contents(here), contents(there))
    assert allocated_pages(there) == (sent.pages if twice else sent.pages - found)
    here.close()
    there.close()


@every_codec
async def test_frames_keep_their_limits(make_memory: MemoryMaker, ring: KeyRing, codec: str) -> None:
    """Every other page is left out: a batch's worth of pages falls into as many runs."""
    here, there = make_memory(3 * MAX_FRAME_PAGES), make_memory(3 * MAX_FRAME_PAGES)
    sent = PageSet.of_pages(np.arange(0, here.pages, 2))
    write_text(here, sent, 1)
    async with link_of("plain", ring, here, there, codec) as link:
        frames = frames_of(link.streams[0])
        await link.send_round(sent)
    assert np.array_equal(contents(here), contents(there))
    assert max(pages.pages for pages in frames) == PACKED_PAGES
    assert sum(pages.pages for pages in frames) == sent.pages


def frames_of(stream: PageStream) -> list[PageSet]:
    """Note the pages of each compressed frame that a stream sends from now on."""
    frames: list[PageSet] = []
    real = stream._connection.send

    def send(message: Any, *args: Any) -> bytes:
        if isinstance(message, CompressedPages):
            frames.append(message.pages)
        return real(message, *args)

    stream._connection.send = send  # type: ignore[method-assign]
    return frames


@every_codec
async def test_incompressible_pages_go_as_they_are(make_memory: MemoryMaker, ring: KeyRing, codec: str) -> None:
    """And what follows them is compressed again, found by samples that take next to no time."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    write_random(here, EVERYTHING, 1)
    async with link_of("plain", ring, here, there, codec) as link:
        for _ in range(3):
            await link.send_round(EVERYTHING)
        packing = link.streams[0].packing
        assert packing is not None
        told = packing.told()
        assert (told.compressed_pages, told.codec, told.ratio) == (0, None, None)
        assert told.raw_pages == 3 * PAGES
        assert told.reason.startswith("the pages do not compress: ")
        assert 3 * EVERYTHING.size_bytes < link.sent_bytes < 3 * EVERYTHING.size_bytes + 10_000
        write_text(here, EVERYTHING, 1)
        packing._budget.spent_s = 0.0
        await link.send_round(EVERYTHING)
        assert packing.told().compressed_pages > 0
    assert np.array_equal(contents(here), contents(there))


@every_codec
async def test_a_few_pages_go_as_they_are(make_memory: MemoryMaker, ring: KeyRing, codec: str) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    few = PageSet.span(7, 7 + LEAST_PAGES - 1)
    write_text(here, few, 1)
    async with link_of("plain", ring, here, there, codec) as link:
        frames = frames_of(link.streams[0])
        await link.send_round(few)
        assert not frames
        packing = link.streams[0].packing
        assert packing is not None
        assert (packing.told().raw_pages, packing.told().compressed_pages) == (few.pages, 0)
        assert packing.told().reason == "there were too few pages at a time"
    assert np.array_equal(contents(here), contents(there))


@pytest.mark.parametrize("compress", [*CODECS, "auto"])
async def test_a_peer_that_knows_no_codec_gets_raw_pages(make_memory: MemoryMaker, compress: str) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    write_text(here, EVERYTHING, 1)
    async with PageLink(here, there) as link:
        old = link.streams[0]
        link.streams[0] = PageStream(old._wire, old._connection, here, compress)
        await link.send_round(EVERYTHING)
        packing = link.streams[0].packing
        assert packing is not None
        assert packing.told().raw_pages == PAGES
        assert packing.told().reason == "the destination does not know the codec"
        assert link.sent_bytes > EVERYTHING.size_bytes
        old.close()
    assert np.array_equal(contents(here), contents(there))


@every_codec
@pytest.mark.parametrize("kind", CARRIED)
async def test_memory_that_is_written_to_meanwhile_arrives_undamaged(
    make_memory: MemoryMaker, ring: KeyRing, kind: str, codec: str
) -> None:
    """What a codec reads must not change under it: it would write what cannot be unpacked, or is of another length."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    here.array[:] = 1
    ended = threading.Event()

    def store() -> None:
        words = here.array.view(np.uint64)
        while not ended.is_set():
            words[::3] += np.uint64(1)

    writer = threading.Thread(target=store)
    writer.start()
    try:
        async with link_of(kind, ring, here, there, codec) as link:
            for _ in range(5):
                await link.send_round(EVERYTHING)
            assert not link.ends
    finally:
        ended.set()
        writer.join()


# -- after the resume --------------------------------------------------------------------------------------------------


@every_codec
@pytest.mark.parametrize("kind", CARRIED)
async def test_after_the_resume_pages_are_taken_once(
    make_memory: MemoryMaker, ring: KeyRing, kind: str, codec: str
) -> None:
    """Claimed before they are filled, received after; what is here already, or was never missing, is left alone."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    write_text(here, EVERYTHING, 1)
    missing = PageSet.of_runs([0, 500, 1000], [300, 900, 1100])
    fetched, waited_for = PageSet.of_pages([3, 17, 501, 899]), PageSet.of_pages([18, 1099])
    complete: list[bool] = []
    async with link_of(kind, ring, here, there, codec) as link:
        link.intake.resume_begins(missing, lambda: complete.append(True))
        shown = link.intake._publisher
        assert isinstance(shown, Shown)
        for page in fetched.page_numbers().tolist():
            assert link.ledger.claim_page(page)
            there.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = 7
            link.intake._page_received(page)
        for page in waited_for.page_numbers().tolist():
            link.intake.note_wait(page, 1)
        # What a vCPU has stored since must not be overwritten.
        before = contents(there)[fetched.page_numbers()]
        await link.streams[0].push(lambda stream: stream.send_pages(EVERYTHING))
        await eventually(lambda: complete)
        assert link.ledger.missing == 0
        # What nobody misses comes behind.
        await eventually(lambda: link.ledger.duplicates == EVERYTHING.pages - missing.pages + fetched.pages)
        assert not link.ends
        assert shown.pages == waited_for
        packing = link.streams[0].packing
        assert packing is not None
        assert packing.told().compressed_pages == PAGES
    arrived = (missing - fetched).page_numbers()
    assert np.array_equal(contents(there)[arrived], contents(here)[arrived])
    assert np.array_equal(contents(there)[fetched.page_numbers()], before)
    assert memfd.data_extents(there.fd) == missing


@every_codec
@pytest.mark.root
async def test_huge_pages_of_the_pool_take_them_as_well(make_memory: MemoryMaker, ring: KeyRing, codec: str) -> None:
    """From and into files without sendfile, splice and pwrite."""
    with hugetlb_pool(2 * EVERYTHING.size_bytes):
        here, there = fresh(PAGES, hugetlb=True), fresh(PAGES, hugetlb=True)
        write_text(here, EVERYTHING, 1)
        async with link_of("plain", ring, here, there, codec) as link:
            link.ledger.mark_filled(EVERYTHING)
            await link.send_round(EVERYTHING)
            assert not link.ends
        assert np.array_equal(here.array, there.array)
        here.close()
        there.close()


# -- what a peer may do ------------------------------------------------------------------------------------------------

TWENTY = PageSet.span(40, 60)


def bomb(codec: str) -> bytes:
    return new_codec(codec).pack(bytes(16 << 20))


@every_codec
@pytest.mark.parametrize("kind", CARRIED)
@pytest.mark.parametrize(
    "payload",
    [
        lambda codec: new_codec(codec).pack(bytes(TWENTY.size_bytes))[:-1],
        lambda codec: new_codec(codec).pack(bytes(TWENTY.size_bytes)) + b"\0",
        lambda codec: new_codec(codec).pack(bytes(TWENTY.size_bytes - 1)),
        lambda codec: new_codec(codec).pack(bytes(TWENTY.size_bytes + PAGE_BYTES)),
        bomb,
        lambda codec: b"\0" * 100,
    ],
    ids=["cut off", "a byte more", "too short", "a page more", "bomb", "zeros"],
)
async def test_a_hostile_payload_ends_the_connection_and_changes_nothing(
    make_memory: MemoryMaker, ring: KeyRing, payload: Callable[[str], bytes], kind: str, codec: str
) -> None:
    here, there = make_memory(100), make_memory(100)
    async with link_of(kind, ring, here, there, codec) as link:
        stream, hostile = link.streams[0], payload(codec)
        head = stream._connection.send(CompressedPages(TWENTY, codec), len(hostile), [hostile])
        await stream.push(lambda stream: stream._wire.send([head, hostile]))
        await eventually(lambda: link.ends)
    assert isinstance(link.ends[0], RemoteProtocolError)
    assert f"the peer sent compressed pages that cannot be read: {codec}: " in str(link.ends[0])
    assert allocated_pages(there) == 0
    assert not link.ledger.filled_among(PageSet.span(0, 100))


@every_codec
async def test_a_hostile_payload_claims_no_page(make_memory: MemoryMaker, ring: KeyRing, codec: str) -> None:
    here, there = make_memory(100), make_memory(100)
    async with link_of("plain", ring, here, there, codec) as link:
        link.intake.resume_begins(TWENTY, lambda: None)
        stream, hostile = link.streams[0], bomb(codec)
        head = stream._connection.send(CompressedPages(TWENTY, codec), len(hostile))
        await stream.push(lambda stream: stream._wire.send([head, hostile]))
        await eventually(lambda: link.ends)
        assert link.ledger.claim(TWENTY) == TWENTY
    assert allocated_pages(there) == 0


@every_codec
async def test_a_damaged_payload_is_found_by_its_checksum_first(
    make_memory: MemoryMaker, ring: KeyRing, codec: str
) -> None:
    here, there = make_memory(100), make_memory(100)
    write_text(here, TWENTY, 1)
    async with link_of("checked", ring, here, there, codec) as link:
        wire = link.streams[0]._wire
        real = wire.send

        def send(buffers: list[bytes], *, more: bool = False) -> None:
            head, packed = buffers
            real([head, packed[:50] + bytes([packed[50] ^ 1]) + packed[51:]], more=more)

        wire.send = send  # type: ignore[method-assign,assignment]
        await link.streams[0].push(lambda stream: stream.send_pages(TWENTY))
        await eventually(lambda: link.ends)
    assert "a frame was damaged on its way: its checksum is" in str(link.ends[0])
    assert allocated_pages(there) == 0


@every_codec
async def test_pages_outside_the_memory_end_the_connection(make_memory: MemoryMaker, ring: KeyRing, codec: str) -> None:
    here, there = make_memory(100), make_memory(50)
    write_text(here, TWENTY, 1)
    async with link_of("plain", ring, here, there, codec) as link:
        await link.streams[0].push(lambda stream: stream.send_pages(TWENTY))
        await eventually(lambda: link.ends)
    assert str(link.ends[0]) == "the peer sent a page outside the guest's memory: page 59."
    assert allocated_pages(there) == 0


def test_every_mode_is_covered_here() -> None:
    assert set(compression.MODES) == {"off", *CODECS, "auto"}
