"""Bodies of messages as a peer could send them: right, slightly wrong and wild, for every class and field that there is.

Everything follows from the annotations and the golden examples, so a new message is fuzzed without a word here.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from pagefire.protocol import messages as m
from pagefire.protocol.frames import MAX_BODY_BYTES
from pagefire.protocol.pages import PageSet
from tests.fuzz.choices import Choices, damage
from tests.protocol.golden.examples import EXAMPLES

CLASSES = list(m.CLASSES.values())
_LIMITS = sorted({1, *(value for name, value in vars(m).items() if name.startswith("MAX_"))})
_HINTS = {message_class: typing.get_type_hints(message_class) for message_class in CLASSES}
_EXAMPLES: dict[type[m.Message], list[m.Message]] = {}
for _message, _ in EXAMPLES.values():
    _EXAMPLES.setdefault(type(_message), []).append(_message)


def body(choices: Choices, message_class: type[m.Message]) -> bytes:
    """Make a body of an example of this class, changed in none, one or more ways."""
    coded = m.encode(choices.one_of(_EXAMPLES[message_class]))
    for _ in range(choices.below(4)):
        match choices.below(3):
            case 0:
                coded = _with_other_fields(choices, message_class, coded)
            case 1:
                coded = damage(choices, coded)
            case _:
                coded = choices.take(choices.below(256))
    return coded[:MAX_BODY_BYTES]  # more is refused by its header: no frame of it can be made here


def _with_other_fields(choices: Choices, message_class: type[m.Message], coded: bytes) -> bytes:
    """Change one field: to another value, to one of another type, or leave it out, double it, put another beside it."""
    try:
        pairs = msgpack.unpackb(coded, object_pairs_hook=list)
    except (ValueError, msgpack.UnpackException):
        return coded
    if type(pairs) is not list or not pairs or not all(type(pair) is tuple for pair in pairs):
        return msgpack.packb(_strange(choices, 2)) or b""
    at = choices.below(len(pairs))
    name = pairs[at][0]
    match choices.below(6):
        case 0 | 1:
            pairs[at] = name, _value(choices, _HINTS[message_class].get(name, int))
        case 2:
            pairs[at] = name, _strange(choices, 2)
        case 3:
            del pairs[at]
        case 4:
            pairs.append(pairs[at])
        case _:
            pairs.append((_strange(choices, 0), _strange(choices, 2)))
    packed: bytes = msgpack.Packer().pack_map_pairs(pairs)
    return packed


def _value(choices: Choices, annotation: Any) -> Any:
    """Choose what a field of this annotation may hold by its type, if not by every rule."""
    if typing.get_origin(annotation) is list:
        return [_value(choices, typing.get_args(annotation)[0]) for _ in range(choices.below(5))]
    if typing.get_origin(annotation) is types.UnionType:
        return _value(choices, choices.one_of(typing.get_args(annotation)))
    if annotation is PageSet:
        return _page_set(choices)
    if annotation is int:
        return choices.number() - choices.below(2) if choices.below(4) else _near(choices, _LIMITS)
    if annotation is float:
        return choices.fraction()
    if annotation is bool:
        return bool(choices.below(2))
    text = choices.take(choices.below(32))
    return text.decode("latin-1") if annotation is str else text if annotation is bytes else None


def _page_set(choices: Choices) -> list[bytes]:
    """Code a set of pages, at or beside a limit of pages or of runs; or words that are none."""
    match choices.below(5):
        case 0:
            starts, counts = np.array([choices.number()], np.uint64), np.array([_near(choices, _LIMITS)], np.uint64)
        case 1:
            runs = _near(choices, _LIMITS[: _LIMITS.index(m.MAX_FRAME_RUNS) + 1])
            starts, counts = 2 * np.arange(runs, dtype=np.uint64), np.ones(runs, np.uint64)
        case 2:
            steps = np.array([1 + choices.below(4) for _ in range(2 * choices.below(16))], np.uint64)
            edges = np.cumsum(steps, dtype=np.uint64) + np.uint64(choices.number() >> 12)
            starts, counts = edges[::2], steps[1::2]
        case 3:
            # A body's worth of runs: dear, so a case by itself.
            runs = _near(choices, [m.MAX_EXTENT_RUNS])
            starts, counts = 2 * np.arange(runs, dtype=np.uint64), np.ones(runs, np.uint64)
        case _:
            return [choices.take(8 * choices.below(5)), choices.take(8 * choices.below(5) + choices.below(2))]
    return [starts.astype("<u8").tobytes(), counts.astype("<u8").tobytes()]


def _near(choices: Choices, limits: Sequence[int]) -> int:
    return choices.one_of(limits) + choices.below(3) - 1


def _strange(choices: Choices, depth: int) -> Any:
    """Choose anything that msgpack can say."""
    match choices.below(12 if depth else 9):
        case 0:
            return None
        case 1:
            return bool(choices.below(2))
        case 2:
            return choices.number()
        case 3:
            return -(choices.number() >> 1)
        case 4:
            return choices.fraction()
        case 5:
            return choices.take(choices.below(16)).decode("latin-1")
        case 6:
            return choices.take(choices.below(16))
        case 7:
            return msgpack.ExtType(choices.below(128), choices.take(choices.below(16)))
        case 8:
            return msgpack.Timestamp(choices.below(256))
        case 9:
            return [_strange(choices, depth - 1) for _ in range(choices.below(5))]
        case 10:
            return {str(_strange(choices, 0)): _strange(choices, depth - 1) for _ in range(choices.below(5))}
        case _:
            return [None] * (256 * choices.below(16))
