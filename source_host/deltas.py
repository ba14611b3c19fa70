"""The pages of one connection's round as differences to what the destination holds of them (`--delta-cache`; XBZRLE in QEMU).

A page that was written again has changed in a few places, as a rule: XORed with the version last sent it is zeros but there, and
these a codec makes next to nothing of, also where the page itself does not compress. What is packed is decided as for whole pages
(packing.py), by a measurement of its own; where that says no, the page goes whole. What there is no version of goes whole as well.

So does a page that was written all over, which is decided page by page: of a guest of oltp, which fills some pages anew and
changes a row in others, batches with both did not become small enough, so that 12,000 of 26,500 pages went as differences, and the
others' 22 MB took 1.3 s. Page by page 24,800 did, and all of them took 0.2 s.

A guest that outruns its link, against digests and the same codec, is what `pagefire bench deltas` measures (docs/compression.md).
A page takes 3 us here, which holds a round up where the link carries 1 GB/s or more: `auto` takes no differences where a link is
too fast for any codec. Then pages go as they are, and nothing of them is known here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.compression import LEAST_PAGES, PACKED_PAGES, worth_a_look
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.report import DeltaCache
from pagefire.source_host.link_watch import LinkWatch
from pagefire.source_host.packing import Packing
from pagefire.source_host.private_copy import copy_into
from pagefire.source_host.sent_digests import Contents, Mask
from pagefire.source_host.sent_versions import SentVersions

#: Pages of a sample of `shares`.
_SAMPLE_PAGES = PACKED_PAGES

#: Pages of which more words of 8 bytes have changed go whole: what was written all over may compress, and its difference does not.
_MOST_WORDS = PAGE_BYTES // 8 // 2


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
    rounds that had contents and of which there was no version; rewritten_pages: those that were written all over. take_ns: how
    long copying, comparing and packing took.
    """

    def __init__(self, versions: SentVersions, packing: Packing, memory: Mapping, watch: LinkWatch) -> None:
        """`packing` is for differences; `watch` watches the connection."""
        self._versions = versions
        self.packing = packing
        self._watch = watch
        self._pages: Contents = memory.array.reshape(-1, PAGE_BYTES)
        self._room = np.empty((PACKED_PAGES, PAGE_BYTES), np.uint8)
        self._differences = np.empty((PACKED_PAGES, PAGE_BYTES), np.uint8)
        self.delta_pages = self.delta_bytes = self.whole_pages = self.rewritten_pages = 0
        self.take_ns = 0
        #: The most pages of which `shares` was asked.
        self._most_left = 0

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
        """Estimate which share of the contents of `pages`, which a round has left, the next one would have to send, and later ones.

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
        differences = self._versions.compared(sample, copies)
        little = differences[_changed_words(differences) <= _MOST_WORDS]
        saved = (1.0 - self.packing.share_left(little)) * len(little) / len(differences)
        # Who writes few pages in a short round writes others in the next one.
        self._most_left = max(self._most_left, pages.pages)
        may_be_held = min(self._versions.slots / self._most_left, 1.0)
        return 1.0 - saved * held.pages / pages.pages, 1.0 - saved * may_be_held

    def _goes_as_it_is(self) -> bool:
        return self.packing.mode == "auto" and not worth_a_look(self._watch.bps)

    def _divided(self, batch: PageSet, copies: Contents | None) -> Iterator[Part]:
        began_ns = time.perf_counter_ns()
        if copies is None:
            copies = copy_into(self._room, self._pages, batch)
        known = self._versions.exchange(batch, copies, self._differences)
        differences = self._differences[: int(np.count_nonzero(known))]
        little = _changed_words(differences) <= _MOST_WORDS
        again = known.copy()
        again[known] = little
        count = int(np.count_nonzero(little))
        self.whole_pages += batch.pages - len(differences)
        self.rewritten_pages += len(differences) - count
        pages, packed = _chosen(batch, again), None
        if count >= LEAST_PAGES:
            packed = self.packing.pack(pages, differences if count == len(differences) else differences[little])
        self.take_ns += time.perf_counter_ns() - began_ns
        if packed is None:
            yield Part(batch, copies)
            return
        self.delta_pages += count
        self.delta_bytes += len(packed[1])
        yield Part(pages, None, packed)
        if count < batch.pages:
            yield Part(_chosen(batch, ~again), copies[~again])


def _changed_words(differences: Contents) -> npt.NDArray[np.int64]:
    """Count the words of each page that differ."""
    changed: npt.NDArray[np.int64] = np.count_nonzero(differences.view(np.uint64), axis=1)
    return changed


def _chosen(pages: PageSet, mask: Mask) -> PageSet:
    return pages if mask.all() else PageSet.of_pages(pages.page_numbers()[mask])


def told_of(room_bytes: int, versions: SentVersions, parts: Sequence[Deltas]) -> DeltaCache:
    """Add up what the page connections of one link have done; `parts` are none where the peer knows no differences, or no codec."""
    delta_pages, sent_bytes = sum(part.delta_pages for part in parts), sum(part.delta_bytes for part in parts)
    raw_bytes = delta_pages * PAGE_BYTES
    return DeltaCache(
        room_bytes=room_bytes,
        used_bytes=versions.used_bytes,
        delta_pages=delta_pages,
        raw_bytes=raw_bytes,
        sent_bytes=sent_bytes,
        ratio=raw_bytes / sent_bytes if sent_bytes else None,
        whole_pages=sum(part.whole_pages for part in parts),
        rewritten_pages=sum(part.rewritten_pages for part in parts),
        turned_away_pages=versions.turned_away_pages,
        take_s=sum(part.take_ns for part in parts) / 1e9,
        reason=parts[-1].packing.told().reason
        if parts
        else "nothing is compressed, or the destination knows no differences",
    )
