"""Target: the frame decoder gives the same heads and the same end however its bytes are cut."""

from __future__ import annotations

from collections.abc import Callable

from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.frames import FrameDecoder, FrameHead, encode_head
from pagefire.protocol.messages import encode
from tests.fuzz.choices import Choices, damage
from tests.fuzz.limits import FIXED_BYTES, MemoryWithin
from tests.protocol.golden.examples import EXAMPLES

_GOLDEN = [encode_head(message.kind, encode(message), 0) for message, _ in EXAMPLES.values()]

#: The heads, whether the rest was refused, and whether the stream ended between two frames.
_Outcome = tuple[list[FrameHead], bool, bool]


def one_input(given: bytes) -> None:
    choices = Choices(given)
    cuts = choices.take(8) or b"\0"
    stream = _stream(choices)
    # What came is held three times at most: as a growing buffer, its copy, the head. Never what a header announces.
    with MemoryWithin(4 * len(stream) + FIXED_BYTES):
        whole = _pour(stream, lambda turn: len(stream))
    assert whole == _pour(stream, lambda turn: 1)
    assert whole == _pour(stream, lambda turn: 1 + cuts[turn % len(cuts)])


def seeds() -> list[bytes]:
    cuts = bytes((6, 0, 40, 11, 3, 200, 15, 1))
    raw = [cuts + b"\0" + frame for frame in _GOLDEN]
    built = [cuts + bytes((1, index)) for index in range(len(_GOLDEN))]
    strangers = [cuts + b"\0" + first for first in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\0", b"SSH-2.0", b"PGF0")]
    return raw + built + strangers


def _stream(choices: Choices) -> bytes:
    """Frames one behind the other: the golden ones, any kind and body, damaged ones; and bytes that are none."""
    stream = b""
    while choices.left and len(stream) < 2048:
        match choices.below(4):
            case 0:
                return stream + choices.rest()
            case 1:
                stream += choices.one_of(_GOLDEN)
            case 2:
                kind, body = choices.below(256), choices.take(choices.below(256))
                payload_bytes = choices.below(256)
                stream += encode_head(kind, body, payload_bytes) + bytes(payload_bytes)
            case _:
                stream += damage(choices, choices.one_of(_GOLDEN))
    return stream


def _pour(stream: bytes, piece_bytes: Callable[[int], int]) -> _Outcome:
    decoder, heads, at, turn = FrameDecoder(), list[FrameHead](), 0, 0
    while at < len(stream):
        assert decoder.wanted > 0
        size = min(decoder.wanted, piece_bytes(turn))
        turn += 1
        try:
            head = decoder.feed(stream[at : at + size])
        except RemoteProtocolError:
            return heads, True, False
        at += size
        if head is not None:
            heads.append(head)
            at += head.payload_bytes
    return heads, False, decoder.between_frames
