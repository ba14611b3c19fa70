"""The compacted bitmap of the switchover: what the destination still needs, in bytes and time that grow with the runs left.

Facts: in 6 TiB, 200,000 pages left lie 8,000 apart, 8 to a chunk of 65,536; one Python step a chunk costs more than the stun,
and chunk heads and 16-bit offsets cost 597 KB (Roaring's form, measured) where 360 KB of information is there. Consequence: no
chunks. Decision: the gaps between all runs, and the runs' lengths, are two sequences, each coded level by level: the low bits
of every number at a fixed width, then a bit a number that tells which are larger, and those, reduced, on the next level. With
the widths a Golomb-Rice code would take that is 1% above the information limit; every step is one numpy call over a level; and
bits that are mostly alike are coded as runs again, by this same code, which is what clusters and odd outliers shrink by. Cost:
nothing can be read from the middle, and 10 million scattered pages take 0.2 s each way.

Layout (version 1). Numbers are little-endian; bit i of a bit string is 1 << i mod 8 of byte i div 8; unused bits are zero.
    message   version u8 = 1, form u8, total_pages u64, then by form   0: set within total_pages   1: raw bits (`bitmap_raw`)
    set       runs varint (7 bits a byte, lowest first, 128 = more follow); if not 0: sequence of gaps, sequence of lengths
    sequence  1 to 12 levels; the first codes all of the set's numbers, each other those that its forerunner let escape
    level     head u8 = kind * 64 + width; fields; plane; a level from which nothing escapes is the last
    fields    for n numbers, width div 8 planes of n bytes (bits 0-7 of every number, bits 8-15 ...), then the remaining
              width mod 8 bits of every number as a string of n * (width mod 8) bits, lowest bit first
    plane     one flag a number, set where it escapes. kind 0: no flag set, no bytes   1: a string of n bits
              2: length varint, then a set of that many bytes: the flagged indices, within n (at most 2 such sets inside another)
A number v that escapes from a level of width w goes to the next one as (v >> w) - 1. Run 0 starts at page gap 0, every other at
the forerunner's stop + 1 + its gap; a run holds length + 1 pages. Limits: a set ends within total_pages, or within the n flags of
its plane; no width exceeds the bits of its set's limit - 1; after the count of n runs stand at least n / 4 bytes (the raw form
holds no more runs a byte either); nothing trails; form 0 is never longer than form 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pagefire.protocol.bitmap_raw import Buffer, bitmap_refused, decode_raw, encode_raw, raw_bytes, require_within
from pagefire.protocol.pages import Int64s, PageSet

VERSION = 1

_FORM_SET, _FORM_RAW = 0, 1
_KIND_NONE, _KIND_BITS, _KIND_SET = 0, 1, 2
_MAX_LEVELS = 12
#: How deep a set may lie in planes of sets.
_MAX_DEPTH = 2
_RUNS_PER_BYTE = 4

#: Numbers looked at to choose a width: with four times as many, sets came out within a hundredth and took longer.
_SAMPLE = 256
#: So few numbers are coded on one level at the width of the largest: further levels would cost more time than they save bytes.
_FEW = 32
#: Planes below this many flags stay bits: a set takes 0.2 ms both ways. At 512, a remainder of 1,000 clustered pages took 1.2 ms
#: instead of 0.7, for 28 bytes less (of other remainders up to 110 less).
_SMALL_PLANE = 1024
_WIDTHS = np.arange(64.0)
_POWERS = 2.0**_WIDTHS
_UNIFORM_LOW_BITS = 0.5 / _POWERS - 0.5

_Bools = npt.NDArray[np.bool_]
_Bytes = npt.NDArray[np.uint8]
#: Held in uint32 where every number below the limit fits, for speed, else in uint64.
_Numbers = npt.NDArray[np.unsignedinteger[Any]]


def encode_compacted(pages: PageSet, total_pages: int) -> bytes:
    """Code `pages` of a guest of `total_pages` (below 2**62) in the form that comes out smaller.

    Never longer than the raw form and 10 bytes. Raises LocalProtocolError for a page beyond the guest.
    """
    require_within(pages, total_pages)
    form, coded = _FORM_SET, _encode_set(pages.starts, pages.stops, total_pages, 0)
    if len(coded) > raw_bytes(total_pages):
        form, coded = _FORM_RAW, encode_raw(pages, total_pages)
    return bytes((VERSION, form)) + total_pages.to_bytes(8, "little") + coded


def decode_compacted(buf: Buffer, total_pages: int) -> PageSet:
    """Return the set that `encode_compacted` coded for a guest of `total_pages`; the result keeps nothing of `buf`.

    Raises RemoteProtocolError for everything else. Whatever the bytes, it allocates at most 1 KiB for each of `buf`, which may
    be no longer than the raw form and 10 bytes, and 64 KiB; and takes time in proportion to `buf`. The result holds at most
    four runs for each byte.
    """
    reader = _Reader(memoryview(buf))
    version, form = reader.byte(), reader.byte()
    if version != VERSION:
        raise bitmap_refused(f"its version is {version}, this side reads {VERSION}")
    coded_pages = int.from_bytes(reader.take(8), "little")
    if coded_pages != total_pages:
        raise bitmap_refused(f"it is for a guest of {coded_pages} pages, this one has {total_pages}")
    if reader.left > raw_bytes(total_pages):
        raise bitmap_refused(f"{reader.left} bytes are more than {total_pages} pages need at one bit each")
    if form == _FORM_RAW:
        return decode_raw(reader.take(reader.left), total_pages)
    if form != _FORM_SET:
        raise bitmap_refused(f"its form {form} is unknown")
    return PageSet(*_decode_set(reader, total_pages, 0))


def _encode_set(starts: Int64s, stops: Int64s, limit: int, depth: int) -> bytes:
    runs = starts.size
    if not runs:
        return _varint(0)
    gaps = np.empty(runs, _dtype(limit))
    gaps[0] = starts[0]
    gaps[1:] = starts[1:] - stops[:-1] - 1
    lengths = (stops - starts - 1).astype(gaps.dtype)
    coded = _encode_sequence(gaps, depth) + _encode_sequence(lengths, depth)
    if _RUNS_PER_BYTE * len(coded) < runs:
        # A regular pattern: a few bytes would do, and such few bytes could ask a decoder for any amount of memory.
        coded = _encode_sequence(gaps, depth, plain=True) + _encode_sequence(lengths, depth, plain=True)
    return _varint(runs) + coded


def _encode_sequence(numbers: _Numbers, depth: int, plain: bool = False) -> bytes:
    """Code numbers level by level; `plain` spends a bit on every one of them."""
    coded: list[bytes] = []
    for level in range(_MAX_LEVELS):
        few = numbers.size <= _FEW or level == _MAX_LEVELS - 1
        width = int(numbers.max()).bit_length() if few else _choose_width(numbers)
        escapes = numbers >= 1 << width
        kind, plane = (_KIND_BITS, _bits(escapes)) if plain else _encode_plane(escapes, depth)
        coded += bytes((kind << 6 | width,)), _encode_fields(numbers, width), plane
        numbers = numbers[escapes] if kind != _KIND_NONE else numbers[:0]
        if not numbers.size:
            break
        numbers >>= numbers.dtype.type(width)
        numbers -= numbers.dtype.type(1)
    return b"".join(coded)


def _choose_width(numbers: _Numbers) -> int:
    """Weigh, on a sample, the low bits of every number against what the escaping ones will cost on later levels.

    Few numpy calls: coding 1,000 pages takes it seven times, and each call costs the same half a microsecond on any sample.
    """
    stride = -(-numbers.size // _SAMPLE)
    sample = np.sort(numbers[stride // 2 :: stride])
    top = int(sample[-1]).bit_length()
    if not top:
        return 0
    # Row 0: the numbers; row 1: their logarithms; largest first, so that the sums over those that escape come first.
    rows = np.empty((2, sample.size))
    rows[0] = sample[::-1]
    np.log2(np.maximum(rows[0], 1.0), out=rows[1])
    # Of every width below `top` at least the largest number escapes.
    escaping = sample.size - rows[0, ::-1].searchsorted(_POWERS[:top])
    averages = rows.cumsum(axis=1)[:, escaping - 1] / escaping
    # What is left of an escaping number, on average, and 1: the dropped low bits are taken as uniform.
    left = np.maximum(averages[0] / _POWERS[:top] + _UNIFORM_LOW_BITS[:top], 1.0)
    # In unary; with one more fixed width; and, where a few giants spoil the average, by the average of the logarithms (the
    # factor is fitted: clusters, power laws and mixtures come out smallest with it).
    later = np.minimum(np.minimum(left, np.log2(left) + 1.6), 1.3 * (averages[1] - _WIDTHS[:top]) + 2)
    costs = sample.size * _WIDTHS[:top] + escaping * later
    cheapest = int(costs.argmin())
    level_bits = 16 / stride
    return cheapest if costs[cheapest] + level_bits <= sample.size * top else top


def _encode_plane(flags: _Bools, depth: int) -> tuple[int, bytes]:
    if not flags.any():
        return _KIND_NONE, b""
    if depth < _MAX_DEPTH and flags.size >= _SMALL_PLANE:
        turns = np.flatnonzero(flags[1:] != flags[:-1]) + 1
        if turns.size < flags.size // 4:
            bounds = np.concatenate(([0] * int(flags[0]), turns, [flags.size] * int(flags[-1]))).astype(np.int64)
            coded = _encode_set(bounds[0::2], bounds[1::2], flags.size, depth + 1)
            if len(coded) < flags.size // 8 - 8:
                return _KIND_SET, _varint(len(coded)) + coded
    return _KIND_BITS, _bits(flags)


def _encode_fields(numbers: _Numbers, width: int) -> bytes:
    planes = [(numbers >> shift).astype(np.uint8).tobytes() for shift in range(0, width & ~7, 8)]
    if bits := width & 7:
        # Eight fields fill `bits` bytes, so they are shifted together in one 64-bit word, for all eights at once.
        groups = -(-numbers.size // 8)
        fields = np.zeros((groups, 8), np.uint8)
        fields.reshape(-1)[: numbers.size] = (numbers >> (width & ~7)).astype(np.uint8) & ((1 << bits) - 1)
        words = np.zeros(groups, "<u8")
        for column in range(8):
            words |= fields[:, column].astype(np.uint64) << np.uint64(column * bits)
        packed = words.view(np.uint8).reshape(groups, 8)[:, :bits].reshape(-1)
        planes.append(packed[: -(-numbers.size * bits // 8)].tobytes())
    return b"".join(planes)


def _bits(flags: _Bools) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()


def _varint(number: int) -> bytes:
    coded = bytearray()
    while number > 127:
        coded.append(number & 127 | 128)
        number >>= 7
    coded.append(number)
    return bytes(coded)


def _dtype(limit: int) -> np.dtype[np.unsignedinteger[Any]]:
    return np.dtype(np.uint32 if limit <= 1 << 32 else np.uint64)


class _Reader:
    """A place in bytes that arrived; whoever asks for more than is there gets the refusal."""

    __slots__ = ("_at", "_buf")

    def __init__(self, buf: memoryview) -> None:
        self._buf, self._at = buf, 0

    @property
    def left(self) -> int:
        return len(self._buf) - self._at

    def take(self, size_bytes: int) -> memoryview:
        if size_bytes > self.left:
            raise bitmap_refused(f"it ends {size_bytes - self.left} bytes early")
        self._at += size_bytes
        return self._buf[self._at - size_bytes : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        number = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise bitmap_refused("a number in it is longer than 63 bits")

    def bits(self, size_bits: int) -> _Bytes:
        """Take a string of bits, as bytes; the unused ones must be zero."""
        coded = np.frombuffer(self.take(-(-size_bits // 8)), np.uint8)
        if size_bits % 8 and coded[-1] >> size_bits % 8:
            raise bitmap_refused("unused bits in it are set")
        return coded


def _decode_set(reader: _Reader, limit: int, depth: int) -> tuple[Int64s, Int64s]:
    """Read a set that ends with its reader, within `limit`; both arrays are views of one."""
    runs = reader.varint()
    if runs > _RUNS_PER_BYTE * reader.left:
        raise bitmap_refused(f"{runs} runs do not fit into {reader.left} bytes")
    bounds = np.zeros(2 * runs, np.int64)
    if runs:
        bounds[0::2] = _decode_sequence(reader, runs, limit, depth)
        bounds[2::2] += 1
        bounds[1::2] = _decode_sequence(reader, runs, limit, depth)
        bounds[1::2] += 1
        # The sum is taken in floats first: in integers it might wrap around to something small.
        if bounds.sum(dtype=np.float64) > 2.0 * limit or int(np.cumsum(bounds, out=bounds)[-1]) > limit:
            raise bitmap_refused(f"its runs end beyond {limit}")
    if reader.left:
        raise bitmap_refused(f"{reader.left} bytes trail its last run")
    return bounds[0::2], bounds[1::2]


def _decode_sequence(reader: _Reader, count: int, limit: int, depth: int) -> _Numbers:
    """Read `count` numbers below twice `limit`."""
    upper: list[tuple[_Numbers, _Bools, int]] = []
    while True:
        kind, width = divmod(reader.byte(), 64)
        if width > (limit - 1).bit_length():
            raise bitmap_refused(f"fields of {width} bits are too wide for numbers below {limit}")
        numbers = _decode_fields(reader, count, width, limit)
        escapes = _decode_plane(reader, kind, count, depth)
        count = int(np.count_nonzero(escapes))
        if not count:
            break
        upper.append((numbers, escapes, width))
        if len(upper) == _MAX_LEVELS:
            raise bitmap_refused(f"{count} numbers escape from level {_MAX_LEVELS}")
    while upper:
        below, escapes, width = upper.pop()
        if (int(numbers.max()) + 1) << width >= limit:
            raise bitmap_refused(f"a gap or length in it reaches {limit}")
        numbers += numbers.dtype.type(1)
        numbers <<= numbers.dtype.type(width)
        below[np.flatnonzero(escapes)] += numbers
        numbers = below
    return numbers


def _decode_plane(reader: _Reader, kind: int, size: int, depth: int) -> _Bools:
    if kind == _KIND_NONE:
        return np.zeros(0, np.bool_)
    if kind == _KIND_BITS:
        return np.unpackbits(reader.bits(size), count=size, bitorder="little").view(np.bool_)
    if kind == _KIND_SET and depth < _MAX_DEPTH:
        # Its length comes first, so that what it may allocate is bounded by its own bytes, not by its neighbours' too.
        starts, stops = _decode_set(_Reader(reader.take(reader.varint())), size, depth + 1)
        turns = np.zeros(size + 1, np.int8)
        turns[starts] = 1
        turns[stops] = -1
        return np.cumsum(turns[:-1], dtype=np.int8).view(np.bool_)
    raise bitmap_refused(f"a plane of kind {kind} cannot stand at depth {depth}")


def _decode_fields(reader: _Reader, size: int, width: int, limit: int) -> _Numbers:
    dtype = _dtype(limit)
    numbers = np.zeros(size, dtype)
    for shift in range(0, width & ~7, 8):
        numbers |= np.frombuffer(reader.take(size), np.uint8).astype(dtype) << dtype.type(shift)
    if bits := width & 7:
        coded = reader.bits(size * bits)
        groups = -(-size // 8)
        padded = np.zeros(groups * bits, np.uint8)
        padded[: coded.size] = coded
        spread = np.zeros((groups, 8), np.uint8)
        spread[:, :bits] = padded.reshape(groups, bits)
        words = spread.view("<u8").reshape(groups)
        fields = np.empty((groups, 8), np.uint8)
        for column in range(8):
            fields[:, column] = words >> np.uint64(column * bits) & np.uint64((1 << bits) - 1)
        numbers |= fields.reshape(-1)[:size].astype(dtype) << dtype.type(width & ~7)
    return numbers
