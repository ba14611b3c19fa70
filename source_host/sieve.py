"""The pages of one connection's round, sifted: those that the destination holds already are left out (`--skip-unchanged`).

What passes is the private copy that was digested, never memory again (sent_digests.py says why). Copies that pass are gathered over
several looks, so that the one page of 512 that has changed does not make a frame of its own; none is kept back longer than the
pages that were given together. What is decided, skipping.py says; here are the clock and the memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.compression import LinkSpeed
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.report import Unchanged
from pagefire.protocol.transport.wire import Wire
from pagefire.protocol.units import format_throughput
from pagefire.source_host.private_copy import copy_into
from pagefire.source_host.sent_digests import Contents, Numbers, SentDigests
from pagefire.source_host.skipping import Choice, Why, choose

#: Pages that are copied and digested together (1 MiB: for the second they are still in the CPU's cache), and what is gathered
#: before it is sent.
LOOK_PAGES = 256
#: What was compared weighs half after so many more pages.
_SHARE_PAGES = 4096
#: Pages of a sample of `share_changed`, some milliseconds. With 256, of which 5% are found by chance 2 to 8, stuns of pre-copy were
#: up to 1.3 times as long as their limit.
_SAMPLE_PAGES = 2048


class Sieve:
    """Sifts what one page connection sends in rounds; used by its thread; `told` by any."""

    def __init__(self, mode: str, digests: SentDigests, memory: Mapping, wire: Wire, *, coarse: bool) -> None:
        """`mode` is on or auto. `coarse`: the tracker notes writes by more than a page."""
        self._mode = mode
        self._coarse = coarse
        self._digests = digests
        self._wire = wire
        self._pages: Contents = memory.array.reshape(-1, PAGE_BYTES)
        # One look's pages behind what was gathered, which is less than that. Memory that is taken when it is first touched.
        self._room = np.empty((2 * LOOK_PAGES, PAGE_BYTES), np.uint8)
        self._numbers = np.empty(2 * LOOK_PAGES, np.int64)
        self._room_digests = np.empty((2 * LOOK_PAGES, 2), np.uint64)
        self._gathered = 0
        self._speed = LinkSpeed()
        self._link_bps: float | None = None
        self._look_bps: float | None = None
        self._compared_pages = self._same_pages = 0.0
        self._choice = Choice(False, Why.NO_ROUNDS)
        #: What was left out so far, and how long looking took, in ns.
        self.unchanged_pages = 0
        self.look_ns = 0
        self._told = Unchanged(mode)

    def told(self) -> Unchanged:
        """Give what was done so far, and why the last pages went as they did."""
        reason = self._choice.why.value
        if self._mode == "auto" and self._link_bps is not None and self._look_bps is not None:
            reason += f": it carries {format_throughput(self._link_bps)}, and {format_throughput(self._look_bps)} are looked at"
        return replace(self._told, unchanged_pages=self.unchanged_pages, hash_s=self.look_ns / 1e9, reason=reason)

    def begin(self) -> None:
        """A round begins. What one that was broken off had gathered is nobody's any more."""
        self._gathered = 0
        self._speed.begin()

    def changed(self, parts: Iterable[PageSet]) -> Iterator[tuple[PageSet, Contents | None]]:
        """Give what of `parts`, ascending pages with contents, is to be sent before more is asked for, with its copies.

        No copies: auto does not look, and the pages go as they are. A copy is valid until the next one is asked for.
        """
        for part in parts:
            left = part
            while left and self._looks():
                batch, left = left.part(0, LOOK_PAGES), left.part(LOOK_PAGES, left.pages)
                self._take(batch)
                if self._gathered >= LOOK_PAGES:
                    yield from self._rest()
            if left:
                yield from self._rest()
                # Before they go: from here on nothing of these pages is known.
                self._digests.forget(left)
                yield from self._watched(left, None)
        yield from self._rest()

    def zeros_to_send(self, pages: PageSet) -> PageSet:
        """Leave those out that the destination holds as zeros, of pages that hold only zeros."""
        there = self._digests.zero_there(pages)
        self.unchanged_pages += there.pages
        return pages - there

    def sent_zeros(self, pages: PageSet) -> None:
        """These pages have been sent as zero pages."""
        self._digests.hold_zeros(pages)

    def sent_otherwise(self, pages: PageSet) -> None:
        """These pages are sent, and the sieve was not asked."""
        self._digests.forget(pages)

    def share_changed(self, pages: PageSet) -> float:
        """Estimate, by a sample, which share of `pages` the destination does not hold as they are; 1 where nobody looks.

        Any thread, while no round is under way.
        """
        if not pages or not self._choice.look:
            return 1.0
        # At random: pages that were made dirty by 512 have a pattern that a fixed step would meet always at the same place.
        ranks = np.random.default_rng().integers(0, pages.pages, _SAMPLE_PAGES)
        ends = np.cumsum(pages.counts)
        runs = np.searchsorted(ends, ranks, "right")
        sample = PageSet.of_pages(pages.stops[runs] - (ends[runs] - ranks))
        copies = copy_into(np.empty((sample.pages, PAGE_BYTES), np.uint8), self._pages, sample)
        same, _ = self._digests.look(sample, self._digests.of(copies))
        return 1.0 - float(same.mean())

    def _looks(self) -> bool:
        if self._mode == "auto" and self._coarse:
            # A link that has little to carry because most is left out shows no speed: then it is what it was.
            self._link_bps = self._speed.bps(time.perf_counter()) or self._link_bps
        share = self._same_pages / self._compared_pages if self._compared_pages else None
        self._choice = choose(
            self._mode, coarse=self._coarse, link_bps=self._link_bps, look_bps=self._look_bps, unchanged_share=share
        )
        return self._choice.look

    def _take(self, batch: PageSet) -> None:
        """Copy and digest pages, and gather those of them that the destination does not hold just so."""
        began_ns = time.perf_counter_ns()
        at, numbers = self._gathered, batch.page_numbers()
        copies = copy_into(self._room[at:], self._pages, batch)
        digests = self._digests.of(copies)
        same, known = self._digests.look(batch, digests)
        left_out = int(np.count_nonzero(same))
        if left_out:
            keep = np.flatnonzero(~same)
            numbers, digests = numbers[keep], digests[keep]
            self._room[at : at + keep.size] = copies[keep]
        self._numbers[at : at + numbers.size] = numbers
        self._room_digests[at : at + numbers.size] = digests
        self._gathered += numbers.size
        self.unchanged_pages += left_out
        self._told.hashed_pages += batch.pages
        fades = 0.5 ** (known / _SHARE_PAGES)
        self._compared_pages = fades * self._compared_pages + known
        self._same_pages = fades * self._same_pages + left_out
        took_ns = time.perf_counter_ns() - began_ns
        self.look_ns += took_ns
        self._note_look(batch, took_ns)

    def _note_look(self, pages: PageSet, took_ns: int) -> None:
        # Of a few pages it would be the time of a call.
        if pages.pages >= LOOK_PAGES or self._look_bps is None:
            bps = pages.size_bytes * 1e9 / max(took_ns, 1)
            self._look_bps = bps if self._look_bps is None else 0.9 * self._look_bps + 0.1 * bps

    def _rest(self) -> Iterator[tuple[PageSet, Contents | None]]:
        """Give what was gathered, if anything was."""
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, 0
        numbers: Numbers = self._numbers[:gathered]
        yield from self._watched(PageSet.of_pages(numbers), self._room[:gathered])
        self._digests.hold(numbers, self._room_digests[:gathered])

    def _watched(self, pages: PageSet, copies: Contents | None) -> Iterator[tuple[PageSet, Contents | None]]:
        """Give it, and watch the link while it is sent."""
        if self._mode != "auto" or not self._coarse:
            yield pages, copies
            return
        sent_bytes = self._wire.sent_bytes
        self._speed.before_batch(time.perf_counter(), sent_bytes, self._wire.queued_bytes())
        yield pages, copies
        # What was packed was not at hand as fast as any link takes it.
        raw = self._wire.sent_bytes - sent_bytes >= pages.size_bytes
        self._speed.after_batch(time.perf_counter(), self._wire.sent_bytes, self._wire.queued_bytes(), raw=raw)
