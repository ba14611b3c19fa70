"""Must show: no page that a resumed guest can see is half-filled, stale, or applied twice.

A destination's memory has pages that are current, stale, absent and zero, in runs of every length. Native threads of another
process load and store in it at random through the mapping that is registered with userfaultfd, and check every page they touch,
while pushes from two connections fill it, fetches are answered and pages are published, by the real code of both hosts. When
nothing is missing the mapping is disarmed, the threads go on for a moment, and all memory is compared.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from pagefire.dest_host.fault_connection import FaultConnection
from pagefire.dest_host.fault_handler import FaultHandler
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import userfaultfd
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.tasks import beside
from pagefire.source_host import postcopy
from pagefire.source_host.fault_stream import FaultStream
from pagefire.source_host.page_stream import PageStream
from tests.conftest import MemoryMaker
from tests.support.kernel import need_userfaultfd
from tests.support.memory import contents
from tests.support.memory_user import MemoryUser
from tests.support.page_link import PageLink, fault_ends

pytestmark = pytest.mark.kernel

PAGES = 8192
THREADS = 4
FIRST_OWN_WORD = 448
PATIENCE_S = 60.0
#: What a page may be at the resume, and its share: current here, stale here, absent here, stale here and zero at
#: the source, absent here and zero at the source, a hole that nobody names.
CURRENT, STALE, ABSENT, STALE_NOW_ZERO, ABSENT_ZERO, HOLE = range(6)
SHARES = [0.3, 0.2, 0.3, 0.08, 0.06, 0.06]

FIGURES = (
    "reads",
    "wrong_reads",
    "lost_stores",
    "fetched_pages",
    "minor_faults",
    "waits",
    "duplicates",
    "pages_compared",
    "wrong_copies",
)

Record = Callable[[str, object], None]
Words = npt.NDArray[np.uint64]


@pytest.mark.parametrize(
    "iterations",
    [
        pytest.param(15, id="15 memories", marks=pytest.mark.e2e),
        pytest.param(300, id="300 memories", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
async def test_no_wrong_page_is_seen(
    iterations: int, user: MemoryUser, make_memory: MemoryMaker, record_property: Record
) -> None:
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    figures = dict.fromkeys(("iterations", *FIGURES), 0)
    first: list[str] = []
    for iteration in range(iterations):
        resumed = Resumed(iteration, user, make_memory)
        try:
            await resumed.run()
        finally:
            resumed.close()
        figures["iterations"] += 1
        for name, figure in resumed.figures.items():
            figures[name] += figure
        if resumed.figures["wrong_reads"] or resumed.figures["lost_stores"] or resumed.figures["wrong_copies"]:
            first.append(f"iteration {iteration}: {resumed.figures} {resumed.first}")
    for name, figure in figures.items():
        record_property(name, figure)
    print(f"\n{', '.join(f'{name}={figure}' for name, figure in figures.items())}")
    assert not first
    assert figures["wrong_reads"] == figures["lost_stores"] == figures["wrong_copies"] == 0
    assert min(figures[name] for name in ("reads", "fetched_pages", "minor_faults")) > 25 * iterations


class Resumed:
    """One guest's memory from its last round to its disarming."""

    def __init__(self, seed: int, user: MemoryUser, make_memory: MemoryMaker) -> None:
        self._random = np.random.default_rng(seed)
        self._user = user
        self._seed = seed
        self.here, self.there = make_memory(PAGES), make_memory(PAGES)
        self._stamps = make_memory(PAGES * 8 // PAGE_BYTES)
        self._stored = make_memory(THREADS * PAGES * 8 // PAGE_BYTES)
        self._kinds = self._choose_kinds()
        self.figures: dict[str, int] = {}
        self.first = ""
        user.map(self.there)
        self._uffd = user.open_uffd(userfaultfd.DEMAND_PAGING, keep=True)
        self._publisher = Publisher(self._uffd, user.address, self.there.size_bytes)
        self._publisher.arm()

    async def run(self) -> None:
        async with PageLink(self.here, self.there, streams=2, publisher=self._publisher) as link:
            await self._bring_to_the_switchover(link)
            complete, broken = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()
            missing = self._pages(STALE, ABSENT, STALE_NOW_ZERO, ABSENT_ZERO)
            link.intake.resume_begins(missing, lambda: loop.call_soon_threadsafe(complete.set))
            handler = FaultHandler(
                self._uffd, self._user.address, link.ledger, link.intake,
                on_error=lambda error: broken.set(),
            )  # fmt: skip
            handler.start()
            await asyncio.to_thread(
                self._user.ask, "stress", [self._stamps.fd, self._stored.fd],
                kind="Readers", threads=THREADS, seed=self._seed * THREADS,
            )  # fmt: skip
            ours, (wire, connection) = fault_ends(checksum=self._seed % 2 == 1)
            landing = Landing(wire, self.there, link.ledger)
            remaining = postcopy.Remaining(missing)
            source = FaultStream(*ours, self.here)
            fetched = FaultConnection(wire, connection, landing, link.intake, on_end=lambda error: None)
            fetched.start()
            handler.ask_by(fetched.ask)
            await asyncio.sleep(0.005)
            source.serve(remaining)
            async with asyncio.timeout(PATIENCE_S):
                await beside(complete.wait(), self._push_after_a_while(remaining, link), source.ended())
            self._publisher.disarm()
            handler.stop()
            await asyncio.sleep(0.01)
            await asyncio.to_thread(self._user.ask, "tell_stress", what="stop")
            await source.close()
            fetched.abort()
            assert not broken.is_set()
            assert not link.ends
            self._judge(handler, link)

    async def _bring_to_the_switchover(self, link: PageLink) -> None:
        """Write what the destination gets by a round, send it, then write what is at the source when the guest stops."""
        stamps = np.arange(1, PAGES + 1, dtype=np.uint64) << np.uint64(32)
        words = self.here.array.view(np.uint64).reshape(PAGES, -1)
        older = self._pages(CURRENT, STALE, STALE_NOW_ZERO).page_numbers()
        words[older] = (stamps + np.uint64(1 << 20))[older, None] + np.arange(512, dtype=np.uint64)
        current = self._pages(CURRENT).page_numbers()
        words[current] = stamps[current, None] + np.arange(512, dtype=np.uint64)
        await link.send_round(self._pages(CURRENT, STALE, STALE_NOW_ZERO))
        newer = self._pages(STALE, ABSENT).page_numbers()
        words[newer] = stamps[newer, None] + np.arange(512, dtype=np.uint64)
        words[self._pages(STALE_NOW_ZERO).page_numbers()] = 0
        stamps[self._pages(STALE_NOW_ZERO, ABSENT_ZERO, HOLE).page_numbers()] = 0
        self._stamps.array.view(np.uint64)[:] = stamps

    async def _push_after_a_while(self, remaining: postcopy.Remaining, link: PageLink) -> None:
        """Let faults have the first word; then push, in steps so small that faults keep coming in between."""
        await asyncio.sleep(0.005)

        def drive(stream: PageStream, steps: np.random.Generator) -> None:
            while batch := remaining.take_next(int(steps.integers(1, 100))):
                stream.send_pages(batch)

        async with asyncio.TaskGroup() as group:
            for stream, steps in zip(link.streams, self._random.spawn(len(link.streams)), strict=True):
                group.create_task(stream.push(partial(drive, steps=steps)))

    def _judge(self, handler: FaultHandler, link: PageLink) -> None:
        told = self._user.ask("tell_stress", what="told")[0]
        stamps = self._stamps.array.view(np.uint64)
        expected = np.where(stamps[:, None] != 0, stamps[:, None] + np.arange(512, dtype=np.uint64), np.uint64(0))
        stored = self._stored.array.view(np.uint64).reshape(THREADS, PAGES)
        expected[:, FIRST_OWN_WORD : FIRST_OWN_WORD + THREADS] += stored.T
        wrong = (contents(self.there).view(np.uint64) != expected).any(axis=1)
        self._user.ask("tell_stress", what="close")
        self.first = f"{told['first']}, kinds {self._kinds[[int(each[0]) for each in told['first']]]}"
        self.figures = {
            "reads": told["reads"],
            "wrong_reads": told["wrong"],
            "lost_stores": told["lost"],
            "fetched_pages": link.ledger.received()[0],
            "minor_faults": handler.minor_faults,
            "waits": len(link.intake.waits_ns),
            "duplicates": link.ledger.duplicates,
            "pages_compared": PAGES,
            "wrong_copies": int(wrong.sum()),
        }

    def _choose_kinds(self) -> npt.NDArray[np.int64]:
        """Divide memory into runs of 1 to some 60 pages, each of one kind."""
        lengths = np.minimum(self._random.geometric(0.08, PAGES), 60)
        kinds = self._random.choice(len(SHARES), PAGES, p=SHARES)
        return np.repeat(kinds, lengths)[:PAGES]

    def _pages(self, *kinds: int) -> PageSet:
        return PageSet.of_pages(np.flatnonzero(np.isin(self._kinds, kinds)))

    def close(self) -> None:
        self._user.ask("close_uffd")
        os.close(self._uffd)
        for memory in (self.here, self.there, self._stamps, self._stored):
            memory.close()
