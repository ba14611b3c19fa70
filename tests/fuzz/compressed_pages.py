"""Target: a payload of compressed pages, or of differences, as a destination reads it: through its connection, then unpacked.

Whatever it says of itself, contents of exactly the announced pages come out, or RemoteProtocolError, and no more memory is taken
than those pages need.
"""

from __future__ import annotations

import copy
from typing import cast

from pagefire.protocol import messages as m
from pagefire.protocol.codecs import CODECS, new_codec
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.frames import encode_head
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.state import Role, Side
from tests.fuzz.choices import Choices, damage
from tests.fuzz.limits import BODY_FACTOR, FIXED_BYTES, MemoryWithin
from tests.protocol.golden.conversation import Pair
from tests.protocol.golden.examples import EXAMPLES

_NAMES = (*CODECS, "brotli", "")
#: The connection's sides listed both codecs, and differences.
_PAIR = Pair.streaming(Role.PAGES)
for _end in _PAIR.ends.values():
    _end.codecs, _end.deltas = frozenset(CODECS), True
#: A codec's own state, a decoder's tables: README.md, section 9.
_CODEC_BYTES = 256 << 10


def one_input(given: bytes) -> None:
    choices = Choices(given)
    codec, made_by = choices.one_of(_NAMES), choices.one_of(CODECS)
    pages, packed_pages = choices.below(40), choices.below(40)
    match choices.below(4):
        case 0:
            payload = choices.rest()
        case 1:
            payload = damage(choices, _packed(choices, made_by, packed_pages))
        case 2:
            payload = _zstd_frame(choices)
        case _:
            payload = _packed(choices, made_by, packed_pages)
    message = (m.CompressedPages, m.DeltaPages)[len(payload) % 2](PageSet.span(0, pages), codec)
    body = m.encode(message)
    memory_bytes = len(payload) + 2 * PAGE_BYTES * pages + BODY_FACTOR * len(body) + _CODEC_BYTES + FIXED_BYTES
    with MemoryWithin(memory_bytes):
        end = copy.deepcopy(_PAIR)
        try:
            arrival = end.deliver(Side.DESTINATION, encode_head(message.kind, body, len(payload)))
            named = cast(m.CompressedPages | m.DeltaPages, arrival.message)
            contents = new_codec(named.codec).unpack(payload, named.pages.size_bytes)
        except RemoteProtocolError:
            return
    assert codec in CODECS
    assert 0 < len(payload) < pages * PAGE_BYTES == len(contents)


def seeds() -> list[bytes]:
    """Each codec as it should be, under the other's name, of other sizes, damaged; wild headers and golden bodies in its place."""
    right = [bytes((codec, codec, 3, 3, 3, kind, 65)) for codec in range(len(CODECS)) for kind in range(3)]
    wrong = [
        bytes((name, made_by, 3, pages, 3, 0)) for name in range(4) for made_by in range(2) for pages in (0, 2, 4, 39)
    ]
    damaged = [
        bytes((codec, codec, 3, 3, 1, 1, 7, at, 0, way, 1))
        for codec in range(2)
        for at in (0, 4, 9)
        for way in range(6)
    ]
    headers = [
        bytes((1, 1, 1, 1, 2, head, window, size))
        for head in (0, 0x20, 0xC0, 0xC3)
        for window in (0, 96, 255)
        for size in (0, 13, 40)
    ]
    raw = [
        bytes((codec, 0, 1, 0, 0)) + m.encode(message)[:64] for codec in range(2) for message, _ in EXAMPLES.values()
    ]
    return right + wrong + damaged + headers + raw


def _packed(choices: Choices, codec: str, pages: int) -> bytes:
    """Pack some pages: of one byte, of a few over and over, of what the input has."""
    size_bytes = pages * PAGE_BYTES
    match choices.below(3):
        case 0:
            contents = bytes([choices.below(256)]) * size_bytes
        case 1:
            few = choices.take(1 + choices.below(32)) or b"-"
            contents = (few * (size_bytes // len(few) + 1))[:size_bytes]
        case _:
            contents = choices.take(512).ljust(size_bytes, b"=")[:size_bytes]
    return new_codec(codec).pack(contents)


def _zstd_frame(choices: Choices) -> bytes:
    """Make a frame with any header: sizes of contents and window that nothing stands for, and blocks that repeat a byte."""
    header = b"\x28\xb5\x2f\xfd" + bytes((choices.below(256), choices.below(256)))
    size = choices.number().to_bytes(8, "little")[: choices.below(9)]
    blocks = b""
    for _ in range(choices.below(4)):
        block = choices.below(2) | (1 + choices.below(3)) << 1 | (choices.number() & 0x1FFFFF) << 3
        blocks += block.to_bytes(3, "little") + choices.take(1)
    return header + size + blocks + choices.rest()
