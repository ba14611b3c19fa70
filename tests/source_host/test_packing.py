"""`auto` on links of any speed, by a clock of the test's own: what a stream makes of them, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from pagefire.protocol import compression
from pagefire.protocol.codecs import CODECS
from pagefire.protocol.messages import MAX_FRAME_PAGES
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.source_host import packing as packing_module
from pagefire.source_host.link_watch import LinkWatch
from pagefire.source_host.packing import Packing
from pagefire.source_host.private_copy import copy_into
from tests.conftest import MemoryMaker

MB, GB = 1e6, 1e9
PAGES = 8192
KINDS = ("text", "random")
#: What a byte of contents becomes, and bytes a second to pack and to unpack it, by codec and by what the pages hold.
SPEEDS = {
    ("lz4", "text"): (0.51, 455 * MB, 3.3 * GB),
    ("zstd", "text"): (0.33, 297 * MB, 1.2 * GB),
    ("lz4", "random"): (1.01, 16 * GB, 22 * GB),
    ("zstd", "random"): (1.01, 8.8 * GB, 31 * GB),
}


@dataclass
class World:
    """A clock, and a link with a socket's buffer before it that is emptied while the clock goes."""

    link_bps: float
    buffer_bytes: float = 2.5e6
    now_s: float = 50.0
    sent_bytes: int = 0
    queued: float = 0.0
    #: How many times longer a batch takes to pack than a sample suggests.
    batches_take: float = 1.0

    def perf_counter(self) -> float:
        return self.now_s

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.queued = max(0.0, self.queued - self.link_bps * seconds)

    def queued_bytes(self) -> int:
        return round(self.queued)

    def send(self, size_bytes: int) -> None:
        self.sent_bytes += size_bytes
        self.pass_time(size_bytes / 6e9)
        self.queued += size_bytes
        if self.queued > self.buffer_bytes:
            self.pass_time((self.queued - self.buffer_bytes) / self.link_bps)


class MadeUpCodec:
    """A codec of which only size and time count. The first byte of the contents tells of what kind they are."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self._world = name, world

    def pack(self, contents: memoryview) -> bytes:
        share, pack_bps, _ = SPEEDS[self.name, KINDS[contents.cast("B")[0]]]
        is_sample = contents.nbytes == compression.SAMPLE_PAGES * PAGE_BYTES
        self._world.pass_time(contents.nbytes / pack_bps * (1.0 if is_sample else self._world.batches_take))
        return bytes(round(share * contents.nbytes))

    def unpack(self, packed: bytes, size_bytes: int) -> bytes:
        share = len(packed) / size_bytes
        self._world.pass_time(size_bytes / SPEEDS[self.name, KINDS[share > 1]][2])
        return b""


@dataclass
class Run:
    seconds: float
    packing: Packing


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch, make_memory: MemoryMaker) -> Worlds:
    return Worlds(monkeypatch, make_memory)


class Worlds:
    """Makes worlds and sends pages in them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, make_memory: MemoryMaker) -> None:
        self._monkeypatch = monkeypatch
        self.memory = make_memory(PAGES)
        self.hold("text", PageSet.span(0, PAGES))

    def hold(self, kind: str, pages: PageSet) -> None:
        """Give pages contents of a kind."""
        self.memory.array.reshape(-1, PAGE_BYTES)[pages.page_numbers(), 0] = KINDS.index(kind)

    def packing_in(self, world: World, mode: str) -> Packing:
        self._monkeypatch.setattr(packing_module, "new_codec", lambda name: MadeUpCodec(name, world))
        for clock in ("perf_counter", "thread_time"):
            self._monkeypatch.setattr(packing_module.time, clock, world.perf_counter)
        return Packing(mode, compression.codecs_of(mode), self.memory, LinkWatch(world))  # type: ignore[arg-type]

    def send_all(self, world: World, packing: Packing | None, times: int = 1) -> float:
        """Send all pages as a page stream does; gives how long it took until the link had carried them."""
        began_s = world.now_s
        for _ in range(times):
            for frame in PageSet.span(0, PAGES).batches(MAX_FRAME_PAGES):
                if packing is None:
                    world.send(frame.size_bytes)
                    continue
                for batch in frame.batches(packing.batch_pages):
                    packed = packing.pack(batch)
                    with packing.sending(batch, packed):
                        world.send(batch.size_bytes if packed is None else len(packed[1]))
        return world.now_s - began_s + world.queued / world.link_bps

    def compared(self, link_bps: float, mode: str, times: int = 1) -> tuple[float, Packing]:
        """Send all pages raw, and in a mode; gives how much of the time the mode takes."""
        raw_s = self.send_all(World(link_bps), None, times)
        world = World(link_bps)
        packing = self.packing_in(world, mode)
        return self.send_all(world, packing, times) / raw_s, packing


@pytest.mark.parametrize(
    ("link_bps", "codec", "at_most"),
    [(1.2 * MB, "zstd", 0.36), (12 * MB, "zstd", 0.36), (120 * MB, "zstd", 0.6), (170 * MB, "lz4", 0.85)],
)
def test_auto_compresses_for_a_slow_link(worlds: Worlds, link_bps: float, codec: str, at_most: float) -> None:
    share, packing = worlds.compared(link_bps, "auto", times=4)
    assert share < at_most
    told = packing.told()
    assert told.codec == codec
    assert told.link_Bps == pytest.approx(link_bps, rel=0.1)
    assert told.reason.startswith("it pays: it carries ")


@pytest.mark.parametrize("link_bps", [300 * MB, 1.2 * GB, 4 * GB])
def test_auto_leaves_a_fast_link_alone(worlds: Worlds, link_bps: float) -> None:
    """Samples and all, it takes hardly longer than raw pages."""
    share, packing = worlds.compared(link_bps, "auto", times=8)
    assert share < 1.01
    told = packing.told()
    assert told.compressed_pages == 0
    assert told.raw_pages == 8 * PAGES
    assert told.reason.startswith("the link is too fast for it to pay: it carries ")


@pytest.mark.parametrize("mode", ["auto", *CODECS])
@pytest.mark.parametrize("link_bps", [12 * MB, 1.2 * GB])
def test_what_does_not_compress_costs_next_to_nothing(worlds: Worlds, link_bps: float, mode: str) -> None:
    worlds.hold("random", PageSet.span(0, PAGES))
    share, packing = worlds.compared(link_bps, mode, times=4)
    assert share < 1.01
    assert packing.told().compressed_pages == 0
    assert packing.told().reason.startswith("the pages do not compress: ")


@pytest.mark.parametrize("mode", ["auto", *CODECS])
def test_pages_that_do_and_pages_that_do_not(worlds: Worlds, mode: str) -> None:
    """Every other 4 MiB: what does not compress goes raw, and what does is found again."""
    for start in range(0, PAGES, 2048):
        worlds.hold("random", PageSet.span(start, start + 1024))
    share, packing = worlds.compared(12 * MB, mode)
    told = packing.told()
    assert told.compressed_pages > 0.8 * PAGES / 2
    best = {"lz4": 0.51}.get(mode, 0.33)
    assert share < 0.5 + 0.5 * best + 0.1


def test_auto_follows_a_link_that_changes(worlds: Worlds) -> None:
    world = World(12 * MB)
    packing = worlds.packing_in(world, "auto")
    worlds.send_all(world, packing)
    assert packing.told().compressed_pages > 0.9 * PAGES
    # Now it carries more than a codec makes; nothing tells, but that the link waits.
    world.link_bps = 2 * GB
    worlds.send_all(world, packing, times=30)
    before = packing.told()
    assert before.reason.startswith("the link is too fast for it to pay")
    worlds.send_all(world, packing, times=4)
    assert packing.told().compressed_pages == before.compressed_pages
    world.link_bps = 12 * MB
    worlds.send_all(world, packing, times=2)
    assert packing.told().compressed_pages > before.compressed_pages + PAGES


def test_auto_begins_raw_and_does_not_take_long_to_know(worlds: Worlds) -> None:
    world = World(12 * MB)
    packing = worlds.packing_in(world, "auto")
    worlds.send_all(world, packing)
    # What fills the socket's buffer, and a batch or two.
    assert packing.told().raw_pages * PAGE_BYTES <= world.buffer_bytes + 3 * compression.PACKED_PAGES * PAGE_BYTES


def test_samples_are_few_and_small(worlds: Worlds) -> None:
    world = World(500 * MB)
    packing = worlds.packing_in(world, "auto")
    took_s = worlds.send_all(world, packing, times=32)
    told = packing.told()
    assert told.samples > 1
    assert told.sample_s < 0.01 * took_s
    assert told.pack_s == 0.0


def test_where_no_codec_could_pay_there_is_one_sample(worlds: Worlds) -> None:
    world = World(1.2 * GB)
    packing = worlds.packing_in(world, "auto")
    worlds.send_all(world, packing, times=8)
    assert packing.told().samples == 1


@pytest.mark.parametrize("link_bps", [60 * MB, 120 * MB])
def test_auto_gives_up_what_goes_slower_than_it_expected(worlds: Worlds, link_bps: float) -> None:
    """Samples are quick, as ever; whole batches take ten times as long, because the CPU has other work to do."""
    raw_s = worlds.send_all(World(link_bps), None, times=32)
    world = World(link_bps, batches_take=10.0)
    packing = worlds.packing_in(world, "auto")
    assert worlds.send_all(world, packing, times=32) / raw_s < 1.05
    told = packing.told()
    assert 0 < told.compressed_pages < 0.05 * 32 * PAGES
    # When it has the CPU again, it is tried again.
    world.batches_take = 1.0
    worlds.send_all(world, packing, times=32)
    assert packing.told().compressed_pages > told.compressed_pages + 8 * PAGES


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_that_was_asked_for_takes_no_samples_while_it_is_used(worlds: Worlds, codec: str) -> None:
    world = World(12 * MB)
    packing = worlds.packing_in(world, codec)
    worlds.send_all(world, packing)
    told = packing.told()
    assert (told.samples, told.compressed_pages, told.raw_pages) == (0, PAGES, 0)
    assert told.ratio == pytest.approx(1 / SPEEDS[codec, "text"][0], rel=0.01)
    assert told.raw_bytes == PAGES * PAGE_BYTES
    assert told.sent_bytes == world.sent_bytes
    assert told.pack_s == pytest.approx(told.raw_bytes / SPEEDS[codec, "text"][1], rel=0.01)


def test_a_copy_is_what_is_packed(make_memory: MemoryMaker, worlds: Worlds) -> None:
    """Page by page in ascending order, whatever the runs, and nothing that the guest stores afterwards."""
    world = World(12 * MB)
    packing = worlds.packing_in(world, "lz4")
    array = worlds.memory.array.reshape(-1, PAGE_BYTES)
    array[:] = np.arange(PAGES, dtype=np.uint8)[:, None]
    pages = PageSet.of_runs([0, 7, 300], [3, 200, 301])
    copy = copy_into(packing._room, packing._pages, pages)
    array[:] = 99
    assert np.array_equal(copy, np.repeat(pages.page_numbers().astype(np.uint8)[:, None], PAGE_BYTES, axis=1))
