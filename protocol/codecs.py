"""Codecs of page contents: what a sender makes of a batch of pages, and all that a receiver lets a peer's bytes become.

A receiver knows how many bytes the contents have before it looks at them: 4096 for each page that the frame names. `unpack` gives
exactly so many or raises, and allocates no more: lz4 writes into a buffer of that size and refuses what would not fit, and of a
zstd frame the size that its own header announces, which is what the library would allocate, is compared first. So there is nothing
that a small frame could blow up to. Both codecs release the GIL while they work, both ways (measured: another thread goes on
counting at full speed).

What is packed must not change meanwhile: guest memory does, so it is a private copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import lz4.block
import zstandard

from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.frames import Buffer
from pagefire.protocol.messages import MAX_FRAME_PAGES
from pagefire.protocol.pages import PAGE_BYTES

#: One lower than zstd's default of 3: text of 1 MiB became 0.33 of it at 300 MB/s, at level 3 0.30 at 220, at level -1 0.40 at 320.
_ZSTD_LEVEL = 1
#: A frame that needs to look back further than the largest batch is none of ours.
_ZSTD_WINDOW_BYTES = MAX_FRAME_PAGES * PAGE_BYTES


class Codec(ABC):
    """One codec as used by one thread: it may keep a context between two calls."""

    name: ClassVar[str]

    @abstractmethod
    def pack(self, contents: Buffer) -> bytes:
        """Compress contents that nobody writes to. What comes may be longer than they are."""

    @abstractmethod
    def unpack(self, packed: Buffer, size_bytes: int) -> bytes:
        """Give contents of exactly `size_bytes`; raises RemoteProtocolError where `packed` holds anything else."""


class Lz4(Codec):
    """One block of the LZ4 block format, without a length before it."""

    name = "lz4"

    def pack(self, contents: Buffer) -> bytes:
        packed: bytes = lz4.block.compress(contents, store_size=False)
        return packed

    def unpack(self, packed: Buffer, size_bytes: int) -> bytes:
        try:
            contents: bytes = lz4.block.decompress(packed, uncompressed_size=size_bytes)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise _broken(self.name, str(error)) from error
        return _whole(self.name, contents, size_bytes)


class Zstd(Codec):
    """One zstd frame (RFC 8878) that tells the size of its contents, without a dictionary, with nothing behind it."""

    name = "zstd"

    def __init__(self) -> None:
        self._packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)

    def pack(self, contents: Buffer) -> bytes:
        return self._packer.compress(contents)

    def unpack(self, packed: Buffer, size_bytes: int) -> bytes:
        try:
            announced = zstandard.get_frame_parameters(packed)
            if announced.content_size != size_bytes or announced.dict_id or announced.window_size > _ZSTD_WINDOW_BYTES:
                raise _broken(self.name, f"its header is not of {size_bytes} bytes without a dictionary")
            contents = self._unpacker.decompress(packed, max_output_size=size_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _broken(self.name, str(error)) from error
        return _whole(self.name, contents, size_bytes)


_CLASSES: tuple[type[Codec], ...] = (Lz4, Zstd)
#: Names of all codecs, the quickest first.
CODECS = tuple(codec.name for codec in _CLASSES)


def new_codec(name: str) -> Codec:
    """Make a codec of this name, one of CODECS, for one thread."""
    return next(codec for codec in _CLASSES if codec.name == name)()


def _whole(name: str, contents: bytes, size_bytes: int) -> bytes:
    if len(contents) != size_bytes:
        raise _broken(name, f"{len(contents)} bytes of contents, {size_bytes} were announced")
    return contents


def _broken(name: str, why: str) -> RemoteProtocolError:
    return RemoteProtocolError("the peer sent compressed pages that cannot be read", f"{name}: {why}")
