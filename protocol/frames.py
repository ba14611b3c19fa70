"""Frames: what every connection carries, and the incremental decoder of it.

    magic   4 bytes  b"PGF1"
    kind    u8       the message (messages.py)
    zero    3 bytes
    body    u32      bytes of the msgpack body
    payload u32      bytes that follow the body, out of band

Numbers are little-endian. The header is fixed and small so that a receiver asks its socket for exactly what it needs and can
then read the payload straight to where it belongs. A first header that does not begin with the magic is not from a pagefire:
its bytes are named in the error, because a person then sees that an HTTP server or a TLS client is at the other end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pagefire.protocol.errors import RemoteProtocolError

MAGIC = b"PGF1"
_HEADER = struct.Struct("<4sB3xII")
HEADER_BYTES = _HEADER.size
assert HEADER_BYTES == 16

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


def encode_head(kind: int, body: bytes, payload_bytes: int) -> bytes:
    """Give the bytes that precede a frame's payload; ValueError when a limit is exceeded."""
    if len(body) > MAX_BODY_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ValueError(f"frame too large: body {len(body)}, payload {payload_bytes} bytes")
    return _HEADER.pack(MAGIC, kind, len(body), payload_bytes) + body


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
            raise RemoteProtocolError(
                "the peer is not a pagefire daemon", f"it sent {_describe(bytes(self._buffer))}", "check host and port"
            )
        if self.wanted:
            return None
        _, kind, body_bytes, payload_bytes = _HEADER.unpack_from(self._buffer)
        if body_bytes > MAX_BODY_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
            raise RemoteProtocolError(
                "the peer announced a frame beyond the limits", f"{body_bytes} + {payload_bytes} bytes"
            )
        if len(self._buffer) < HEADER_BYTES + body_bytes:
            self._wanted_total = HEADER_BYTES + body_bytes
            return None
        head = FrameHead(kind, bytes(self._buffer[HEADER_BYTES:]), payload_bytes)
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
