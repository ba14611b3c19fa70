"""The pages of one connection's round as differences to what the destination holds of them (`--delta-cache`; XBZRLE in QEMU).

A page that was written again has changed in a few places, as a rule: XORed with the version last sent it is zeros but there, and
these a codec makes next to nothing of, also where the page itself does not compress. What is packed is decided as for whole pages
(packing.py), by a measurement of its own; where that says no, the page goes whole. What there is no version of goes whole as well.

`auto` takes no differences on a link that is too fast for any codec: then pages go as they are, and nothing of them is known here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.compression import LEAST_PAGES, PACKED_PAGES, worth_a_look
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.source_host.link_watch import LinkWatch
from pagefire.source_host.packing import Packing
from pagefire.source_host.private_copy import copy_into
from pagefire.source_host.sent_digests import Contents
from pagefire.source_host.sent_versions import SentVersions

#: Pages of a sample of `shares`, some milliseconds.
_SAMPLE_PAGES = PACKED_PAGES


class Part(NamedTuple):
    """Pages that go together: as `differences` of which `packed` was made (codec and bytes), else whole, as their `copies` are.

    No copies: as memory is.
    """

    pages: PageSet
    copies: Contents | None
    packed: tuple[str, bytes] | None = None


class Deltas:
    """Takes the differences of what one page connection sends in rounds; used by its thread; counters are read by any.

    packing: what became of differences. delta_pages: those that went so, of which delta_bytes were left. whole_pages: pages of
    rounds that had contents and of which there was no version. take_ns: how long copying, comparing and packing took.
    """

    def __init__(self, versions: SentVersions, packing: Packing, memory: Mapping, watch: LinkWatch) -> None:
        """`packing` is for differences; `watch` watches the connection."""
        self._versions = versions
        self.packing = packing
        self._watch = watch
        self._pages: Contents = memory.array.reshape(-1, PAGE_BYTES)
        self._room = np.empty((PACKED_PAGES, PAGE_BYTES), np.uint8)
        self._differences = np.empty((PACKED_PAGES, PAGE_BYTES), np.uint8)
        self.delta_pages = self.delta_bytes = self.whole_pages = 0
        self.take_ns = 0

    def parts(self, pages: PageSet, copies: Contents | None = None) -> Iterator[Part]:
        """Divide pages that are to be sent into what goes as differences and what goes whole.

        `copies` are private ones, where there are any. A part is valid until the next one is asked for, and has been sent by then.
        """
        if self._goes_as_it_is():
            self._versions.forget(pages)
            yield Part(pages, copies)
            return
        for at in range(0, pages.pages, PACKED_PAGES):
            batch = pages.part(at, at + PACKED_PAGES)
            yield from self._divided(batch, None if copies is None else copies[at : at + PACKED_PAGES])

    def sent_otherwise(self, pages: PageSet) -> None:
        """These pages are sent, and nobody asked for their differences."""
        self._versions.forget(pages)

    def shares(self, pages: PageSet) -> tuple[float, float]:
        """Estimate which share of the contents of `pages` would have to be sent, and once each of them has been sent again.

        Any thread, while no round is under way.
        """
        if not pages or self._goes_as_it_is():
            return 1.0, 1.0
        held = self._versions.held_among(pages)
        if not held:
            return 1.0, 1.0
        # At random: what lies together was written together.
        some = np.random.default_rng().integers(0, held.pages, _SAMPLE_PAGES)
        sample = PageSet.of_pages(held.page_numbers()[some])
        copies = copy_into(self._room, self._pages, sample)
        saved = 1.0 - self.packing.share_left(self._versions.compared(sample, copies))
        may_be_held = min(self._versions.slots / pages.pages, 1.0)
        return 1.0 - saved * held.pages / pages.pages, 1.0 - saved * may_be_held

    def _goes_as_it_is(self) -> bool:
        return self.packing.mode == "auto" and not worth_a_look(self._watch.bps)

    def _divided(self, batch: PageSet, copies: Contents | None) -> Iterator[Part]:
        began_ns = time.perf_counter_ns()
        if copies is None:
            copies = copy_into(self._room, self._pages, batch)
        known = self._versions.exchange(batch, copies, self._differences)
        count = int(np.count_nonzero(known))
        self.whole_pages += batch.pages - count
        if count < LEAST_PAGES:
            self.take_ns += time.perf_counter_ns() - began_ns
            yield Part(batch, copies)
            return
        numbers = None if count == batch.pages else batch.page_numbers()
        again = batch if numbers is None else PageSet.of_pages(numbers[known])
        packed = self.packing.pack(again, self._differences[:count])
        self.take_ns += time.perf_counter_ns() - began_ns
        if packed is None:
            # It was written all over, or is not worth it: as whole pages they may compress.
            yield Part(batch, copies)
            return
        self.delta_pages += count
        self.delta_bytes += len(packed[1])
        yield Part(again, None, packed)
        if numbers is not None:
            yield Part(PageSet.of_pages(numbers[~known]), copies[~known])
