"""Frames: what every connection carries, and the incremental decoder of it.

    magic    4 bytes  b"PGF2"
    kind     u8       the message (messages.py)
    zero     3 bytes
    body     u32      bytes of the msgpack body
    payload  u32      bytes that follow the body, out of band
    checksum u32      CRC-32 of all else in the frame where that was agreed on, else 0

Numbers are little-endian. The header is fixed and small so that a receiver asks its socket for exactly what it needs and can
then read the payload straight to where it belongs. A first header that does not begin with the magic is not from a pagefire:
its bytes are named in the error, because a person then sees that an HTTP server or a TLS client is at the other end.

The checksum is zlib's: 4.2 GB/s here, where SIMD ones do 19 to 65 (isal, crc32c, xxh3). A dependency more would buy little: a
checked payload is copied twice anyway.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from pagefire.protocol.errors import RemoteProtocolError

MAGIC = b"PGF2"
#: What an older release began its frames with.
_OLDER_MAGIC = b"PGF1"
_CHECKED_HEADER = struct.Struct("<4sB3xII")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _CHECKED_HEADER.size + _CHECKSUM.size
assert HEADER_BYTES == 20

Buffer = bytes | bytearray | memoryview

#: A body never needs more: 65,500 runs of pages, at 16 bytes each. What the worst body unpacks to is 72 times as much.
MAX_BODY_BYTES = 1 << 20
#: The largest payload: the raw bitmap of a guest of 8 TiB.
MAX_PAYLOAD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class FrameHead:
    """A frame without its payload, of which `payload_bytes` are still to come."""

    kind: int
    body: bytes
    payload_bytes: int
    checksum: int = 0


class Check:
    """A frame's checksum while its payload comes in: `add` all of it in order, then `verify`, and only then believe the frame."""

    def __init__(self, head: FrameHead) -> None:
        header = _CHECKED_HEADER.pack(MAGIC, head.kind, len(head.body), head.payload_bytes)
        self._sum = zlib.crc32(head.body, zlib.crc32(header))
        self._announced = head.checksum

    def add(self, received: Buffer) -> None:
        self._sum = zlib.crc32(received, self._sum)

    def verify(self) -> None:
        """Raise RemoteProtocolError unless the frame is the one that was sent."""
        if self._sum != self._announced:
            raise RemoteProtocolError(
                "a frame was damaged on its way",
                f"its checksum is {self._sum:08x}, {self._announced:08x} was sent",
                "look for faulty memory or network hardware between the hosts, then try again",
            )


def encode_head(kind: int, body: bytes, payload_bytes: int, payload: Iterable[Buffer] | None = None) -> bytes:
    """Give the bytes that precede a frame's payload, with a checksum where the `payload` is given, which must not change any more.

    Raises ValueError when a limit is exceeded, or the payload is of another length.
    """
    if len(body) > MAX_BODY_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ValueError(f"frame too large: body {len(body)}, payload {payload_bytes} bytes")
    header = _CHECKED_HEADER.pack(MAGIC, kind, len(body), payload_bytes)
    checksum = 0
    if payload is not None:
        checksum, seen_bytes = zlib.crc32(body, zlib.crc32(header)), 0
        for part in payload:
            checksum, seen_bytes = zlib.crc32(part, checksum), seen_bytes + len(part)
        if seen_bytes != payload_bytes:
            raise ValueError(f"a checksum of {seen_bytes} bytes, the payload has {payload_bytes}")
    return header + _CHECKSUM.pack(checksum) + body


class FrameDecoder:
    """Bytes in, frame heads out; never takes a byte that belongs to a payload.

    The owner feeds at most `wanted` bytes at a time. When `feed` gives a head, the owner moves its payload itself and then
    feeds the next header.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted_total = HEADER_BYTES

    @property
    def wanted(self) -> int:
        """How many bytes complete the header or the body that is under way; at least 1."""
        return self._wanted_total - len(self._buffer)

    @property
    def between_frames(self) -> bool:
        """Whether the stream may end here without cutting a frame."""
        return not self._buffer

    def feed(self, received: bytes | bytearray | memoryview) -> FrameHead | None:
        """Take at most `wanted` bytes; gives the head when it is complete. Raises RemoteProtocolError."""
        if len(received) > self.wanted:
            raise ValueError("more bytes than wanted: they would belong to a payload")
        self._buffer += received
        seen = bytes(self._buffer[: len(MAGIC)])
        if not MAGIC.startswith(seen):
            if seen == _OLDER_MAGIC:
                raise RemoteProtocolError(
                    "the peer is an older pagefire",
                    "it speaks protocol version 1",
                    "install the same pagefire on both hosts",
                )
            raise RemoteProtocolError(
                "the peer is not a pagefire daemon", f"it sent {_describe(bytes(self._buffer))}", "check host and port"
            )
        if self.wanted:
            return None
        _, kind, body_bytes, payload_bytes = _CHECKED_HEADER.unpack_from(self._buffer)
        if body_bytes > MAX_BODY_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
            raise RemoteProtocolError(
                "the peer announced a frame beyond the limits", f"{body_bytes} + {payload_bytes} bytes"
            )
        if len(self._buffer) < HEADER_BYTES + body_bytes:
            self._wanted_total = HEADER_BYTES + body_bytes
            return None
        (checksum,) = _CHECKSUM.unpack_from(self._buffer, _CHECKED_HEADER.size)
        head = FrameHead(kind, bytes(self._buffer[HEADER_BYTES:]), payload_bytes, checksum)
        self._buffer.clear()
        self._wanted_total = HEADER_BYTES
        return head


def _describe(received: bytes) -> str:
    if received.startswith((b"HTTP", b"GET ", b"POST")):
        return f"HTTP ({received[:16]!r})"
    if received[:1] == b"\x16" or received[:1] == b"\x15":
        return f"a TLS record ({received[:16].hex()})"
    if received.startswith(b"SSH-"):
        return f"an SSH banner ({received[:16]!r})"
    return repr(received[:16])
