"""Messages: there and back, the very bytes, and what hostile bodies cannot do."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc
import types
import typing
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.protocol import messages as m
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.frames import HEADER_BYTES, MAX_BODY_BYTES, encode_head
from pagefire.protocol.pages import PageSet
from tests.protocol.golden.examples import BY_CLASS, EXAMPLES, FRAMES, WRITE_VARIABLE

CLASSES = list(m.CLASSES.values())
PAGES_KIND = m.Pages.kind

every_message = pytest.mark.parametrize("message_class", CLASSES, ids=lambda c: str(c.__name__))


@st.composite
def page_sets(draw: st.DrawFn) -> PageSet:
    steps = draw(st.lists(st.integers(1, 3) | st.integers(1, 1 << 40), max_size=40))
    edges = np.cumsum(np.array(steps[: len(steps) & ~1], np.int64)) - draw(st.integers(0, 1))
    return PageSet(edges[::2], edges[1::2])


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Everything that a field of this annotation may hold."""
    if typing.get_origin(annotation) is list:
        return st.lists(values(typing.get_args(annotation)[0]), max_size=8)
    if typing.get_origin(annotation) is types.UnionType:
        return st.one_of([values(part) for part in typing.get_args(annotation)])
    return {
        int: st.integers(-1, (1 << 64) - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=40),
        bytes: st.binary(max_size=40),
        bool: st.booleans(),
        PageSet: page_sets(),
        type(None): st.none(),
    }[annotation]


def messages(message_class: type[m.Message]) -> st.SearchStrategy[m.Message]:
    hints = typing.get_type_hints(message_class)
    return st.builds(message_class, **{f.name: values(hints[f.name]) for f in dataclasses.fields(message_class)})


@every_message
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_there_and_back(message_class: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(messages(message_class))
    assert m.decode(message_class.kind, m.encode(message)) == message


def test_every_kind_is_one_class_and_one_byte() -> None:
    kinds = [c.kind for c in CLASSES]
    assert len(set(kinds)) == len(kinds)
    assert all(0 < kind < 256 for kind in kinds)


def test_golden_bytes() -> None:
    """An unintended change of the wire format fails here; see golden/examples.py for one that is meant."""
    written = {
        name: encode_head(message.kind, m.encode(message), payload_bytes).hex()
        for name, (message, payload_bytes) in EXAMPLES.items()
    }
    if os.environ.get(WRITE_VARIABLE):
        FRAMES.write_text(json.dumps(written, indent=1) + "\n")
    golden = json.loads(FRAMES.read_text())
    assert written == golden
    for name, (message, _) in EXAMPLES.items():
        frame = bytes.fromhex(golden[name])
        assert m.decode(frame[4], frame[HEADER_BYTES:]) == message


def test_every_message_has_golden_bytes() -> None:
    assert set(BY_CLASS) == set(CLASSES)


def test_page_sets_are_pairs_of_little_endian_words() -> None:
    body = m.encode(m.Fetch(PageSet((1, 0x0102), (3, 0x0103))))
    words = bytes.fromhex("0100000000000000 0201000000000000 0200000000000000 0100000000000000")
    assert body == b"\x81\xa5pages\x92\xc4\x10" + words[:16] + b"\xc4\x10" + words[16:]


# -- hostile bodies ----------------------------------------------------------------------------------------------------


def refused(kind: int, body: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as error:
        m.decode(kind, body)
    return str(error.value)


def fields_of(message_class: type[m.Message]) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(m.encode(BY_CLASS[message_class][0]))
    return fields


WRONG: list[Any] = [None, True, 7, 7.0, "7", b"7", [], ["7"], [None], [[]], {}, {"a": 1}]


@every_message
def test_values_of_another_type(message_class: type[m.Message]) -> None:
    fields, hints = fields_of(message_class), typing.get_type_hints(message_class)
    for name in fields:
        for wrong in WRONG:
            if _fits(hints[name], wrong):
                continue
            assert message_class.__name__ in refused(message_class.kind, msgpack.packb(fields | {name: wrong}))


def _fits(annotation: Any, value: Any) -> bool:
    if typing.get_origin(annotation) is list:
        item = typing.get_args(annotation)[0]
        return type(value) is list and all(_fits(item, each) for each in value)
    if typing.get_origin(annotation) is types.UnionType:
        return any(_fits(part, value) for part in typing.get_args(annotation))
    return type(value) is annotation


@every_message
def test_missing_and_extra_fields(message_class: type[m.Message]) -> None:
    fields = fields_of(message_class)
    for name in fields:
        assert "fields" in refused(message_class.kind, msgpack.packb({k: v for k, v in fields.items() if k != name}))
    assert "fields" in refused(message_class.kind, msgpack.packb(fields | {"more": 1}))
    assert "fields" in refused(message_class.kind, msgpack.packb(list(fields.values())))


@every_message
def test_a_field_that_comes_twice(message_class: type[m.Message]) -> None:
    pairs = list(fields_of(message_class).items())
    for name, value in pairs:
        for other in (value, None):
            assert "twice" in refused(message_class.kind, msgpack.Packer().pack_map_pairs([*pairs, (name, other)]))


@every_message
def test_cut_and_trailing_bytes(message_class: type[m.Message]) -> None:
    body = m.encode(BY_CLASS[message_class][0])
    for cut in range(len(body)):
        refused(message_class.kind, body[:cut])
    refused(message_class.kind, body + b"\xc0")


@pytest.mark.parametrize("value", [-2, 1 << 63, (1 << 64) - 1])
def test_whole_numbers_are_minus_one_or_fit_64_bits(value: int) -> None:
    body = msgpack.packb({"round": value})
    if value < -1:
        assert "out of range" in refused(m.RoundEnd.kind, body)
    else:
        assert m.decode(m.RoundEnd.kind, body) == m.RoundEnd(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_fractions_are_finite(value: float) -> None:
    """A report is JSON, which has no such numbers, and a time that is not one would pass every limit."""
    assert "no number" in refused(m.Ready.kind, msgpack.packb({"decode_s": value, "drain_s": 0.0, "install_s": 1.0}))


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param([b"", bytes(8)], id="more counts than starts"),
        pytest.param([bytes(7), bytes(7)], id="no whole words"),
        pytest.param([b"", b"", b""], id="three"),
        pytest.param(["", ""], id="text"),
        pytest.param([np.array([5, 3], "<u8").tobytes(), np.array([1, 1], "<u8").tobytes()], id="descending"),
        pytest.param([np.array([3, 4], "<u8").tobytes(), np.array([2, 1], "<u8").tobytes()], id="overlapping"),
        pytest.param([np.array([3, 4], "<u8").tobytes(), np.array([1, 1], "<u8").tobytes()], id="touching"),
        pytest.param([np.array([3], "<u8").tobytes(), np.array([0], "<u8").tobytes()], id="empty run"),
        pytest.param([np.array([1 << 63], "<u8").tobytes(), np.array([1], "<u8").tobytes()], id="negative as signed"),
        pytest.param([np.array([1], "<u8").tobytes(), np.array([1 << 52], "<u8").tobytes()], id="beyond 2^52"),
        pytest.param([np.array([1], "<u8").tobytes(), np.array([(1 << 64) - 1], "<u8").tobytes()], id="wraps around"),
    ],
)
def test_page_sets_that_are_none(pair: list[Any]) -> None:
    assert "broken Pages" in refused(PAGES_KIND, msgpack.packb({"pages": pair}))


def test_unknown_kinds() -> None:
    for kind in set(range(256)) - {c.kind for c in CLASSES}:
        assert f"kind {kind}" in refused(kind, b"\x80")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CLASSES), st.binary(max_size=200))
def test_random_bytes(message_class: type[m.Message], body: bytes) -> None:
    _decode_or_refuse(message_class.kind, body)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CLASSES), st.data())
def test_a_flipped_byte(message_class: type[m.Message], data: st.DataObject) -> None:
    body = bytearray(m.encode(BY_CLASS[message_class][0]))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    _decode_or_refuse(message_class.kind, bytes(body))


_nested = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([c for c in CLASSES if dataclasses.fields(c)]), st.data())
def test_any_structure_in_a_field(message_class: type[m.Message], data: st.DataObject) -> None:
    fields = fields_of(message_class)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_nested)
    _decode_or_refuse(message_class.kind, msgpack.packb(fields))


def _decode_or_refuse(kind: int, body: bytes) -> None:
    """Whatever is decoded is a message that encodes again to what decodes to it."""
    try:
        message = m.decode(kind, body)
    except RemoteProtocolError:
        return
    assert m.decode(kind, m.encode(message)) == message


#: A thirty-second part of what a body may be: what it unpacks to grows with it.
_BODY_BYTES = MAX_BODY_BYTES // 32
_ROOM = _BODY_BYTES - 5


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xdd\xff\xff\xff\xff", id="list of 4 thousand million"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="map of 4 thousand million"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="4 GiB of bytes"),
        pytest.param(b"\x91" * _BODY_BYTES, id="lists in lists"),
        pytest.param(b"\x81\xa0" * (_BODY_BYTES // 2), id="maps in maps"),
        pytest.param(b"\xdd" + _ROOM.to_bytes(4, "big") + b"\x90" * _ROOM, id="many lists"),
        pytest.param(b"\xdd" + _ROOM.to_bytes(4, "big") + b"\x80" * _ROOM, id="many maps"),
        pytest.param(b"\xdd" + (_ROOM // 2).to_bytes(4, "big") + b"\x91\xc0" * (_ROOM // 2), id="lists of one"),
        pytest.param(b"\xdd" + (_ROOM // 3).to_bytes(4, "big") + b"\x81\xa0\xc0" * (_ROOM // 3), id="maps of one"),
        pytest.param(b"\xdd" + (_ROOM // 9).to_bytes(4, "big") + (b"\xcf" + b"\x7f" * 8) * (_ROOM // 9), id="numbers"),
    ],
)
def test_memory_is_bounded(body: bytes) -> None:
    assert len(body) <= _BODY_BYTES
    tracemalloc.start()
    try:
        refused(PAGES_KIND, body)
        assert tracemalloc.get_traced_memory()[1] < 80 * _BODY_BYTES
    finally:
        tracemalloc.stop()
