"""Frames: whatever pieces they come in, whatever else is at the other end, and never a byte too many."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.frames import (
    HEADER_BYTES,
    MAGIC,
    MAX_BODY_BYTES,
    MAX_PAYLOAD_BYTES,
    Check,
    FrameDecoder,
    FrameHead,
    encode_head,
)

bodies = st.binary(max_size=300)
kinds = st.integers(0, 255)


def pour(decoder: FrameDecoder, stream: bytes, piece_bytes: int) -> Iterator[FrameHead]:
    """Feed a stream whose payloads hold no bytes, in pieces, as an owner of a socket would."""
    while stream:
        size = min(decoder.wanted, piece_bytes)
        head = decoder.feed(stream[:size])
        stream = stream[size:]
        if head is not None:
            yield head


def test_header_is_the_specified_one() -> None:
    assert encode_head(18, b"abc", 5) == b"PGF2" + bytes((18, 0, 0, 0)) + b"\3\0\0\0" + b"\5\0\0\0" + bytes(4) + b"abc"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(kinds, bodies), max_size=5), st.integers(1, 400))
@example([(1, b"x"), (2, b"")], 1)
def test_frames_come_out_as_they_went_in(frames: list[tuple[int, bytes]], piece_bytes: int) -> None:
    stream = b"".join(encode_head(kind, body, 0) for kind, body in frames)
    decoder = FrameDecoder()
    assert list(pour(decoder, stream, piece_bytes)) == [FrameHead(kind, body, 0) for kind, body in frames]
    assert decoder.between_frames


@settings(max_examples=50, deadline=None)
@given(bodies, st.integers(1, MAX_PAYLOAD_BYTES))
def test_payload_is_never_wanted(body: bytes, payload_bytes: int) -> None:
    decoder = FrameDecoder()
    stream, taken = encode_head(16, body, payload_bytes) + b"payload", 0
    while True:
        size = decoder.wanted
        head = decoder.feed(stream[taken : taken + size])
        taken += size
        if head is not None:
            break
    assert (head.payload_bytes, stream[taken:]) == (payload_bytes, b"payload")
    assert decoder.wanted == HEADER_BYTES


def test_more_than_wanted_is_refused() -> None:
    decoder = FrameDecoder()
    with pytest.raises(ValueError, match="payload"):
        decoder.feed(encode_head(16, b"", 7) + b"p")


@pytest.mark.parametrize("cut", range(1, HEADER_BYTES + 4))
def test_a_stream_that_ends_inside_a_frame_is_noticed(cut: int) -> None:
    decoder = FrameDecoder()
    assert list(pour(decoder, encode_head(1, b"body", 0)[:cut], 1)) == []
    assert not decoder.between_frames
    assert decoder.wanted == (HEADER_BYTES if cut < HEADER_BYTES else HEADER_BYTES + 4) - cut


def test_reserved_bytes_are_ignored() -> None:
    assert FrameDecoder().feed(b"PGF2" + bytes((9, 1, 2, 3)) + bytes(12)) == FrameHead(9, b"", 0)


@pytest.mark.parametrize(("body_bytes", "payload_bytes"), [(MAX_BODY_BYTES + 1, 0), (0, MAX_PAYLOAD_BYTES + 1)])
def test_limits(body_bytes: int, payload_bytes: int) -> None:
    with pytest.raises(ValueError, match="too large"):
        encode_head(1, bytes(body_bytes), payload_bytes)
    # Refused by the header alone: nothing was allocated for what it announces.
    with pytest.raises(RemoteProtocolError, match="beyond the limits"):
        FrameDecoder().feed(struct.pack("<4sB3xIII", MAGIC, 1, body_bytes, payload_bytes, 0))


def test_the_largest_frame_passes() -> None:
    decoder = FrameDecoder()
    head = encode_head(1, bytes(MAX_BODY_BYTES), MAX_PAYLOAD_BYTES)
    assert decoder.feed(head[:HEADER_BYTES]) is None
    assert decoder.feed(head[HEADER_BYTES:]) == FrameHead(1, bytes(MAX_BODY_BYTES), MAX_PAYLOAD_BYTES)


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (b"HTTP/1.1 400 Bad", "HTTP"),
        (b"GET / HTTP/1.1\r\n", "HTTP"),
        (b"POST / HTTP/1.1\r", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "TLS"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "TLS"),
        (b"SSH-2.0-OpenSSH", "SSH"),
        (b"PGF3" + bytes(12), "PGF3"),
        (b"\x00\x01\xff", "xff"),
    ],
)
def test_a_stranger_is_named(first: bytes, named: str) -> None:
    with pytest.raises(RemoteProtocolError, match="not a pagefire daemon") as refused:
        FrameDecoder().feed(first)
    assert named in refused.value.why
    assert "host and port" in refused.value.do


def test_an_older_release_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="older pagefire: it speaks protocol version 1"):
        FrameDecoder().feed(b"PGF1" + bytes(12))


# -- checksums ---------------------------------------------------------------------------------------------------------


def head_of(frame: bytes) -> FrameHead:
    decoder = FrameDecoder()
    head = decoder.feed(frame[:HEADER_BYTES])
    while head is None:
        head = decoder.feed(frame[HEADER_BYTES : HEADER_BYTES + decoder.wanted])
    return head


def test_checksum_is_the_specified_one() -> None:
    """CRC-32 of the first 16 bytes, the body and the payload."""
    frame = encode_head(18, b"abc", 5, [b"pay", b"ld"])
    assert frame[16:20] == struct.pack("<I", zlib.crc32(frame[:16] + b"abc" + b"payld"))


@given(bodies, st.lists(st.binary(max_size=50), max_size=4))
def test_a_whole_frame_verifies(body: bytes, parts: list[bytes]) -> None:
    payload = b"".join(parts)
    check = Check(head_of(encode_head(16, body, len(payload), parts)))
    for at in range(0, len(payload), 7):
        check.add(payload[at : at + 7])
    check.verify()


@given(bodies, st.binary(min_size=1, max_size=50), st.data())
def test_any_flipped_bit_is_found(body: bytes, payload: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode_head(16, body, len(payload), [payload]) + payload)
    # The magic is looked at by itself, the reserved bytes are not, and another length moves the frame's end.
    at = data.draw(st.sampled_from([4, *range(16, len(frame))]))
    frame[at] ^= 1 << data.draw(st.integers(0, 7))
    check = Check(head_of(bytes(frame)))
    check.add(frame[-len(payload) :])
    with pytest.raises(RemoteProtocolError, match="damaged on its way"):
        check.verify()


def test_a_checksum_needs_the_whole_payload() -> None:
    with pytest.raises(ValueError, match="4 bytes, the payload has 5"):
        encode_head(16, b"", 5, [b"four"])


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_give_a_frame_or_the_refusal(stream: bytes) -> None:
    decoder = FrameDecoder()
    if not MAGIC.startswith(stream[:4]):
        with pytest.raises(RemoteProtocolError, match=r"not a pagefire daemon|older pagefire"):
            list(pour(decoder, stream, 1))
    else:
        assert list(pour(decoder, stream[:HEADER_BYTES], 1)) == []
