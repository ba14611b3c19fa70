"""Codecs: what is packed comes out again, and of a peer's bytes nothing comes but contents of the announced size."""

from __future__ import annotations

import struct
import sys
import threading

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.codecs import CODECS, new_codec
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.messages import MAX_FRAME_PAGES
from pagefire.protocol.pages import PAGE_BYTES
from tests.fuzz.limits import FIXED_BYTES, MemoryWithin

#: A page, and what another implementation may send for it: README.md, section 4.
PAGE = (b"A page is 4096 bytes of guest memory. " * 100)[:3000] + bytes(1096)
GOLDEN = {
    "lz4": "ff174120706167652069732034303936206279746573206f66206775657374206d656d6f72792e202600ffffffffffffffff"
    "ffffff8a1f000100ffffffff33500000000000",
    "zstd": "28b52ffd60000fa5010074024120706167652069732034303936206279746573206f66206775657374206d656d6f72792e20"
    "00020044e07ee1c7255f3d01",
}
_MAGIC = struct.pack("<I", 0xFD2FB528)
every_codec = pytest.mark.parametrize("codec", CODECS)


def zstd_frame(size_bytes: int, window_log: int) -> bytes:
    """Make a frame of one run-length block of zeros; its header announces contents of 8 bytes width, and a window."""
    header = _MAGIC + bytes((0b1100_0000, (window_log - 10) << 3)) + struct.pack("<Q", size_bytes)
    return header + (1 | 1 << 1 | min(size_bytes, 1 << 17) << 3).to_bytes(3, "little") + b"\0"


@every_codec
@given(st.integers(1, 40), st.integers(0, 1 << 32), st.sampled_from(["distinct", "like text", "one line"]))
def test_what_is_packed_comes_out_again(codec: str, pages: int, seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    alphabet = random.integers(0, 256, ({"distinct": 1 << 16, "like text": 12, "one line": 1}[kind], 16), np.uint8)
    contents = alphabet[random.integers(0, len(alphabet), pages * PAGE_BYTES // 16)].tobytes()
    packed = new_codec(codec).pack(contents)
    assert new_codec(codec).unpack(packed, len(contents)) == contents
    assert (len(packed) < 0.9 * len(contents)) is (kind != "distinct")


@every_codec
def test_a_whole_frame_of_pages(codec: str) -> None:
    """One codec, several batches: nothing is left over from the one before."""
    one = new_codec(codec)
    for value in (1, 2):
        contents = bytes([value]) * (MAX_FRAME_PAGES * PAGE_BYTES)
        assert one.unpack(memoryview(one.pack(memoryview(contents))), len(contents)) == contents


@every_codec
def test_golden_payloads(codec: str) -> None:
    assert new_codec(codec).unpack(bytes.fromhex(GOLDEN[codec]), len(PAGE)) == PAGE


@every_codec
@pytest.mark.parametrize(
    "wrong",
    [
        lambda packed: packed[:-1],
        lambda packed: packed + b"\0",
        lambda packed: packed + packed,
        lambda packed: packed[1:],
        lambda packed: b"",
        lambda packed: b"\0" * 4096,
        lambda packed: b"\xff" * 4096,
    ],
    ids=["cut off", "a byte more", "twice", "beheaded", "empty", "zeros", "ones"],
)
def test_broken_payloads_are_named(codec: str, wrong: object) -> None:
    packed = new_codec(codec).pack(PAGE)
    with pytest.raises(RemoteProtocolError, match=f"the peer sent compressed pages that cannot be read: {codec}: "):
        new_codec(codec).unpack(wrong(packed), len(PAGE))  # type: ignore[operator]


@every_codec
@pytest.mark.parametrize("packed_bytes", [PAGE_BYTES - 1, PAGE_BYTES + 1, 2 * PAGE_BYTES, 3])
def test_contents_of_another_size_are_refused(codec: str, packed_bytes: int) -> None:
    with pytest.raises(RemoteProtocolError, match=codec):
        new_codec(codec).unpack(new_codec(codec).pack(bytes(packed_bytes)), PAGE_BYTES)


def test_the_other_codec_is_refused() -> None:
    for one, other in (CODECS, CODECS[::-1]):
        with pytest.raises(RemoteProtocolError, match=one):
            new_codec(one).unpack(new_codec(other).pack(PAGE), len(PAGE))


@every_codec
def test_a_bomb_takes_no_memory(codec: str) -> None:
    """1 GiB of zeros in a few KB: refused before any of it is made."""
    bomb = new_codec(codec).pack(bytes(256 << 20))
    with MemoryWithin(2 * PAGE_BYTES + FIXED_BYTES), pytest.raises(RemoteProtocolError, match=codec):
        new_codec(codec).unpack(bomb, PAGE_BYTES)


def test_a_zstd_frame_has_to_tell_its_size() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(PAGE)
    with pytest.raises(RemoteProtocolError, match="its header is not of 4096 bytes without a dictionary"):
        new_codec("zstd").unpack(silent, len(PAGE))


def test_what_a_zstd_header_announces_is_not_believed() -> None:
    assert new_codec("zstd").unpack(zstd_frame(PAGE_BYTES, 20), PAGE_BYTES) == bytes(PAGE_BYTES)
    for size_bytes, window_log in ((1 << 40, 20), (PAGE_BYTES, 31), (PAGE_BYTES, 24)):
        with MemoryWithin(FIXED_BYTES), pytest.raises(RemoteProtocolError, match="its header is not of 4096 bytes"):
            new_codec("zstd").unpack(zstd_frame(size_bytes, window_log), PAGE_BYTES)


def test_a_zstd_frame_that_needs_a_dictionary_is_refused() -> None:
    dictionary = zstandard.ZstdCompressionDict(PAGE[:1024], dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    with pytest.raises(RemoteProtocolError, match="zstd"):
        new_codec("zstd").unpack(zstandard.ZstdCompressor(dict_data=dictionary).compress(PAGE), len(PAGE))


def test_a_skippable_zstd_frame_is_no_contents() -> None:
    with pytest.raises(RemoteProtocolError, match="zstd"):
        new_codec("zstd").unpack(struct.pack("<II", 0x184D2A50, PAGE_BYTES) + PAGE, PAGE_BYTES)


@every_codec
def test_codecs_let_other_threads_run(codec: str) -> None:
    """Where a codec kept the GIL, nobody else would run until it is done: threads are not switched for 100 s here."""
    contents = np.random.default_rng(1).integers(0, 12, 32 << 20, np.uint8).tobytes()
    packed = new_codec(codec).pack(contents)
    for work in (lambda: new_codec(codec).pack(contents), lambda: new_codec(codec).unpack(packed, len(contents))):
        begun, ended = threading.Event(), threading.Event()
        seen: list[int] = []

        def run(work: object = work, begun: threading.Event = begun, ended: threading.Event = ended) -> None:
            begun.set()
            work()  # type: ignore[operator]
            ended.set()

        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(100.0)
        try:
            thread = threading.Thread(target=run)
            thread.start()
            begun.wait()
            while not ended.is_set() and len(seen) < 100:
                seen.append(1)
            thread.join()
        finally:
            sys.setswitchinterval(interval_s)
        assert len(seen) == 100
