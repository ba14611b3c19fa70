"""One page connection at the source: guest pages onto a wire, by a thread of its own.

Threads with blocking sockets, not the loop: sendfile and sendmsg release the GIL, uvloop has no sendfile, and the loop stays free
for what steers. No copy in user space, unless the wire encrypts: a long run of pages goes by its place in the memfd, short runs
together, by their addresses in the mapping (transport/vectors.py).

sendfile queues references to live pages, so what arrives may be newer than the call. Right here, and only here: such a page was
protected before it was queued, hence is dirty again. Nothing is ever computed from these bytes but "is it zero", and a page that
stops being zero after that look is dirty again as well. A checksum is computed from them too where one was agreed on: then what is
summed and sent is a copy, which nobody writes to. Likewise what is compressed (packing.py), and what is digested, so that it need
not be sent again (sieve.py): in rounds only, since after them the destination waits for every page that it was told of.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

import numpy as np

from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.compression import Way, codecs_of
from pagefire.protocol.connection import Connection
from pagefire.protocol.messages import (
    MAX_FRAME_PAGES,
    MAX_FRAME_RUNS,
    MAX_ZERO_PAGES,
    CompressedPages,
    DeltaPages,
    Pages,
    RoundEnd,
    ZeroPages,
)
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.tasks import in_thread
from pagefire.protocol.transport.wire import Wire
from pagefire.source_host.deltas import Deltas
from pagefire.source_host.link_watch import LinkWatch
from pagefire.source_host.packing import Packing
from pagefire.source_host.sent_digests import Contents, SentDigests
from pagefire.source_host.sent_versions import SentVersions
from pagefire.source_host.sieve import Sieve
from pagefire.source_host.zero_look import ZeroLook

#: Runs of at least this many pages go by sendfile: below, its system call costs more than the copy that it saves.
SENDFILE_PAGES = 16
P = ParamSpec("P")


class PageStream:
    """Sends pages of one guest on one connection. `send_*` block and belong to the stream's thread; `run` brings them there.

    Counts what it sent: `sent_bytes` (frames and payload), `sent_pages`, of them `zero_pages`, and the others' `payload_bytes`,
    compressed or not. `packing` says what was compressed, None where nothing may be; `sieve` leaves out of rounds what the
    destination holds already, None where nothing is.
    """

    def __init__(self, wire: Wire, connection: Connection, memory: Mapping, compress: str = "off") -> None:
        """`compress` is off, or what to compress with, as far as the peer knows it: a codec, or auto."""
        self._wire = wire
        self._connection = connection
        self._memory = memory
        # hugetlb has no sendfile (EINVAL).
        self._sendfile_pages = SENDFILE_PAGES if memory.unit_pages == 1 else memory.pages + 1
        self._bytes = memory.array.data
        self._zeros = ZeroLook(memory)
        self._executor = ThreadPoolExecutor(1, "pages", scheduling.set_slice, (scheduling.BULK_SLICE_NS,))
        self.packing: Packing | None = None
        self._watch = LinkWatch(wire)
        if compress != "off":
            codecs = sorted(connection.codecs & set(codecs_of(compress)))
            self.packing = Packing(compress, codecs, memory, self._watch)
        self.sieve: Sieve | None = None
        self.deltas: Deltas | None = None
        self.sent_pages = 0
        self.zero_pages = 0
        self.payload_bytes = 0

    @property
    def sock(self) -> socket.socket:
        return self._wire.sock

    @property
    def sent_bytes(self) -> int:
        return self._wire.sent_bytes

    def carried_bytes(self) -> int:
        """Count what has left the socket and was acknowledged; raises LinkLost."""
        return self._wire.sent_bytes - self._wire.queued_bytes()

    def sift(self, mode: str, digests: SentDigests, *, coarse: bool) -> None:
        """Leave out of the rounds that follow what the destination holds already, by digests that all streams share (`Sieve`)."""
        self.sieve = Sieve(mode, digests, self._memory, self._wire, coarse=coarse)

    def take_deltas(self, versions: SentVersions) -> None:
        """Send what has changed of pages in the rounds that follow, by versions that all streams share (`Deltas`).

        Where pages may be compressed, and the peer knows differences; otherwise they go whole.
        """
        if self.packing is not None and self._connection.deltas:
            codecs = sorted(self._connection.codecs)
            packing = Packing(self.packing.mode, codecs, self._memory, self._watch, Way.DELTAS)
            self.deltas = Deltas(versions, packing, self._memory, self._watch)

    def begin_round(self, written: Iterable[PageSet], holes: PageSet, round_number: int) -> asyncio.Future[None]:
        """Let the thread send these pages and then the round's marker, from now on; `ended` awaits it.

        The thread iterates over `written`, so that a part may be made just before it is sent.
        """
        return self._begin(self._send_round, written, holes, round_number)

    async def push(self, work: Callable[[PageStream], None]) -> None:
        """Let the thread do `work`, which sends on this stream, to its end; raises LinkLost. A cancellation aborts the stream."""
        await self.ended(self._begin(work, self))

    async def ended(self, begun: asyncio.Future[None]) -> None:
        """Wait until all that was begun has been handed to the socket; raises LinkLost. A cancellation aborts the stream."""
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            await self.abort()
            raise

    def pace(self, bytes_per_s: float | None) -> None:
        """Send so fast at most from now on; None: as fast as it goes."""
        self._wire.pace(bytes_per_s)

    async def abort(self) -> None:
        """End the connection under the thread, wait until it has noticed, and close it then."""
        self._wire.shut_down()
        await in_thread(self.close)

    def close(self) -> None:
        """Close a connection on which nothing is under way; more than once does nothing."""
        self._executor.shutdown(cancel_futures=True)
        self._wire.close()

    def _begin(self, work: Callable[P, None], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[None]:
        self._watch.begin()
        begun = asyncio.wrap_future(self._executor.submit(work, *args, **kwargs))
        # Where the migration fails before this is awaited, nobody asks how it ended.
        begun.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return begun

    def _send_round(self, written: Iterable[PageSet], holes: PageSet, round_number: int) -> None:
        if self.sieve is not None:
            self.sieve.begin()
        for batch in holes.batches(MAX_ZERO_PAGES, MAX_FRAME_RUNS):
            self._send_zero_pages(batch)
        for part in written:
            for pages, copies in self._sifted(part):
                self._send_changes(pages, copies)
        self._wire.send([self._connection.send(RoundEnd(round_number))])

    def send_pages(self, pages: PageSet) -> None:
        """Send pages that have contents, in ascending order; zero pages cost no payload. Blocks; raises LinkLost."""
        for part in self._with_contents(pages):
            if self.sieve is not None:
                self.sieve.sent_otherwise(part)
            if self.deltas is not None:
                self.deltas.sent_otherwise(part)
            self._send_contents(part)

    def _sifted(self, pages: PageSet) -> Iterator[tuple[PageSet, Contents | None]]:
        """Give what of a round's pages has contents and may have changed, with its private copies where there are any."""
        if self.sieve is not None:
            yield from self.sieve.changed(self._with_contents(pages, self.sieve))
            return
        for part in self._with_contents(pages):
            yield part, None

    def _send_changes(self, pages: PageSet, copies: Contents | None) -> None:
        """Send pages of a round: what they differ by from what was sent last, as far as that is known and pays."""
        if self.deltas is None:
            self._send_contents(pages, copies)
            return
        for part in self.deltas.parts(pages, copies):
            if part.packed is None:
                self._send_contents(part.pages, part.copies)
                continue
            codec, packed = part.packed
            with self.deltas.packing.sending(part.pages, part.packed):
                self._send_packed(DeltaPages(part.pages, codec), packed)

    def _with_contents(self, pages: PageSet, sieve: Sieve | None = None) -> Iterator[PageSet]:
        """Send the zero pages among some pages, but for those that a sieve leaves out, and give the others, a frame's at a time."""
        # What is looked at, compressed or copied on its way is held; what goes as it is, is not, and each frame costs 0.15 ms.
        as_they_are = self.sieve is None and self.packing is None
        at_most = self._connection.most_pages if as_they_are else MAX_FRAME_PAGES
        for batch in pages.batches(at_most, MAX_FRAME_RUNS):
            zero = self._zeros.among(batch)
            to_send = sieve.zeros_to_send(zero) if zero and sieve is not None else zero
            for part in to_send.batches(MAX_ZERO_PAGES, MAX_FRAME_RUNS):
                self._send_zero_pages(part)
            filled = batch - zero if zero else batch
            yield from filled.batches(at_most, MAX_FRAME_RUNS)

    def _send_zero_pages(self, pages: PageSet) -> None:
        self._wire.send([self._connection.send(ZeroPages(pages))])
        if self.sieve is not None:
            self.sieve.sent_zeros(pages)
        if self.deltas is not None:
            self.deltas.sent_otherwise(pages)
        self.sent_pages += pages.pages
        self.zero_pages += pages.pages

    def _send_contents(self, pages: PageSet, copies: Contents | None = None) -> None:
        """Send pages as they are now, or, where there are private copies of them, as those are."""
        if self.packing is None:
            self._send_raw(pages, copies)
            return
        # What was copied is about as much as is packed at once.
        at_once = self.packing.batch_pages if copies is None else pages.pages
        for batch in pages.batches(at_once, MAX_FRAME_RUNS) if pages.pages > at_once else (pages,):
            packed = self.packing.pack(batch, copies)
            with self.packing.sending(batch, packed):
                if packed is None:
                    self._send_raw(batch, copies)
                else:
                    self._send_packed(CompressedPages(batch, packed[0]), packed[1])

    def _send_packed(self, message: CompressedPages | DeltaPages, packed: bytes) -> None:
        self._wire.send([self._connection.send(message, len(packed), [packed]), packed])
        self.sent_pages += message.pages.pages
        self.payload_bytes += len(packed)

    def _send_raw(self, pages: PageSet, copies: Contents | None = None) -> None:
        if copies is not None:
            self._send_copy(pages, copies.data.cast("B"))
            return
        if self._connection.checksums:
            self._send_copy(pages, self._copied(pages))
            return
        head = self._connection.send(Pages(pages), pages.size_bytes)
        starts, stops, sent = pages.starts * PAGE_BYTES, pages.stops * PAGE_BYTES, 0
        for run in np.flatnonzero(pages.counts >= self._sendfile_pages).tolist():
            if head or sent < run:
                self._wire.send_runs(head, self._bytes, starts[sent:run], stops[sent:run], more=True)
            self._wire.send_range(self._memory.fd, int(starts[run]), self._bytes[starts[run] : stops[run]])
            head, sent = b"", run + 1
        if sent < len(pages):
            self._wire.send_runs(head, self._bytes, starts[sent:], stops[sent:])
        self.sent_pages += pages.pages
        self.payload_bytes += pages.size_bytes

    def _copied(self, pages: PageSet) -> bytes:
        """Copy pages as they are now: what is summed must be what arrives, and guest memory changes between the two."""
        return b"".join(
            self._bytes[start * PAGE_BYTES : stop * PAGE_BYTES]
            for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True)
        )

    def _send_copy(self, pages: PageSet, copy: bytes | memoryview) -> None:
        """Send what was copied of pages, which nobody writes to."""
        self._wire.send([self._connection.send(Pages(pages), len(copy), [copy]), copy])
        self.sent_pages += pages.pages
        self.payload_bytes += pages.size_bytes


def striped(pages: PageSet, streams: int) -> list[PageSet]:
    """Divide a set among streams by region, near-equal in pages, so that no two carry the same page in one round."""
    if streams == 1 or pages.pages < streams:
        return [pages] + [PageSet.empty()] * (streams - 1)
    share = -(-pages.pages // streams)
    parts = list(pages.batches(share))
    return parts + [PageSet.empty()] * (streams - len(parts))
