"""Must show: no store is lost between a tracker and the destination's memory, however the guest's pages come and go.

Writers in another process store all the time, zeroing whole pages now and then, while pages are zapped and paged out and rounds
of scan, send and land go on through the real code. At each stop the last collection is sent, and both memories and what the
writers vouch for are compared byte for byte. Between stops some pages are given back, so that there are always holes.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable

import numpy as np
import pytest

from pagefire.protocol.pages import GRANULE_PAGES, PageSet, pages_of
from pagefire.source_host.tracking import NOTHING
from tests.conftest import MemoryMaker
from tests.source_host.test_trackers import tracker_of
from tests.support.kernel import need_pagemap_scan
from tests.support.memory import contents
from tests.support.memory_user import MemoryUser
from tests.support.page_link import PageLink
from tests.support.swap import swapped_out_pages, zram_swap
from tests.support.tracing import install_at_once

pytestmark = pytest.mark.kernel

PAGES = 4 * GRANULE_PAGES + 100
RESIDENT_PAGES = 2 * GRANULE_PAGES
STOPS_PER_MIGRATION = 10
_MADV_DONTNEED = 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

Record = Callable[[str, object], None]

COUNTS = [
    pytest.param(30, id="30 stops", marks=pytest.mark.e2e),
    pytest.param(1000, id="1000 stops", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize("stops", COUNTS)
@pytest.mark.parametrize("tracker_name", ["pagemap-scan", "page-fire"])
async def test_no_store_is_lost(
    tracker_name: str, stops: int, user: MemoryUser, make_memory: MemoryMaker, record_property: Record
) -> None:
    await stress(tracker_name, stops, user, make_memory, record_property)


@pytest.mark.root
@pytest.mark.alone
@pytest.mark.parametrize("stops", COUNTS)
async def test_no_store_is_lost_while_pages_are_swapped_out(
    stops: int, user: MemoryUser, make_memory: MemoryMaker, record_property: Record
) -> None:
    with zram_swap(PAGES * 8192):
        await stress("pagemap-scan", stops, user, make_memory, record_property, swap=True)


async def stress(
    tracker_name: str, stops: int, user: MemoryUser, make_memory: MemoryMaker, record: Record, *, swap: bool = False
) -> None:
    need_pagemap_scan()
    swapped_before = swapped_out_pages()
    stopped = compared_pages = wrong_pages = stores = zapped = rounds = 0
    first_wrong: list[str] = []
    while stopped < stops:
        migration = Migration(tracker_name, stopped, user, make_memory, swap)
        async with contextlib.aclosing(migration):
            await migration.begin()
            ahead = min(STOPS_PER_MIGRATION, stops - stopped)
            for index in range(ahead):
                wrong = await migration.run_and_stop(for_good=index == ahead - 1)
                stopped += 1
                compared_pages += PAGES
                wrong_pages += wrong.pages
                if wrong:
                    first_wrong.append(f"stop {stopped}: {wrong} {wrong.starts[:4]}")
            stores, zapped = stores + migration.told["stores"], zapped + migration.told["zapped"]
            rounds += migration.link.rounds
    swapped = swapped_out_pages() - swapped_before
    figures = {
        "tracker": tracker_name,
        "stops": stopped,
        "rounds": rounds,
        "stores": stores,
        "zapped_pages": zapped,
        "swapped_out_pages": swapped,
        "pages_compared": compared_pages,
        "wrong_copies": wrong_pages,
    }
    for name, figure in figures.items():
        record(name, figure)
    paging = "" if swapped else "; page-out was not effective: no swap"
    print(f"\n{', '.join(f'{name}={figure}' for name, figure in figures.items())}{paging}")
    assert not first_wrong
    assert wrong_pages == 0
    assert stores > 100 * stops
    assert zapped
    assert bool(swapped) or not swap


class Migration:
    """One guest and its copy, from tracing's installation to its removal."""

    def __init__(self, tracker_name: str, seed: int, user: MemoryUser, make_memory: MemoryMaker, swap: bool) -> None:
        self.here, self.there = make_memory(PAGES), make_memory(PAGES)
        self.told = {"stores": 0, "zapped": 0}
        self._vouched = make_memory(pages_of(PAGES * 16))
        self._user = user
        self._swap = swap
        self._random = np.random.default_rng(seed)
        self._sent = PageSet.empty()
        user.map(self.here)
        # Contents from before the tracing, in a part of memory; the rest are holes.
        user.ask(
            "stress", [self._vouched.fd], kind="Writers", threads=2, often=RESIDENT_PAGES, zaps=True, seed=seed + 1
        )
        user.ask("tell_stress", what="go")
        time.sleep(0.01)
        self._tracker = tracker_of(tracker_name, user, self.here)

    async def begin(self) -> None:
        """Install tracing beside the writers and send what there is."""
        self.link = PageLink(self.here, self.there, streams=2)
        await self._send(install_at_once(self._tracker), PageSet.empty())

    async def run_and_stop(self, *, for_good: bool) -> PageSet:
        """Let the writers write over some rounds, stop them, send the rest; gives the pages that are wrong at the destination."""
        unsent = NOTHING
        for _ in range(int(self._random.integers(1, 4))):
            collected = self._tracker.collect_and_clear()
            await self._send(collected.written, collected.holes)
        if self._random.integers(2):
            unsent = self._tracker.collect_and_clear()
        self._user.ask("tell_stress", what="stop")
        left = unsent | (self._tracker.collect_last() if for_good else self._tracker.collect_and_clear())
        await self._send(left.written, left.holes)
        if not for_good:
            assert not self._tracker.collect_and_clear().written, "a guest that stands still has written"
        self.told = self._user.ask("tell_stress", what="told")[0]
        wrong = self._compare()
        if not for_good:
            self._give_back()
            self._user.ask("tell_stress", what="go")
        return wrong

    async def _send(self, written: PageSet, holes: PageSet) -> None:
        # As the migration does: a hole that the destination never had contents for is zero there already.
        await self.link.send_round(written, holes & self._sent)
        self._sent |= written

    def _compare(self) -> PageSet:
        here, there = contents(self.here), contents(self.there)
        vouched = self._vouched.array.view(np.uint64)[: PAGES * 2].reshape(-1, 2)
        words = there.view(np.uint64)
        differs = (here != there).any(axis=1)
        differs |= words[:, 0] != vouched[:, 0]
        differs |= words.sum(axis=1, dtype=np.uint64) != vouched[:, 1]
        return PageSet.of_pages(np.flatnonzero(differs))

    def _give_back(self) -> None:
        """Write some pages and give them back at once: holes that the tracker has to tell from contents."""
        pages = np.unique(self._random.integers(0, PAGES, 20)).tolist()
        self._user.store(pages, 1)
        self._user.punch(pages)
        self._vouched.array.view(np.uint64).reshape(-1, 2)[pages] = 0
        if self._swap and _libc.madvise(self.here.address, self.here.size_bytes, _MADV_DONTNEED):
            # A page that this process has mapped as well is not paged out by the guest's wish alone.
            raise OSError(ctypes.get_errno(), "madvise")

    async def aclose(self) -> None:
        self._user.ask("tell_stress", what="stop")
        self._tracker.remove()
        await self.link.__aexit__(None, None, None)
        for memory in (self.here, self.there, self._vouched):
            memory.close()
