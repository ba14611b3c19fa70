"""All connections of one migration: control, pages, fault. Opened together, ended together.

Every one of them greets first; pages and fault join the session that the control connection began, with its secret. A link that is
lost after the commit point is followed by another one, whose first connection asks what became of the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol import negotiation
from pagefire.protocol.addresses import parse_address
from pagefire.protocol.compression import codecs_of
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, PagefireError, RemoteProtocolError
from pagefire.protocol.messages import (
    MAX_EXTENT_RUNS,
    Accept,
    Failure,
    Fenced,
    Hello,
    Message,
    Offer,
    Perished,
    Populate,
    Populated,
    RoundReceived,
    Taken,
    Welcome,
)
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.report import Clock, Compression, DeltaCache, Round, Unchanged
from pagefire.protocol.state import Phase, Role, Side
from pagefire.protocol.transport.clock import compare_clocks
from pagefire.protocol.transport.frame_stream import FrameStream, connect, describe_failure, refusal
from pagefire.protocol.transport.security import CallerSecurity
from pagefire.protocol.transport.software import software_name
from pagefire.protocol.transport.tasks import in_thread, together, uninterrupted
from pagefire.source_host.deltas import Deltas, told_of
from pagefire.source_host.fault_stream import FaultStream
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.outstanding import Outstanding
from pagefire.source_host.page_stream import PageStream, striped
from pagefire.source_host.sampling import Sample
from pagefire.source_host.sent_digests import SentDigests
from pagefire.source_host.sent_versions import SentVersions
from pagefire.source_host.sieve import Sieve
from pagefire.source_host.skipping import Why, choose
from pagefire.source_host.stream_count import AUTO_STREAMS, StreamCount
from pagefire.source_host.trace_install import Rolling
from pagefire.source_host.tracking import Collected

#: How long a peer's last words are waited for once it has closed a connection; they were sent before.
_LAST_WORDS_S = 0.2


class SentTotals(NamedTuple):
    """What the page connections have sent: pages, the zero pages among them, the others' contents as they went, and all bytes.

    And what they have left out because it was unchanged, what of the pages went as differences, and how long their threads looked
    and compared, together.
    """

    pages: int
    zero_pages: int
    payload_bytes: int
    wire_bytes: int
    unchanged_pages: int
    look_ns: int
    delta_pages: int
    delta_bytes: int

    @property
    def done_pages(self) -> int:
        """Pages that were dealt with: sent, or found to be there."""
        return self.pages + self.unchanged_pages


@dataclass(frozen=True, slots=True)
class RoundBegun:
    """A round under way: its number, `Link.sent_totals` and the time at its beginning, and what each stream's thread does."""

    number: int
    before: SentTotals
    began_s: float
    sending: list[asyncio.Future[None]]


class Link:
    """The connections to one destination. `open` fills it in; `abort` and `close` may be called at any time after it was made."""

    control: FrameStream
    clock: Clock

    def __init__(self, options: MigrationOptions, config: GuestConfig, memory: Mapping) -> None:
        self._options = options
        self._config = config
        self._memory = memory
        #: What maps the guest's memory at the destination.
        self.backing = options.backing or config.backing
        self._plain: list[FrameStream] = []
        self._faults: FaultStream | None = None
        self._alive: asyncio.Task[None] | None = None
        self.streams: list[PageStream] = []
        self._connections = options.streams or AUTO_STREAMS
        self.count = StreamCount(
            self._connections, automatic=not options.streams, carried_bytes=self._carried_bytes, changed=self._pace_anew
        )
        self._most_bps: float | None = None
        #: Whether the destination takes the bitmap ahead of the stun.
        self.foretells = False
        self._skipping = Unchanged(options.skip_unchanged, reason=Why.NO_ROUNDS.value)
        self._versions: SentVersions | None = None
        self.rounds_done = 0
        #: Identity and secret of the session, once there is one.
        self.session: tuple[bytes, bytes] = (b"", b"")

    async def open(self) -> None:
        """Agree with the destination and open every connection; its guest shell is ready when this returns."""
        options, config = self._options, self._config
        self.control = await self._connect(Role.CONTROL)
        welcome = await self._greet(self.control, Role.CONTROL)
        self.foretells = negotiation.FORETOLD in welcome.capabilities
        self.session = welcome.session, welcome.secret
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
                streams=self._connections,
                check=options.check,
                settle_s=options.settle_s,
            )
        )
        await self.control.expect(Accept, options.setup_timeout_s)
        self._mind_silence(welcome)
        await self._open_streams()

    async def ask(self, session: tuple[bytes, bytes]) -> tuple[Taken, bytes] | Fenced | Perished:
        """Connect anew and ask what became of the session; gives the answer, with the bitmap of what is missing beside `Taken`.

        Raises LinkLost where nobody answers, PeerRefused where nothing is known of it there.
        """
        self.session = session
        self.control = await self._connect(Role.RECOVERY)
        self._mind_silence(await self._greet(self.control, Role.RECOVERY))
        arrival = await self.control.receive()
        match arrival.message:
            case Taken() as taken:
                return taken, await self.control.receive_payload(arrival.payload_bytes)
            case Fenced() | Perished() as last_word:
                return last_word
            case Failure() as failure:
                raise refusal(failure)
            case other:
                raise RemoteProtocolError("no answer to a recovery", type(other).__name__)

    async def take_up(self) -> None:
        """Open the page and fault connections of a session that goes on."""
        await self._open_streams()

    async def _open_streams(self) -> None:
        for index in range(self._connections):
            stream = await self._connect(Role.PAGES)
            await self._greet(stream, Role.PAGES, index)
            self._plain.remove(stream)
            self.streams.append(PageStream(stream.detach(), stream.connection, self._memory, self._options.compress))
        self.pace(self._options.max_bandwidth_Bps)
        stream = await self._connect(Role.FAULT)
        await self._greet(stream, Role.FAULT)
        self._plain.remove(stream)
        self._faults = FaultStream(stream.detach(), stream.connection, self._memory)

    @property
    def faults(self) -> FaultStream:
        """The fault connection of a link whose streams are open."""
        assert self._faults is not None
        return self._faults

    def _mind_silence(self, welcome: Welcome) -> None:
        """From now on a peer that says nothing for too long is lost, and so are we to it."""
        self.control.silence_s = self._options.silence_s
        self._alive = asyncio.create_task(self.control.stay_alive(welcome.silence_s))

    async def populate(self, pages: PageSet) -> None:
        """Let the destination take memory for what will come, before anything comes."""
        for batch in pages.batches(1 << 40, MAX_EXTENT_RUNS):
            await self.control.send(Populate(batch))
            await self.control.expect(Populated, self._options.setup_timeout_s)

    def begin_round(self, to_send: Collected) -> RoundBegun:
        """Begin to send one set of pages, an equal part on each connection; the threads are at it when this returns."""
        if self._versions is not None:
            # To look for room would take its time in the stun, and be of no use: no round follows.
            self._versions.begin_round()
        parts = striped(to_send.written, self.count.at_work)
        parts += [PageSet.empty()] * (len(self.streams) - len(parts))
        return self._begin([[pages] for pages in parts], to_send.holes)

    def begin_shared_round(
        self, chunks: Rolling | Outstanding | Sample, holes: PageSet, due: PageSet | None = None
    ) -> RoundBegun:
        """Begin to send what is given out chunk by chunk: each connection at work takes the next one when it has sent one.

        `due` are the pages that may be given out, None where nobody knows.
        """
        self.count.begin()
        if self._versions is not None:
            self._versions.begin_round(due)
        begun = self._begin([self.count.turns(index, chunks.chunks()) for index in range(len(self.streams))], holes)
        for sending in begun.sending:
            # Also one that failed: the others might wait for a turn, and nobody could wait for them.
            sending.add_done_callback(lambda _: self.count.end())
        return begun

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
            await self._hear_last_words()
            raise
        if received.round != begun.number:
            raise LinkLost("the destination acknowledged another round", f"{received.round}, not {begun.number}")
        self.rounds_done = begun.number
        sent, duration_s = self.sent_since(begun), time.monotonic() - begun.began_s
        look_s = sent.look_ns / 1e9 / self.count.at_work
        return Round(
            begun.number, sent.pages, sent.zero_pages, sent.wire_bytes, duration_s, 0, 0, 0.0, sent.payload_bytes,
            sent.unchanged_pages, look_s, 1.0, sent.delta_pages, sent.delta_bytes,
        )  # fmt: skip

    async def say(self, message: Message, payload: bytes = b"") -> None:
        """Send on the control connection while the guest is this host's; raises LinkLost, and PeerRefused where the peer said why.

        A peer that ends the migration says so and closes. Who sends meanwhile is told that nobody reads, and what the peer had said
        is still there to be read.
        """
        try:
            await self.control.send(message, payload)
        except LinkLost:
            await self._hear_last_words()
            raise

    async def _hear_last_words(self) -> None:
        """Raise what the peer said on the control connection before it closed it, if it did: said before it closed any."""
        with contextlib.suppress(LinkLost, RemoteProtocolError):
            await self.control.expect(RoundReceived, _LAST_WORDS_S)

    def sent_since(self, begun: RoundBegun) -> SentTotals:
        """Give what the page connections have sent since a round began."""
        return SentTotals(*(now - then for now, then in zip(self.sent_totals(), begun.before, strict=True)))

    def sent_totals(self) -> SentTotals:
        """Give what the page connections have sent so far."""
        return SentTotals(
            sum(stream.sent_pages for stream in self.streams),
            sum(stream.zero_pages for stream in self.streams),
            sum(stream.payload_bytes for stream in self.streams),
            sum(stream.sent_bytes for stream in self.streams),
            sum(sieve.unchanged_pages for sieve in self._sieves()),
            sum(sieve.look_ns for sieve in self._sieves()) + sum(one.take_ns for one in self._deltas()),
            sum(one.delta_pages for one in self._deltas()),
            sum(one.delta_bytes for one in self._deltas()),
        )

    @property
    def streams_at_work(self) -> list[PageStream]:
        """The page connections that pages are sent on."""
        return self.streams[: self.count.at_work]

    def skip_unchanged(self, mode: str, *, coarse: bool) -> None:
        """Leave out of rounds, from the first one on, what the destination holds just so; raises PagefireError.

        `coarse`: writes are noted by more than a page. A link's digests are its own: nothing of it is known to one that follows.
        """
        choice = choose(mode, coarse=coarse, link_bps=None, look_bps=None, unchanged_share=None)
        self._skipping = Unchanged(mode, reason=choice.why.value)
        if choice.look:
            digests = SentDigests(self._memory.pages)
            for stream in self.streams:
                stream.sift(mode, digests, coarse=coarse)

    def send_deltas(self) -> None:
        """Send differences in rounds, from the first one on, where the person gave room for versions; raises PagefireError."""
        if self._options.delta_cache_bytes:
            self._versions = SentVersions(self._memory.pages, self._options.delta_cache_bytes)
            for stream in self.streams:
                stream.take_deltas(self._versions)

    def share_changed(self, pages: PageSet) -> float:
        """Estimate which share of `pages` the destination lacks as they are, between rounds; 1 where nobody looks."""
        return min((sieve.share_changed(pages) for sieve in self._sieves()[:1]), default=1.0)

    def unchanged(self) -> Unchanged:
        """Give what was left out of the rounds so far, and why."""
        parts = [sieve.told() for sieve in self._sieves()]
        return Unchanged(
            self._skipping.mode,
            sum(part.hashed_pages for part in parts),
            sum(part.unchanged_pages for part in parts),
            sum(part.hash_s for part in parts),
            parts[-1].reason if parts else self._skipping.reason,
        )

    def _sieves(self) -> list[Sieve]:
        return [stream.sieve for stream in self.streams if stream.sieve is not None]

    def delta_shares(self, pages: PageSet) -> tuple[float, float]:
        """Estimate which share of the contents of `pages` the next round would send, between rounds, and later ones; 1 without
        differences."""
        return next((one.shares(pages) for one in self._deltas()), (1.0, 1.0))

    def delta_cache(self) -> DeltaCache | None:
        """Give what went as differences so far; None where nobody asked for them."""
        if self._versions is None:
            return None
        return told_of(self._options.delta_cache_bytes, self._versions, self._deltas())

    def _deltas(self) -> list[Deltas]:
        return [stream.deltas for stream in self.streams if stream.deltas is not None]

    def compression(self) -> list[Compression]:
        """Give what each page connection has compressed so far; nothing where nothing may be."""
        return [stream.packing.told() for stream in self.streams if stream.packing is not None]

    @property
    def sent_bytes(self) -> int:
        """Everything that was sent, on all connections."""
        faults_bytes = self._faults.sent_bytes if self._faults is not None else 0
        return self.sent_totals().wire_bytes + faults_bytes + sum(stream.sent_bytes for stream in self._plain)

    async def abort(self, error: BaseException, outcome: str) -> None:
        """End it in the middle: tell the peer why if that takes no time to speak of, and wait for the threads."""
        if self._plain and self._plain[0].connection.phase is not Phase.OVER:
            with contextlib.suppress(PagefireError, TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._plain[0].send(describe_failure(error, outcome))
        await self.close()

    async def close(self) -> None:
        """Close every connection and wait for the threads; more than once does nothing."""
        if self._alive is not None:
            self._alive.cancel()
        for plain in self._plain:
            plain.close()
        threads = [stream.abort() for stream in self.streams]
        if self._faults is not None:
            threads.append(self._faults.close())
        await uninterrupted(asyncio.gather(*threads))
        await self.forget_versions()

    def pace(self, bytes_per_s: float | None) -> None:
        """Let all page connections together send so fast at most; None: as fast as they can. Each has an equal share of it.

        What faults ask for is not held up: it goes by its own connection, as fast as vCPUs can ask.
        """
        self._most_bps = bytes_per_s
        self._pace_anew()

    def _pace_anew(self) -> None:
        for stream in self.streams:
            stream.pace(None if self._most_bps is None else self._most_bps / self.count.at_work)

    def _carried_bytes(self) -> int:
        return sum(stream.carried_bytes() for stream in self.streams)

    async def forget_versions(self) -> None:
        """Free the versions, when nothing is sent any more: in the middle that would hold up whoever serves faults."""
        if self._versions is not None:
            await in_thread(self._versions.free)

    def close_pages(self) -> None:
        """No page is needed any more: close all but the control connection."""
        for stream in self.streams:
            stream.close()
        if self._faults is not None:
            self._faults.abort()

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Give each connection's role and socket."""
        streams = [("pages", stream.sock) for stream in self.streams]
        faults = [("fault", self._faults.sock)] if self._faults is not None else []
        return [("control", self.control.sock), *streams, *faults]

    async def _connect(self, role: Role) -> FrameStream:
        options = self._options
        host, port = parse_address(options.to)
        security = CallerSecurity.chosen(options.keys, options.insecure)
        stream = await connect(host, port, Connection(Side.SOURCE, role), self._options.connect_timeout_s, security)
        self._plain.append(stream)
        return stream

    async def _greet(self, stream: FrameStream, role: Role, index: int = 0) -> Welcome:
        session, secret = self.session
        codecs = codecs_of(self._options.compress) if role is Role.PAGES else ()
        await stream.send(
            Hello(
                versions=list(negotiation.VERSIONS),
                # What TLS authenticates needs no checksum.
                capabilities=negotiation.source_capabilities(
                    checksum=self._options.checksum and not stream.wire.authenticated,
                    codecs=codecs,
                    deltas=role is Role.PAGES and bool(self._options.delta_cache_bytes),
                ),
                role=role.value,
                index=index,
                session=session,
                secret=secret,
                software=software_name(),
                name=self._config.name,
                silence_s=self._options.silence_s,
            )
        )
        try:
            welcome = await stream.expect(Welcome, self._options.connect_timeout_s)
        except LinkLost as lost:
            why = f"{lost.what}: {lost.why}" if lost.why else lost.what
            raise LinkLost(f"no pagefire daemon answers at {self._options.to}", why, "check host and port") from lost
        negotiation.check_welcome(welcome)
        return welcome
