"""Page contents on their way into a codec: the private copies, samples and measurements of one page connection.

A copy, because guest memory changes under whoever reads it: a codec that meets other bytes on its second look writes nonsense. A
page that was stored to while it was copied is torn, and dirty again, as one that was stored to in a socket's buffer.

What is decided, and when a sample may be taken, stands in protocol/compression.py; here are the clock and the memory. Each batch
that is packed is a measurement of its codec. A sample is one of all codecs: a few pages, as often as its share of the time allows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol import compression
from pagefire.protocol.codecs import CODECS, new_codec
from pagefire.protocol.compression import Choice, Measured, SampleBudget, Way, Why, choose, worth_a_look
from pagefire.protocol.messages import MAX_FRAME_PAGES
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.report import Compression
from pagefire.protocol.units import format_throughput
from pagefire.source_host.link_watch import LinkWatch
from pagefire.source_host.private_copy import copy_into


class Packing:
    """Packs the batches of one page connection, or leaves them as they are; used by its thread; `told` by any.

    What is packed in another way, differences, is packed by another one, which watches the link with this one.
    """

    def __init__(
        self, mode: str, codecs: Sequence[str], memory: Mapping, watch: LinkWatch, way: Way = Way.PACKED
    ) -> None:
        """`mode` is a codec or auto; `codecs` are those of it that the peer knows, none of which is a reason to send all raw."""
        self.mode = mode
        self._codecs = {name: new_codec(name) for name in codecs}
        self._watch = watch
        self._way = way
        self._pages: npt.NDArray[np.uint8] = memory.array.reshape(-1, PAGE_BYTES)
        # Memory that is taken when it is first touched.
        self._room = np.empty((MAX_FRAME_PAGES, PAGE_BYTES), np.uint8)
        self._measured: dict[str, Measured] = {}
        #: When each codec last packed a whole batch.
        self._packed_at_s: dict[str, float] = {}
        self._budget = SampleBudget()
        self._busy_s = 0.0
        self._choice = Choice(None, Why.TOO_FEW if codecs else Why.REFUSED)
        self._told = Compression(mode)

    @property
    def batch_pages(self) -> int:
        """How many pages to decide about at once."""
        return compression.batch_pages(self._watch.bps, self._choice, MAX_FRAME_PAGES)

    def told(self) -> Compression:
        """Give what was done so far, and why the last batch went as it did."""
        ratio = self._told.raw_bytes / self._told.sent_bytes if self._told.sent_bytes else None
        return replace(self._told, ratio=ratio, link_Bps=self._watch.bps, reason=self._reason())

    def _reason(self) -> str:
        parts = [
            f"{codec} leaves {one.share:.0%} at {format_throughput(one.pack_bps)}"
            for codec, one in self._measured.copy().items()
        ]
        if self.mode == "auto" and self._watch.bps is not None:
            parts.insert(0, f"it carries {format_throughput(self._watch.bps)}")
        return ": ".join([self._choice.why.value, *([", ".join(parts)] if parts else [])])

    def pack(self, pages: PageSet, copies: npt.NDArray[np.uint8] | None = None) -> tuple[str, bytes] | None:
        """Give a codec's name and what it made of the contents of `pages`, MAX_FRAME_PAGES at most; None: send them as they are.

        `copies` are these contents where they have been copied already.
        """
        if pages.pages < compression.LEAST_PAGES or not self._codecs:
            return None
        now_s = time.perf_counter()
        link_bps = self._watch.look(now_s)
        if self._needs_sample(link_bps) and self._budget.allows(self._busy_s):
            self._sample(pages, copies)
        # Of differences the next batch may be of another kind than the last one.
        telling = self._measured if self.mode == "auto" or self._way is Way.PACKED else {}
        self._choice = choose(self.mode, link_bps, telling, self._choice.codec)
        if self.mode == "auto":
            self._choice = self._watch.paces.checked(self._choice, now_s, self._way)
        if (codec := self._choice.codec) is None:
            return None
        began_s = time.perf_counter()
        packed = self._pack(codec, copy_into(self._room, self._pages, pages) if copies is None else copies)
        self._told.pack_s += time.perf_counter() - began_s
        if len(packed) > compression.MOST_SHARE * pages.size_bytes:
            self._choice = Choice(None, Why.INCOMPRESSIBLE)
            return None
        self._told.codec = codec if self._told.codec in (None, codec) else "+".join(CODECS)
        self._told.compressed_pages += pages.pages
        self._told.raw_bytes += pages.size_bytes
        self._told.sent_bytes += len(packed)
        return codec, packed

    def share_left(self, contents: npt.NDArray[np.uint8]) -> float:
        """Tell which share a codec would leave of contents that nobody writes to; any thread, while nothing is sent."""
        codec = self._choice.codec or next(iter(self._codecs), None)
        if codec is None or not contents.size:
            return 1.0
        return min(len(self._codecs[codec].pack(contents.data)) / contents.nbytes, 1.0)

    def _needs_sample(self, link_bps: float | None) -> bool:
        if self.mode == "auto":
            return not self._measured or worth_a_look(link_bps)
        # With one codec to choose from, what it packs tells as much; only what goes raw has to be looked at.
        return self._choice.codec is None and bool(self._measured)

    @contextmanager
    def sending(self, pages: PageSet, packed: tuple[str, bytes] | None) -> Iterator[None]:
        """Watch the link while a batch is sent within, as `pack` has given it."""
        began_s = time.perf_counter()
        share = 1.0 if packed is None else len(packed[1]) / pages.size_bytes
        with self._watch.sending(Way.RAW if packed is None else self._way, share):
            yield
        self._busy_s += time.perf_counter() - began_s
        if packed is None:
            self._told.raw_pages += pages.pages

    def _pack(self, codec: str, contents: npt.NDArray[np.uint8]) -> bytes:
        """Pack contents that nobody writes to, and note how well that went."""
        began_s = time.perf_counter()
        packed = self._codecs[codec].pack(contents.data)
        took_s = max(time.perf_counter() - began_s, 1e-9)
        self._busy_s += took_s
        earlier = self._measured.get(codec)
        unpack_bps = earlier.unpack_bps if earlier is not None else float("inf")
        measured = Measured(len(packed) / contents.nbytes, contents.nbytes / took_s, unpack_bps)
        # The first batch after samples says more than these.
        known = began_s - self._packed_at_s.get(codec, -math.inf) < compression.BATCH_TELLS_S
        self._measured[codec] = measured.after(earlier if known else None)
        self._packed_at_s[codec] = began_s
        return packed

    def _sample(self, pages: PageSet, copies: npt.NDArray[np.uint8] | None) -> None:
        """Let every codec pack a few pages from all over the batch and, where there is a choice, unpack them again."""
        # By its CPU time: what else this machine does is not the sample's fault, and must not keep the next one away.
        began_s = time.thread_time()
        every = slice(None, None, max(1, pages.pages // compression.SAMPLE_PAGES))
        contents = (
            self._pages[pages.page_numbers()[every][: compression.SAMPLE_PAGES]] if copies is None else copies[every]
        )
        sample = np.ascontiguousarray(contents[: compression.SAMPLE_PAGES])
        for name, codec in self._codecs.items():
            if name not in self._measured:
                # The first time takes twice as long: tables that nobody has touched yet.
                codec.unpack(codec.pack(sample.data), sample.nbytes)
            at_s = time.perf_counter()
            packed = codec.pack(sample.data)
            packed_s = time.perf_counter()
            measured = Measured(len(packed) / sample.nbytes, sample.nbytes / max(packed_s - at_s, 1e-9))
            if self.mode == "auto":
                codec.unpack(packed, sample.nbytes)
                took_s = max(time.perf_counter() - packed_s, 1e-9)
                measured = replace(measured, unpack_bps=sample.nbytes / took_s)
            earlier = self._measured.get(name)
            if earlier is not None and at_s - self._packed_at_s.get(name, -math.inf) < compression.BATCH_TELLS_S:
                measured = replace(measured, pack_bps=earlier.pack_bps)
            self._measured[name] = measured.after(earlier)
        self._budget.taken(time.thread_time() - began_s)
        self._told.samples, self._told.sample_s = self._budget.count, self._budget.spent_s
