"""Target: either end of a connection, of every role and in every phase, against a peer that says anything.

What comes out is a message that the tables allow there, or RemoteProtocolError; our own end's messages go out where the tables
allow them and raise LocalProtocolError elsewhere; the end of the stream is LinkLost but after the last message. After an error
nothing that the peer sends is believed any more.
"""

from __future__ import annotations

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.errors import LinkLost, LocalProtocolError, RemoteProtocolError
from pagefire.protocol.frames import MAX_PAYLOAD_BYTES, encode_head
from pagefire.protocol.state import WITH_PAYLOAD, Phase, Role, Side
from tests.fuzz.choices import Choices, damage
from tests.fuzz.grammar import CLASSES, body
from tests.fuzz.limits import BODY_FACTOR, FIXED_BYTES, MemoryWithin
from tests.fuzz.places import PLACES, allowed
from tests.protocol.golden.conversation import example

_SIDES = tuple(Side)


def one_input(given: bytes) -> None:
    choices = Choices(given)
    place, side = choices.one_of(PLACES), choices.one_of(_SIDES)
    end = place.end(side)
    peer = _Peer(end)
    while choices.left:
        match choices.below(8):
            case 0:
                _end_of_stream(end)
            case 1 | 2 if not peer.refused:
                if not _send(choices, end):
                    return
            case 3:
                peer.say(choices.take(choices.below(64)), choices.below(256))
            case _:
                peer.say(_frame(choices, end), choices.below(256))


def seeds() -> list[bytes]:
    """In every place each end hears each message that may come there, as it should be, and says each that it may say."""
    made = list[bytes]()
    for at, place in enumerate(PLACES):
        for index, side in enumerate(_SIDES):
            where = bytes((at, index))
            heard, said = (allowed(place.role, place.phase, sender) for sender in (side.peer, side))
            made += [where + bytes((4, 1, message, 0, 0, 0, 0)) for message in range(len(heard))]
            made += [where + bytes((1, 1, message)) for message in range(len(said))]
            made.append(where + b"\3\x10GET / HTTP/1.0\r\n")
    return made


class _Peer:
    """Who speaks to our end, and what may still come of it."""

    def __init__(self, end: Connection) -> None:
        self._end = end
        #: Whether something that it said was refused.
        self.refused = False
        #: What our end holds of a frame that is not complete.
        self._held_bytes = 0

    def say(self, said: bytes, piece_bytes: int) -> None:
        """Bring bytes to our end in pieces (0: whole)."""
        if self.refused:
            _is_not_believed(self._end, said)
            return
        # A large frame not byte by byte: that would take a second.
        piece_bytes = max(piece_bytes or len(said), len(said) >> 10)
        at = 0
        with MemoryWithin(BODY_FACTOR * (self._held_bytes + len(said)) + 2 * FIXED_BYTES):
            while at < len(said) and not self.refused:
                assert self._end.wanted > 0
                at += self._say_piece(said[at : at + min(self._end.wanted, piece_bytes)])

    def _say_piece(self, piece: bytes) -> int:
        """Check what comes of one piece; gives how far that takes us, beyond the payload that the end's owner reads itself."""
        end, role, phase = self._end, self._end.role, self._end.phase
        try:
            arrival = end.receive(piece)
        except RemoteProtocolError:
            self.refused = True
            assert end.phase is phase
            return len(piece)
        if arrival is None:
            self._held_bytes += len(piece)
            assert (end.role, end.phase) == (role, phase)
            return len(piece)
        self._held_bytes = 0
        _check_arrival(end, arrival, role, phase)
        return len(piece) + arrival.payload_bytes


def _check_arrival(end: Connection, arrival: Arrival, role: Role | None, phase: Phase) -> None:
    kind = type(arrival.message)
    # Whose role is not known yet learns it from the Hello.
    following = allowed(role or end.role, phase, end.side.peer)
    assert kind in following, f"{kind.__name__} came in phase {phase.value} of a {role} connection"
    assert end.phase is following[kind]
    assert role in (None, end.role)
    assert not arrival.payload_bytes or kind in WITH_PAYLOAD
    if isinstance(arrival.message, m.Pages):
        assert arrival.payload_bytes == arrival.message.pages.size_bytes
    if isinstance(arrival.message, m.CompressedPages | m.DeltaPages):
        assert arrival.message.codec in end.codecs
        assert arrival.message.pages.pages <= m.MAX_FRAME_PAGES
        assert 0 < arrival.payload_bytes < arrival.message.pages.size_bytes
    if isinstance(arrival.message, m.DeltaPages):
        assert end.deltas


def _is_not_believed(end: Connection, came: bytes) -> None:
    phase = end.phase
    try:
        arrival = end.receive(came[: max(1, end.wanted)])
    except RemoteProtocolError:
        assert end.phase is phase
        return
    raise AssertionError(f"after an error {arrival} came")


def _send(choices: Choices, end: Connection) -> bool:
    """Let our end say something; tells whether it might."""
    sendable = allowed(end.role, end.phase, end.side)
    message_class = choices.one_of(list(sendable) or CLASSES) if choices.below(4) else choices.one_of(CLASSES)
    role = end.role or Role.CONTROL
    try:
        end.send(*example(message_class, role))
    except LocalProtocolError:
        assert message_class not in sendable
        return False
    assert end.phase is sendable[message_class]
    return True


def _end_of_stream(end: Connection) -> None:
    try:
        end.end_of_stream()
    except LinkLost:
        return
    assert end.phase is Phase.OVER


def _frame(choices: Choices, end: Connection) -> bytes:
    """Make a frame of the peer: mostly a message that may come now, in most cases with the payload that it announces."""
    due = list(allowed(end.role, end.phase, end.side.peer))
    message_class = choices.one_of(due or CLASSES) if choices.below(4) else choices.one_of(CLASSES)
    coded = body(choices, message_class)
    kind, payload_bytes = message_class.kind, _payload_bytes(coded, message_class)
    match choices.below(8):
        case 1:
            payload_bytes = choices.number() & 0xFFFF
        case 2:
            payload_bytes = max(0, payload_bytes - 1)
        case 3:
            kind = choices.below(256)
    frame = encode_head(kind, coded, payload_bytes)
    return damage(choices, frame) if choices.below(8) == 7 else frame


def _payload_bytes(coded: bytes, message_class: type[m.Message]) -> int:
    """Tell what payload goes with a body: what it announces itself, if it can be read."""
    try:
        message = m.decode(message_class.kind, coded)
    except RemoteProtocolError:
        return example(message_class)[1]
    if isinstance(message, m.Pages):
        return min(message.pages.size_bytes, MAX_PAYLOAD_BYTES)
    return example(message_class)[1]
