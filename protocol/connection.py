"""One connection without its socket: frame heads and messages in both directions, checked against the tables of state.py.

    outgoing:  message -> `send` -> bytes of the head; the caller writes them, then the payload, uncopied
    incoming:  bytes -> `receive` -> `Arrival` (the message, and how many payload bytes follow); the caller reads the payload itself

Our own mistake raises LocalProtocolError before a byte leaves, the peer's RemoteProtocolError; after either the connection is of
no more use. `end_of_stream` says whether the peer may stop where it did.

Where the source's Hello lists the capability `checksum` and the destination knows it, every frame from that Hello on carries one.
It is verified here; that of a frame with a payload by whoever reads the payload, with `Arrival.check`. Likewise both list the
codecs that compressed pages may have there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pagefire.protocol import messages
from pagefire.protocol.errors import LinkLost, LocalProtocolError, RemoteProtocolError
from pagefire.protocol.frames import Buffer, Check, FrameDecoder, encode_head
from pagefire.protocol.messages import (
    MAX_EXTENT_RUNS,
    MAX_FRAME_PAGES,
    MAX_FRAME_RUNS,
    MAX_LONG_FRAME_PAGES,
    MAX_ZERO_PAGES,
    CompressedPages,
    DeltaPages,
    Failure,
    Fetch,
    Hello,
    Message,
    Pages,
    Populate,
    Switchover,
    Welcome,
    ZeroPages,
)
from pagefire.protocol.negotiation import CHECKSUM, DELTAS, LONG_FRAMES, codecs_in
from pagefire.protocol.state import AFTER_WELCOME, CONTROL, STREAMS, WITH_PAYLOAD, Phase, Role, Side


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that came in and the payload bytes that follow it on the stream.

    Where there is a `check`, nothing of the message is to be believed before its payload has been read and verified.
    """

    message: Message
    payload_bytes: int
    check: Check | None = None


class Connection:
    """The protocol of one connection as seen from `side`. `role` is known from the first Hello on."""

    def __init__(self, side: Side, role: Role | None = None) -> None:
        self.side = side
        self.role = role
        self.phase = Phase.GREETING
        #: Whether frames carry a checksum: known when the Hello has passed.
        self.checksums = False
        #: By which codecs pages may be compressed here: known when the Welcome has passed.
        self.codecs: frozenset[str] = frozenset()
        #: Whether differences may be sent here: known when the Welcome has passed.
        self.deltas = False
        self._long_frames = False
        self._decoder = FrameDecoder()
        self._refused: str | None = None

    @property
    def most_pages(self) -> int:
        """How many pages one Pages may name here: a payload that is summed has to be held, a long one is not."""
        long = self._long_frames and not self.checksums and self.role is Role.PAGES
        return MAX_LONG_FRAME_PAGES if long else MAX_FRAME_PAGES

    @property
    def wanted(self) -> int:
        """How many bytes `receive` takes next at most."""
        return self._decoder.wanted

    def send(self, message: Message, payload_bytes: int = 0, payload: Iterable[Buffer] = ()) -> bytes:
        """Give the bytes that announce `message`; raises LocalProtocolError when it may not be sent now.

        Where `checksums`, the `payload` is needed, and must not change any more: what is sent has to be what was summed.
        """
        try:
            self._advance(message, self.side, payload_bytes)
            summed = payload if self.checksums else None
            return encode_head(message.kind, messages.encode(message), payload_bytes, summed)
        except (ValueError, OverflowError) as error:
            raise LocalProtocolError(f"{type(message).__name__} may not be sent now", str(error)) from None

    def receive(self, received: bytes | bytearray | memoryview) -> Arrival | None:
        """Take at most `wanted` bytes; gives the message they complete. Raises RemoteProtocolError, and from then on always."""
        if self._refused is not None:
            # A frame behind a refused one may be just what is due: it would be believed as if nothing had been.
            raise RemoteProtocolError("the peer broke the protocol before", self._refused)
        try:
            return self._read(received)
        except RemoteProtocolError as error:
            self._refused = error.what
            raise

    def end_of_stream(self) -> None:
        """The peer closed its end: raises LinkLost unless the conversation was over."""
        if self.phase is not Phase.OVER or not self._decoder.between_frames:
            raise LinkLost("the peer closed the connection", f"phase {self.phase.value}")

    def _read(self, received: bytes | bytearray | memoryview) -> Arrival | None:
        head = self._decoder.feed(received)
        if head is None:
            return None
        # While it greets, whether there are checksums is what the message says.
        greeting = self.phase in (Phase.GREETING, Phase.JOINING)
        check = Check(head) if self.checksums and not greeting else None
        if check is not None and not head.payload_bytes:
            check.verify()
            check = None
        message = messages.decode(head.kind, head.body)
        # A Hello that lists them has one itself; a Welcome where that Hello did.
        listed = isinstance(message, Hello | Welcome) and CHECKSUM in message.capabilities
        if greeting and listed and (isinstance(message, Hello) or self.checksums):
            Check(head).verify()
        try:
            self._advance(message, self.side.peer, head.payload_bytes)
        except ValueError as error:
            raise RemoteProtocolError(f"the peer sent {type(message).__name__} out of turn", str(error)) from None
        return Arrival(message, head.payload_bytes, check)

    def _advance(self, message: Message, sender: Side, payload_bytes: int) -> None:
        """Check one message against the tables and move on; raises ValueError."""
        kind = type(message)
        _check_size(message, payload_bytes, self.most_pages)
        if isinstance(message, Hello):
            self.role = self._role_of(message)
            self.checksums = CHECKSUM in message.capabilities
            self.codecs = codecs_in(message.capabilities)
            self.deltas = DELTAS in message.capabilities
            self._long_frames = LONG_FRAMES in message.capabilities
        elif isinstance(message, Welcome):
            self.checksums = self.checksums and CHECKSUM in message.capabilities
            self.codecs &= codecs_in(message.capabilities)
            self.deltas = self.deltas and DELTAS in message.capabilities
            self._long_frames = self._long_frames and LONG_FRAMES in message.capabilities
        if self.role not in (Role.PAGES, Role.FAULT) or self.phase in (Phase.GREETING, Phase.JOINING):
            following = CONTROL.get((self.phase, sender), {}).get(kind)
            if following is None:
                raise ValueError(f"not by the {sender.value} in phase {self.phase.value}")
            self.phase = AFTER_WELCOME[self._known_role] if isinstance(message, Welcome) else following
        elif self.phase is Phase.OVER:
            raise ValueError(f"not by the {sender.value} in phase {self.phase.value}")
        elif kind is Failure:
            self.phase = Phase.OVER
        elif kind not in STREAMS[self._known_role, sender]:
            raise ValueError(f"not by the {sender.value} on a {self._known_role.value} connection")
        elif isinstance(message, CompressedPages | DeltaPages) and message.codec not in self.codecs:
            raise ValueError(f"the codec {message.codec[:40]!r} was not agreed on")
        elif isinstance(message, DeltaPages) and not self.deltas:
            raise ValueError("differences were not agreed on")

    @property
    def _known_role(self) -> Role:
        assert self.role is not None
        return self.role

    def _role_of(self, hello: Hello) -> Role:
        try:
            role = Role(hello.role)
        except ValueError:
            raise ValueError(f"unknown role {hello.role!r}") from None
        if self.role is not None and role is not self.role:
            raise ValueError(f"role {role.value} on a {self.role.value} connection")
        return role


def _check_size(message: Message, payload_bytes: int, most_pages: int) -> None:
    """Check what a message announces against its payload and the limits of a frame, `most_pages` of Pages; raises ValueError."""
    if payload_bytes and type(message) not in WITH_PAYLOAD:
        raise ValueError("it carries no payload")
    match message:
        case Pages(pages) if payload_bytes != pages.size_bytes:
            raise ValueError(f"{pages.pages} pages announced, {payload_bytes} bytes of payload")
        # What is not smaller goes as it is: so a receiver needs no more room for what came than for what becomes of it.
        case CompressedPages(pages) | DeltaPages(pages) if not 0 < payload_bytes < pages.size_bytes:
            raise ValueError(f"{pages.pages} compressed pages announced, {payload_bytes} bytes of payload")
        case Switchover(registers_bytes=registers, swapped_bytes=swapped) if (
            min(registers, swapped) < 0 or registers + swapped > payload_bytes
        ):
            raise ValueError(
                f"{registers} bytes of registers and a swap bitmap of {swapped} announced, {payload_bytes} bytes of payload"
            )
        case Pages(pages) if pages.pages > most_pages:
            raise ValueError(f"{pages.pages} pages, a frame names {most_pages} at most here")
        # A receiver holds what one frame names, page by page.
        case CompressedPages(pages) | DeltaPages(pages) | Fetch(pages) | Switchover(hot=pages) if (
            pages.pages > MAX_FRAME_PAGES
        ):
            raise ValueError(f"{pages.pages} pages, a frame names {MAX_FRAME_PAGES} at most")
        case ZeroPages(pages) if pages.pages > MAX_ZERO_PAGES:
            raise ValueError(f"{pages.pages} zero pages, a frame names {MAX_ZERO_PAGES} at most")
        case (
            Pages(pages)
            | CompressedPages(pages)
            | DeltaPages(pages)
            | Fetch(pages)
            | ZeroPages(pages)
            | Switchover(hot=pages)
        ) if len(pages) > MAX_FRAME_RUNS:
            raise ValueError(f"{len(pages)} runs of pages, a frame names {MAX_FRAME_RUNS} at most")
        case Populate(pages) if len(pages) > MAX_EXTENT_RUNS:
            raise ValueError(f"{len(pages)} runs of pages, an announcement names {MAX_EXTENT_RUNS} at most")
