"""Target: a body of any kind is refused, or is a message that goes out and comes in again as it was."""

from __future__ import annotations

import dataclasses

import msgpack

from pagefire.protocol import messages as m
from pagefire.protocol.errors import RemoteProtocolError
from tests.fuzz.choices import Choices
from tests.fuzz.grammar import CLASSES, body
from tests.fuzz.limits import BODY_FACTOR, FIXED_BYTES, MemoryWithin
from tests.protocol.golden.examples import EXAMPLES


def one_input(given: bytes) -> None:
    choices = Choices(given)
    if choices.below(2):
        message_class = choices.one_of(CLASSES)
        kind, coded = message_class.kind, body(choices, message_class)
    else:
        kind, coded = choices.below(256), choices.rest()
    with MemoryWithin(BODY_FACTOR * len(coded) + FIXED_BYTES):
        try:
            message = m.decode(kind, coded)
        except RemoteProtocolError:
            return
    assert type(message) is m.CLASSES[kind]
    assert m.decode(kind, m.encode(message)) == message
    # Each field is there, once: a receiver that took the last of two and one that took the first would read two messages.
    names = [name for name, _ in msgpack.unpackb(coded, object_pairs_hook=list)]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(message)), names


def seeds() -> list[bytes]:
    raw = [bytes((0, message.kind)) + m.encode(message) for message, _ in EXAMPLES.values()]
    return raw + [bytes((1, index, 0, 0)) for index in range(len(CLASSES))]
