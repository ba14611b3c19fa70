"""Differences through the real sender, TCP and the real receiver: the destination has what the source has, for fewer bytes."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.codecs import CODECS, new_codec
from pagefire.protocol.compression import LEAST_PAGES, LinkSpeed
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.messages import DeltaPages
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from pagefire.source_host.deltas import Deltas
from pagefire.source_host.page_stream import PageStream
from tests.conftest import MemoryMaker
from tests.support.huge_pages import hugetlb_pool
from tests.support.memory import contents, fresh
from tests.support.page_link import PageLink
from tests.support.secured import KeyRing
from tests.support.waiting import eventually

PAGES = 4 * GRANULE_PAGES
EVERYTHING = PageSet.span(0, PAGES)
NONE = PageSet.empty()
ROOM = EVERYTHING.size_bytes
CARRIED = ("plain", "checked", "encrypted")
every_codec = pytest.mark.parametrize("codec", CODECS)


def link_of(
    kind: str,
    ring: KeyRing,
    here: memfd.Mapping,
    there: memfd.Mapping,
    compress: str,
    streams: int = 1,
    room_bytes: int = ROOM,
    skip_unchanged: str = "off",
) -> PageLink:
    """Make a link that carries pages in this way, with room for versions; on the running loop."""
    return PageLink(
        here, there, streams, ring=ring if kind == "encrypted" else None, checksum=kind == "checked",
        compress=compress, skip_unchanged=skip_unchanged, delta_cache_bytes=room_bytes,
    )  # fmt: skip


def deltas_of(link: PageLink) -> list[Deltas]:
    return [stream.deltas for stream in link.streams if stream.deltas is not None]


def delta_pages(link: PageLink) -> int:
    return sum(one.delta_pages for one in deltas_of(link))


def fill(memory: memfd.Mapping, pages: PageSet, seed: int) -> None:
    """Give each of these pages contents of its own, which no codec makes smaller."""
    for page in pages.page_numbers().tolist():
        drawn = np.random.default_rng((seed, page)).integers(0, 256, PAGE_BYTES, np.uint8)
        memory.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = drawn


def touch(memory: memfd.Mapping, pages: PageSet, at: int = 100) -> None:
    """Change one word of each of these pages."""
    memory.array.view(np.uint64).reshape(-1, PAGE_BYTES // 8)[pages.page_numbers(), at] += 1


# -- what arrives ------------------------------------------------------------------------------------------------------

spans = st.tuples(st.integers(0, PAGES - 1), st.one_of(st.integers(1, 3), st.integers(LEAST_PAGES - 1, 900)))
#: One round: what is touched before it, what is filled anew, what becomes zero, and whether it is a push instead.
rounds = st.lists(st.tuples(*(st.lists(spans, max_size=4) for _ in range(3)), st.booleans()), min_size=2, max_size=6)


def union(parts: list[tuple[int, int]]) -> PageSet:
    pages = NONE
    for start, count in parts:
        pages |= PageSet.span(start, min(start + count, PAGES))
    return pages


@settings(max_examples=40, deadline=None)
@given(
    rounds, st.integers(1, 3), st.sampled_from(CARRIED), st.sampled_from([*CODECS, "auto"]),
    st.sampled_from([ROOM, ROOM // 3, 100 * PAGE_BYTES]), st.sampled_from(["off", "on"]),
)  # fmt: skip
def test_the_destination_has_what_the_source_has_whatever_is_written(
    ring: KeyRing,
    script: list[tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]], bool]],
    streams: int,
    carried: str,
    compress: str,
    room_bytes: int,
    skip_unchanged: str,
) -> None:
    here, there = fresh(PAGES), fresh(PAGES)
    fill(here, EVERYTHING, 1)

    async def send() -> None:
        async with link_of(carried, ring, here, there, compress, streams, room_bytes, skip_unchanged) as link:
            await link.send_round(EVERYTHING)
            for number, (touched, filled, zeroed, pushed) in enumerate(script, 2):
                touch(here, union(touched))
                fill(here, union(filled), number)
                here.array.reshape(-1, PAGE_BYTES)[union(zeroed).page_numbers()] = 0
                dirty = union(touched) | union(filled) | union(zeroed)
                if pushed:
                    # A way for all pages that knows of no versions.
                    await link.streams[0].push(partial(PageStream.send_pages, pages=dirty))
                    await link.send_round(NONE)
                else:
                    await link.send_round(dirty)
                assert not link.ends
                assert np.array_equal(contents(here), contents(there))

    asyncio.run(send())
    here.close()
    there.close()


@every_codec
@pytest.mark.parametrize("kind", CARRIED)
@pytest.mark.parametrize("streams", [1, 3])
async def test_a_page_that_was_touched_costs_next_to_nothing(
    make_memory: MemoryMaker, ring: KeyRing, streams: int, kind: str, codec: str
) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, EVERYTHING, 1)
    async with link_of(kind, ring, here, there, codec, streams) as link:
        await link.send_round(EVERYTHING)
        assert delta_pages(link) == 0
        assert sum(one.whole_pages for one in deltas_of(link)) == PAGES
        for at in (0, 511, 77):
            before = link.sent_bytes
            touch(here, EVERYTHING, at)
            await link.send_round(EVERYTHING)
            assert link.sent_bytes - before < EVERYTHING.size_bytes / 50
        assert delta_pages(link) == 3 * PAGES
        assert sum(stream.payload_bytes for stream in link.streams) == EVERYTHING.size_bytes + sum(
            one.delta_bytes for one in deltas_of(link)
        )
        assert not link.ends
    assert np.array_equal(contents(here), contents(there))


@every_codec
async def test_what_was_written_all_over_goes_whole(make_memory: MemoryMaker, ring: KeyRing, codec: str) -> None:
    """And its next difference is one to that."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, EVERYTHING, 1)
    async with link_of("plain", ring, here, there, codec) as link:
        await link.send_round(EVERYTHING)
        fill(here, EVERYTHING, 2)
        await link.send_round(EVERYTHING)
        assert delta_pages(link) == 0
        assert deltas_of(link)[0].rewritten_pages == PAGES
        touch(here, EVERYTHING)
        await link.send_round(EVERYTHING)
        assert delta_pages(link) == PAGES
        # One kind among the other: those that changed little do not suffer for it, whatever the last batch was like.
        odd = PageSet.of_pages(np.arange(1, PAGES, 2))
        fill(here, odd, 3)
        touch(here, EVERYTHING - odd)
        await link.send_round(EVERYTHING)
        assert delta_pages(link) == PAGES + PAGES // 2
    assert np.array_equal(contents(here), contents(there))


@pytest.mark.parametrize("known", [1, LEAST_PAGES - 1, LEAST_PAGES, 100])
async def test_known_and_unknown_pages_of_a_batch_part_ways(
    make_memory: MemoryMaker, ring: KeyRing, known: int
) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    batch = PageSet.span(0, 200)
    some = PageSet.of_pages(np.arange(known) * 2)
    fill(here, EVERYTHING, 1)
    async with link_of("plain", ring, here, there, "lz4") as link:
        await link.send_round(some)
        touch(here, batch)
        await link.send_round(batch)
        assert delta_pages(link) == (known if known >= LEAST_PAGES else 0)
        # Whichever way it went, there is a version of each now.
        touch(here, batch)
        await link.send_round(batch)
        assert delta_pages(link) == (known if known >= LEAST_PAGES else 0) + 200
    assert np.array_equal(contents(here)[:200], contents(there)[:200])


async def test_what_is_zero_leaves_no_version(make_memory: MemoryMaker, ring: KeyRing) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, EVERYTHING, 1)
    half = PageSet.span(0, PAGES // 2)
    async with link_of("plain", ring, here, there, "zstd") as link:
        await link.send_round(EVERYTHING)
        here.array[: half.size_bytes] = 0
        await link.send_round(EVERYTHING)
        fill(here, half, 1)
        await link.send_round(half)
        assert link.versions is not None
        assert delta_pages(link) == PAGES - half.pages
    assert np.array_equal(contents(here), contents(there))


@pytest.mark.parametrize("kind", CARRIED)
async def test_memory_that_is_written_to_meanwhile_arrives_in_the_end(
    make_memory: MemoryMaker, ring: KeyRing, kind: str
) -> None:
    """Each difference is of a copy that was sent as such: torn pages follow each other and nothing is left of one at the end."""
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, EVERYTHING, 1)
    ended = threading.Event()

    def store() -> None:
        words = here.array.view(np.uint64)
        while not ended.is_set():
            words[::97] += np.uint64(1)

    writer = threading.Thread(target=store)
    async with link_of(kind, ring, here, there, "lz4", 2) as link:
        await link.send_round(EVERYTHING)
        writer.start()
        try:
            for _ in range(8):
                await link.send_round(EVERYTHING)
        finally:
            ended.set()
            writer.join()
        assert delta_pages(link) > 0
        await link.send_round(EVERYTHING)
        assert not link.ends
    assert np.array_equal(contents(here), contents(there))


@pytest.mark.root
async def test_huge_pages_of_the_pool_take_them_as_well(make_memory: MemoryMaker, ring: KeyRing) -> None:
    with hugetlb_pool(2 * EVERYTHING.size_bytes):
        here, there = fresh(PAGES, hugetlb=True), fresh(PAGES, hugetlb=True)
        fill(here, EVERYTHING, 1)
        async with link_of("plain", ring, here, there, "zstd") as link:
            link.ledger.mark_filled(EVERYTHING)
            await link.send_round(EVERYTHING)
            touch(here, EVERYTHING)
            await link.send_round(EVERYTHING)
            assert delta_pages(link) == PAGES
        assert np.array_equal(here.array, there.array)
        here.close()
        there.close()


# -- when --------------------------------------------------------------------------------------------------------------


async def test_a_peer_that_knows_no_differences_gets_whole_pages(make_memory: MemoryMaker) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, EVERYTHING, 1)
    async with link_of("plain", None, here, there, "lz4") as with_them, PageLink(here, there, compress="lz4") as link:  # type: ignore[arg-type]
        assert with_them.versions is not None
        link.streams[0].take_deltas(with_them.versions)
        assert link.streams[0].deltas is None
        await link.send_round(EVERYTHING)
        await link.send_round(EVERYTHING)
        assert link.sent_bytes > 2 * EVERYTHING.size_bytes
    assert np.array_equal(contents(here), contents(there))


async def test_auto_takes_them_on_a_slow_link_and_leaves_a_fast_one_alone(
    make_memory: MemoryMaker, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, EVERYTHING, 1)
    carried_bps = 20e6
    monkeypatch.setattr(LinkSpeed, "bps", lambda speed, now_s: carried_bps)
    async with link_of("plain", ring, here, there, "auto") as link:
        link.streams[0].pace(200e6)
        for _ in range(4):
            touch(here, EVERYTHING)
            await link.send_round(EVERYTHING)
        assert delta_pages(link) > PAGES
        carried_bps = 2e9
        link.streams[0].pace(None)
        for _ in range(2):
            touch(here, EVERYTHING)
            await link.send_round(EVERYTHING)
        before, took_ns = delta_pages(link), deltas_of(link)[0].take_ns
        await link.send_round(EVERYTHING)
        assert (delta_pages(link), deltas_of(link)[0].take_ns) == (before, took_ns)
        # They went as they were, so nothing is known of them.
        assert link.versions is not None
        assert not link.versions.held_among(EVERYTHING)
        assert deltas_of(link)[0].shares(EVERYTHING) == (1.0, 1.0)
    assert np.array_equal(contents(here), contents(there))


async def test_shares_say_what_the_next_round_sends(make_memory: MemoryMaker, ring: KeyRing) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(here, EVERYTHING, 1)
    half = PageSet.span(0, PAGES // 2)
    async with link_of("plain", ring, here, there, "lz4") as link:
        (deltas,) = deltas_of(link)
        assert deltas.shares(EVERYTHING) == deltas.shares(NONE) == (1.0, 1.0)
        await link.send_round(half)
        touch(here, EVERYTHING)
        next_share, settled_share = deltas.shares(EVERYTHING)
        assert 0.5 < next_share < 0.52
        assert 0.0 < settled_share < 0.02
        before = link.sent_bytes
        await link.send_round(EVERYTHING)
        assert (link.sent_bytes - before) / EVERYTHING.size_bytes == pytest.approx(next_share, abs=0.02)
    async with link_of("plain", ring, here, there, "lz4", room_bytes=ROOM // 4) as link:
        (deltas,) = deltas_of(link)
        await link.send_round(EVERYTHING)
        touch(here, EVERYTHING)
        # More than a quarter of them will never be held.
        for share in deltas.shares(EVERYTHING):
            assert 0.75 < share < 0.77


# -- what a peer may do ------------------------------------------------------------------------------------------------

TWENTY = PageSet.span(40, 60)


async def send_hostile(link: PageLink, pages: PageSet, codec: str, payload: bytes) -> BaseException:
    """Send differences that a source does not send; gives what the receiver said of them."""
    stream = link.streams[0]
    head = stream._connection.send(DeltaPages(pages, codec), len(payload), [payload])
    await stream.push(lambda stream: stream._wire.send([head, payload]))
    await eventually(lambda: link.ends)
    return link.ends[0]


@every_codec
async def test_differences_after_the_resume_are_refused_and_change_nothing(
    make_memory: MemoryMaker, ring: KeyRing, codec: str
) -> None:
    here, there = make_memory(PAGES), make_memory(PAGES)
    fill(there, TWENTY, 1)
    before = contents(there).copy()
    async with link_of("plain", ring, here, there, codec) as link:
        link.intake.resume_begins(TWENTY, lambda: None)
        error = await send_hostile(link, TWENTY, codec, new_codec(codec).pack(b"\1" * TWENTY.size_bytes))
        assert str(error) == "the peer sent differences after the resume: of page 40."
        assert isinstance(error, RemoteProtocolError)
        assert link.ledger.claim(TWENTY) == TWENTY
    assert np.array_equal(contents(there), before)


@every_codec
@pytest.mark.parametrize("kind", CARRIED)
async def test_a_hostile_payload_changes_nothing(
    make_memory: MemoryMaker, ring: KeyRing, kind: str, codec: str
) -> None:
    for payload in (
        new_codec(codec).pack(bytes(TWENTY.size_bytes))[:-1],
        new_codec(codec).pack(bytes(TWENTY.size_bytes + PAGE_BYTES)),
        new_codec(codec).pack(bytes(16 << 20)),
        b"\0" * 100,
    ):
        here, there = make_memory(100), make_memory(100)
        fill(there, TWENTY, 1)
        before = contents(there).copy()
        async with link_of(kind, ring, here, there, codec) as link:
            error = await send_hostile(link, TWENTY, codec, payload)
        assert "the peer sent compressed pages that cannot be read" in str(error)
        assert np.array_equal(contents(there), before)


async def test_pages_outside_the_memory_end_the_connection(make_memory: MemoryMaker, ring: KeyRing) -> None:
    here, there = make_memory(100), make_memory(50)
    async with link_of("plain", ring, here, there, "lz4") as link:
        error = await send_hostile(link, TWENTY, "lz4", new_codec("lz4").pack(bytes(TWENTY.size_bytes)))
        assert str(error) == "the peer sent a page outside the guest's memory: page 59."
