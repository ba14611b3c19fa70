"""All connections of one migration: control, pages, fault. Opened together, ended together.

Every one of them greets first; pages and fault join the session that the control connection began, with its secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol import negotiation
from pagefire.protocol.addresses import parse_address
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, PagefireError, RemoteProtocolError
from pagefire.protocol.messages import Accept, Hello, Offer, RoundReceived, Welcome
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.report import Clock, Round
from pagefire.protocol.state import Role, Side
from pagefire.protocol.transport.clock import compare_clocks
from pagefire.protocol.transport.frame_stream import FrameStream, connect, describe_failure
from pagefire.protocol.transport.security import CallerSecurity
from pagefire.protocol.transport.software import software_name
from pagefire.protocol.transport.tasks import together
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.page_stream import PageStream, striped
from pagefire.source_host.trace_install import Rolling
from pagefire.source_host.tracking import Collected

#: How long a peer's last words are waited for once it has closed a connection; they were sent before.
_LAST_WORDS_S = 0.2


@dataclass(frozen=True, slots=True)
class RoundBegun:
    """A round under way: its number, `Link.sent_totals` and the time at its beginning, and what each stream's thread does."""

    number: int
    before: tuple[int, int, int]
    began_s: float
    sending: list[asyncio.Future[None]]


class Link:
    """The connections to one destination. `open` fills it in; `abort` and `close` may be called at any time after it was made."""

    control: FrameStream
    faults: FrameStream
    clock: Clock

    def __init__(self, options: MigrationOptions, config: GuestConfig, memory: Mapping) -> None:
        self._options = options
        self._config = config
        self._memory = memory
        #: What maps the guest's memory at the destination.
        self.backing = options.backing or config.backing
        self._plain: list[FrameStream] = []
        self.streams: list[PageStream] = []
        self.rounds_done = 0

    async def open(self) -> None:
        """Agree with the destination and open every connection; its guest shell is ready when this returns."""
        options, config = self._options, self._config
        self._security = CallerSecurity.chosen(options.keys, options.insecure)
        self.control = await self._connect(Role.CONTROL)
        welcome = await self._greet(self.control, Role.CONTROL, 0, b"", b"")
        self.clock = await compare_clocks(self.control, welcome.machine, options.connect_timeout_s)
        await self.control.send(
            Offer(
                name=config.name,
                memory_bytes=config.memory_bytes,
                resident_bytes=config.resident_bytes,
                working_set_bytes=config.working_set_bytes,
                page_bytes=PAGE_BYTES,
                backing=self.backing,
                vcpus=config.vcpus,
                workload=config.workload,
                seed=config.seed,
                rate=config.rate,
                mode=options.mode,
                streams=options.streams,
                check=options.check,
                settle_s=options.settle_s,
            )
        )
        await self.control.expect(Accept, options.setup_timeout_s)
        for index in range(options.streams):
            stream = await self._connect(Role.PAGES)
            await self._greet(stream, Role.PAGES, index, welcome.session, welcome.secret)
            self._plain.remove(stream)
            self.streams.append(PageStream(stream.detach(), stream.connection, self._memory))
        self.faults = await self._connect(Role.FAULT)
        await self._greet(self.faults, Role.FAULT, 0, welcome.session, welcome.secret)

    def begin_round(self, to_send: Collected) -> RoundBegun:
        """Begin to send one set of pages on all connections; the threads are at it when this returns."""
        return self._begin([[pages] for pages in striped(to_send.written, len(self.streams))], to_send.holes)

    def begin_rolling_round(self, rolling: Rolling) -> RoundBegun:
        """Begin to send what a rolling install gives out, on all connections: each takes the next chunk when it has sent one."""
        return self._begin([rolling.chunks() for _ in self.streams], PageSet.empty())

    def _begin(self, written: Sequence[Iterable[PageSet]], holes: PageSet) -> RoundBegun:
        number = self.rounds_done + 1
        before, began_s = self.sent_totals(), time.monotonic()
        all_holes = [holes] + [PageSet.empty()] * (len(self.streams) - 1)
        sending = [
            stream.begin_round(parts, zero, number)
            for stream, parts, zero in zip(self.streams, written, all_holes, strict=True)
        ]
        return RoundBegun(number, before, began_s, sending)

    async def end_round(self, begun: RoundBegun, timeout_s: float | None = None) -> Round:
        """Wait until the destination has a round's pages in memory; raises LinkLost, and PeerRefused when the peer ended it.

        The acknowledgement may overtake the news that the last byte has been handed to the socket: both are waited for.
        """
        sending = (stream.ended(one) for stream, one in zip(self.streams, begun.sending, strict=True))
        try:
            received = await together(self.control.expect(RoundReceived, timeout_s), *sending)
        except LinkLost:
            # Where the peer ended it, why stands on the control connection: said before it closed any.
            with contextlib.suppress(LinkLost, RemoteProtocolError):
                await self.control.expect(RoundReceived, _LAST_WORDS_S)
            raise
        if received.round != begun.number:
            raise LinkLost("the destination acknowledged another round", f"{received.round}, not {begun.number}")
        self.rounds_done = begun.number
        pages, zero_pages, wire_bytes = (now - then for now, then in zip(self.sent_totals(), begun.before, strict=True))
        return Round(begun.number, pages, zero_pages, wire_bytes, time.monotonic() - begun.began_s, 0)

    def sent_totals(self) -> tuple[int, int, int]:
        """Give the pages, the zero pages among them and the bytes that the page connections have sent so far."""
        return (
            sum(stream.sent_pages for stream in self.streams),
            sum(stream.zero_pages for stream in self.streams),
            sum(stream.sent_bytes for stream in self.streams),
        )

    @property
    def sent_bytes(self) -> int:
        """Everything that was sent, on all connections."""
        return self.sent_totals()[2] + sum(stream.sent_bytes for stream in self._plain)

    async def abort(self, error: BaseException, outcome: str) -> None:
        """End it in the middle: tell the peer why if that takes no more than a second, and wait for the page threads."""
        for stream in self.streams:
            await stream.abort()
        if self._plain:
            with contextlib.suppress(PagefireError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._plain[0].send(describe_failure(error, outcome))
        for plain in self._plain:
            plain.close()

    def close_pages(self) -> None:
        """No page is needed any more: close all but the control connection."""
        for stream in self.streams:
            stream.close()
        self.faults.close()

    async def _connect(self, role: Role) -> FrameStream:
        host, port = parse_address(self._options.to)
        stream = await connect(
            host, port, Connection(Side.SOURCE, role), self._options.connect_timeout_s, self._security
        )
        self._plain.append(stream)
        return stream

    async def _greet(self, stream: FrameStream, role: Role, index: int, session: bytes, secret: bytes) -> Welcome:
        await stream.send(
            Hello(
                versions=list(negotiation.VERSIONS),
                # What TLS authenticates needs no checksum.
                capabilities=negotiation.source_capabilities(
                    checksum=self._options.checksum and not stream.wire.authenticated
                ),
                role=role.value,
                index=index,
                session=session,
                secret=secret,
                software=software_name(),
                name=self._config.name,
            )
        )
        try:
            welcome = await stream.expect(Welcome, self._options.connect_timeout_s)
        except LinkLost as lost:
            why = f"{lost.what}: {lost.why}" if lost.why else lost.what
            raise LinkLost(f"no pagefire daemon answers at {self._options.to}", why, "check host and port") from lost
        negotiation.check_welcome(welcome)
        return welcome
