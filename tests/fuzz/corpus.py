"""The inputs that are kept, and new ones made of them by chance, for where nothing guides by coverage.

`corpus/TARGET/` holds what reached something new in the core, each file named by the SHA-1 of its contents. A file that failed once
goes there as well and is replayed by every `make test` from then on.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from tests.fuzz.limits import INPUT_BYTES

#: Target -> its share of the inputs: the slower, the fewer.
SHARES = {
    "frame_decoder": 5,
    "message_bodies": 6,
    "bitmap_forms": 3,
    "conversations": 5,
    "switchover_payload": 1,
    "compressed_pages": 2,
}
TARGETS = tuple(SHARES)
CORPUS = Path(__file__).parent / "corpus"

#: Bytes at which lengths, widths and kinds turn.
_EDGES = bytes((0, 1, 7, 8, 63, 64, 127, 128, 254, 255))


def target(name: str) -> ModuleType:
    """Import a target; late, because what it imports of the core has to be instrumented on the way."""
    return importlib.import_module(f"tests.fuzz.{name}")


def kept(name: str) -> list[bytes]:
    """Read the kept inputs of a target, the known cases first."""
    return [*target(name).seeds(), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]


def mutations(inputs: list[bytes], seed: int) -> Iterator[bytes]:
    """Make inputs of these for ever, the same for the same seed."""
    chance = random.Random(seed)
    while True:
        made = bytearray(chance.choice(inputs))
        for _ in range(chance.randint(1, 6)):
            chance.choice(_CHANGES)(chance, made, inputs)
        yield bytes(made[:INPUT_BYTES])


def _flip(chance: random.Random, made: bytearray, inputs: list[bytes]) -> None:
    if made:
        made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)


def _replace(chance: random.Random, made: bytearray, inputs: list[bytes]) -> None:
    if made:
        made[chance.randrange(len(made))] = chance.choice(_EDGES) if chance.random() < 0.5 else chance.randrange(256)


def _insert(chance: random.Random, made: bytearray, inputs: list[bytes]) -> None:
    at = chance.randint(0, len(made))
    made[at:at] = chance.randbytes(chance.randint(1, 8))


def _remove(chance: random.Random, made: bytearray, inputs: list[bytes]) -> None:
    at = chance.randint(0, len(made))
    del made[at : at + chance.randint(1, 16)]


def _splice(chance: random.Random, made: bytearray, inputs: list[bytes]) -> None:
    """Go on with the end of another input, or put a piece of it in."""
    other, at = chance.choice(inputs), chance.randint(0, len(made))
    first = chance.randint(0, len(other))
    if chance.random() < 0.5:
        made[at:] = other[first:]
    else:
        made[at:at] = other[first : first + chance.randint(1, 64)]


_CHANGES: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _flip,
    _replace,
    _replace,
    _insert,
    _remove,
    _splice,
)
