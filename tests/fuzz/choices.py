"""Decisions read from bytes, so that any bytes are a case and a small change of them is a small change of the case."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """The bytes of one input, taken from the front; when they are used up every decision is the first one."""

    def __init__(self, given: bytes) -> None:
        self._given, self._at = given, 0

    @property
    def left(self) -> int:
        return len(self._given) - self._at

    def take(self, size_bytes: int) -> bytes:
        """Take at most so many bytes as they are."""
        taken = self._given[self._at : self._at + size_bytes]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(self.left)

    def below(self, limit: int) -> int:
        """Choose from 0 to `limit` - 1, of which a single byte reaches the first 256."""
        return int.from_bytes(self.take(1), "little") % limit

    def one_of(self, given: Sequence[T]) -> T:
        return given[self.below(len(given))]

    def number(self) -> int:
        """Choose a number of any scale up to 64 bits."""
        bits = self.below(65)
        return int.from_bytes(self.take(-(-bits // 8)), "little") & ((1 << bits) - 1)

    def fraction(self) -> float:
        """Choose any float, those that are no numbers among them."""
        (value,) = struct.unpack("<d", self.take(8).ljust(8, b"\0"))
        return float(value)


def damage(choices: Choices, coded: bytes) -> bytes:
    """Break bytes in one place: a bit, a byte, a piece left out, doubled, put in or cut off."""
    at = int.from_bytes(choices.take(2), "little") % (len(coded) + 1)
    before, after = coded[:at], coded[at:]
    match choices.below(6):
        case 0:
            return before + bytes((after[0] ^ 1 << choices.below(8),)) + after[1:] if after else before
        case 1:
            return before + choices.take(1) + after[1:]
        case 2:
            return before + after[1 + choices.below(16) :]
        case 3:
            return before + after[: 1 + choices.below(64)] + after
        case 4:
            return before + choices.take(1 + choices.below(16)) + after
        case _:
            return before
