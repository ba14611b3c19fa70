"""The compacted bitmap's layout, as `bitmap_compacted` describes it, read one number at a time with integers only."""

from __future__ import annotations

from collections.abc import Iterator

#: Version, form, total_pages.
HEADER_BYTES = 10


class SecondDecoder:
    def __init__(self, coded: bytes) -> None:
        self.rest = coded

    def take(self, size: int) -> bytes:
        taken, self.rest = self.rest[:size], self.rest[size:]
        assert len(taken) == size
        return taken

    def varint(self) -> int:
        byte = self.take(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def string(self, size: int, width: int) -> list[int]:
        bits = int.from_bytes(self.take(-(-size * width // 8)), "little")
        return [bits >> i * width & (1 << width) - 1 for i in range(size)]

    def sequence(self, size: int) -> list[int]:
        kind, width = divmod(self.take(1)[0], 64)
        planes = [self.take(size) for _ in range(width // 8)]
        low = [sum(plane[i] << 8 * shift for shift, plane in enumerate(planes)) for i in range(size)]
        top = self.string(size, width % 8)
        numbers = [low[i] | top[i] << width // 8 * 8 for i in range(size)]
        flagged: list[int] = []
        if kind == 1:
            flagged = [i for i, flag in enumerate(self.string(size, 1)) if flag]
        elif kind == 2:
            flagged = [i for run in SecondDecoder(self.take(self.varint())).runs() for i in range(*run)]
        if flagged:
            for i, number in zip(flagged, self.sequence(len(flagged)), strict=True):
                numbers[i] += number + 1 << width
        return numbers

    def runs(self) -> Iterator[tuple[int, int]]:
        runs = self.varint()
        gaps, lengths = (self.sequence(runs), self.sequence(runs)) if runs else ([], [])
        assert not self.rest
        stop = -1
        for gap, length in zip(gaps, lengths, strict=True):
            start = stop + 1 + gap
            stop = start + length + 1
            yield start, stop


def second_opinion(coded: bytes) -> list[tuple[int, int]]:
    assert coded[:2] == b"\1\0"
    return list(SecondDecoder(coded[HEADER_BYTES:]).runs())
