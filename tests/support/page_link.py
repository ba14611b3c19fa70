"""Connections between a source's and a destination's real page code, over TCP on loopback, without the daemons around them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.page_receiver import PageReceiver
from pagefire.dest_host.publishing import Publisher
from pagefire.guest_workload.linux import memfd
from pagefire.protocol.compression import codecs_of
from pagefire.protocol.connection import Connection
from pagefire.protocol.messages import Hello, Welcome
from pagefire.protocol.negotiation import source_capabilities
from pagefire.protocol.pages import PageSet
from pagefire.protocol.state import Role, Side
from pagefire.protocol.transport.wire import Wire
from pagefire.source_host.page_stream import PageStream, striped
from pagefire.source_host.sent_digests import SentDigests
from pagefire.source_host.sent_versions import SentVersions
from tests.support.secured import KeyRing, wire_pair

_PATIENCE_S = 60.0


def greeted(
    role: Role, *, checksum: bool = False, codecs: Iterable[str] = (), deltas: bool = False
) -> tuple[Connection, Connection]:
    """Give both ends of a page or fault connection that has joined its session, on which this may be used."""
    source, destination = Connection(Side.SOURCE, role), Connection(Side.DESTINATION)
    capabilities = source_capabilities(checksum=checksum, codecs=codecs, deltas=deltas)
    hello = Hello([2], capabilities, role.value, 0, b"session", b"secret", "test", "guest", 10.0)
    welcome = Welcome(2, capabilities, b"session", b"secret", "test", "machine", 10.0)
    for sender, receiver, message in ((source, destination, hello), (destination, source, welcome)):
        sent = sender.send(message)
        while sent:
            wanted, sent = sent[: receiver.wanted], sent[receiver.wanted :]
            receiver.receive(wanted)
    return source, destination


def fault_ends(
    ring: KeyRing | None = None, *, checksum: bool = False
) -> tuple[tuple[Wire, Connection], tuple[Wire, Connection]]:
    """Give the source's and the destination's end of a fault connection, blocking."""
    source, destination = greeted(Role.FAULT, checksum=checksum)
    one, other = wire_pair(ring)
    return (one, source), (other, destination)


class PageLink:
    """Page connections from the memory `here` to the memory `there`: senders, receivers and the destination's ledger.

    Used on a running loop. With keys they are encrypted; with `checksum` every frame is verified; `compress` is the sender's
    choice, of codecs that the receiver knows; `skip_unchanged` its choice as to what is there already; `delta_cache_bytes` its room
    for versions. `ends` holds the error with which each receiver ended.
    """

    def __init__(
        self,
        here: memfd.Mapping,
        there: memfd.Mapping,
        streams: int = 1,
        publisher: Publisher | None = None,
        ring: KeyRing | None = None,
        checksum: bool = False,
        compress: str = "off",
        skip_unchanged: str = "off",
        coarse: bool = True,
        delta_cache_bytes: int = 0,
    ) -> None:
        self.ledger = Ledger(there.pages)
        # Without a guest nothing is published: a receiver asks its publisher only after the resume.
        self.intake = Intake(self.ledger, publisher or Publisher(-1, 0, 0), there.pages)
        self.streams: list[PageStream] = []
        self.receivers: list[PageReceiver] = []
        self.ends: list[BaseException] = []
        self.rounds = 0
        self._markers: asyncio.Queue[int] = asyncio.Queue()
        digests = self.digests = SentDigests(here.pages) if skip_unchanged != "off" else None
        versions = self.versions = SentVersions(here.pages, delta_cache_bytes) if delta_cache_bytes else None
        loop = asyncio.get_running_loop()
        for _ in range(streams):
            source, destination = greeted(
                Role.PAGES, checksum=checksum, codecs=codecs_of(compress), deltas=versions is not None
            )
            one, wire = wire_pair(ring)
            self.streams.append(PageStream(one, source, here, compress))
            if digests is not None:
                self.streams[-1].sift(skip_unchanged, digests, coarse=coarse)
            if versions is not None:
                self.streams[-1].take_deltas(versions)
            self.receivers.append(
                PageReceiver(
                    wire,
                    destination,
                    Landing(wire, there, self.ledger),
                    self.intake,
                    on_round_end=lambda number: loop.call_soon_threadsafe(self._markers.put_nowait, number),
                    on_end=self.ends.append,
                )
            )
            self.receivers[-1].start()

    async def send_round(self, written: PageSet, holes: PageSet | None = None) -> None:
        """Send one round on all connections; returns when all of it is in memory at the destination."""
        self.rounds += 1
        if self.versions is not None:
            self.versions.begin_round(written)
        parts = striped(written, len(self.streams))
        async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as group:
            for index, (stream, part) in enumerate(zip(self.streams, parts, strict=True)):
                zero = holes if holes is not None and index == 0 else PageSet.empty()
                group.create_task(stream.ended(stream.begin_round([part], zero, self.rounds)))
            for _ in self.streams:
                assert await self._markers.get() == self.rounds

    @property
    def sent_bytes(self) -> int:
        return sum(stream.sent_bytes for stream in self.streams)

    @property
    def unchanged_pages(self) -> int:
        return sum(stream.sieve.unchanged_pages for stream in self.streams if stream.sieve is not None)

    @property
    def zero_pages(self) -> int:
        return sum(stream.zero_pages for stream in self.streams)

    async def __aenter__(self) -> PageLink:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self.streams:
            await stream.abort()
        for receiver in self.receivers:
            await asyncio.to_thread(receiver.abort)
