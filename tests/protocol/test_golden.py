"""The golden bytes guard every field: each takes every form in some example, and no other value of it has the same bytes."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

import pytest

from pagefire.protocol import messages as m
from pagefire.protocol.frames import encode_head
from pagefire.protocol.pages import PageSet
from tests.protocol.golden.examples import EXAMPLES, FRAMES

FIELDS = [(c, field.name) for c in m.CLASSES.values() for field in dataclasses.fields(c)]
every_field = pytest.mark.parametrize(
    ("message_class", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part)
)
every_example = pytest.mark.parametrize("example", EXAMPLES)
GOLDEN = {name: bytes.fromhex(frame) for name, frame in json.loads(FRAMES.read_text()).items()}


def another(annotation: Any, value: Any) -> Any:
    """Give another value that a field of this annotation may have."""
    if typing.get_origin(annotation) is types.UnionType:
        return next(part for part in typing.get_args(annotation) if part is not type(None))() if value is None else None
    if typing.get_origin(annotation) is list:
        return [*value, typing.get_args(annotation)[0]()]
    if annotation is PageSet:
        return value | PageSet.span(1 << 40, (1 << 40) + 1)
    if annotation is bool:
        return not value
    if annotation is int:
        return value - 1 if value else 1  # one is the largest that there is
    return value + {float: 0.5, str: "x", bytes: b"x"}[annotation]


@every_example
def test_any_other_value_of_any_field_has_other_bytes(example: str) -> None:
    message, payload_bytes = EXAMPLES[example]
    hints = typing.get_type_hints(type(message))
    for field in dataclasses.fields(message):
        other = dataclasses.replace(message, **{field.name: another(hints[field.name], getattr(message, field.name))})
        assert other != message
        assert encode_head(other.kind, m.encode(other), payload_bytes) != GOLDEN[example], field.name


@every_example
def test_another_kind_or_payload_has_other_bytes(example: str) -> None:
    message, payload_bytes = EXAMPLES[example]
    body = m.encode(message)
    assert encode_head(message.kind + 1, body, payload_bytes) != GOLDEN[example]
    assert encode_head(message.kind, body, payload_bytes + 1) != GOLDEN[example]


@every_example
def test_another_name_order_or_type_of_a_field_has_other_bytes(example: str) -> None:
    """Renamed, turned from a whole number to a fraction or moved: a second implementation reads these very bytes."""
    message, _ = EXAMPLES[example]
    fields = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    for name, value in fields.items():
        renamed = dataclasses.make_dataclass("Other", [f"{other}_" if other == name else other for other in fields])
        assert m.encode(renamed(*fields.values())) not in GOLDEN[example]
        if type(value) is int:
            retyped = dataclasses.make_dataclass("Other", list(fields))(**fields | {name: float(value)})
            assert m.encode(retyped) not in GOLDEN[example]
    if len(fields) > 1:
        turned = dataclasses.make_dataclass("Other", list(fields)[::-1])(*list(fields.values())[::-1])
        assert m.encode(turned) not in GOLDEN[example]
    assert m.encode(message) in GOLDEN[example]


@every_field
def test_a_field_takes_every_form(message_class: type[m.Message], name: str) -> None:
    """Zero, nothing and the empty hide how a value is written: some example has another one, and one where it may be nil, nil."""
    values = [getattr(message, name) for message, _ in EXAMPLES.values() if type(message) is message_class]
    assert any(values), f"no example of {message_class.__name__} gives {name} a value: add one to golden/examples.py"
    if type(None) in typing.get_args(typing.get_type_hints(message_class)[name]):
        assert None in values, (
            f"no example of {message_class.__name__} leaves {name} out: add one to golden/examples.py"
        )
