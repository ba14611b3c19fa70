"""The kept inputs and thousands of new ones pass every target, and each target notices what it is there for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from pagefire.protocol import bitmap_compacted, codecs, connection, messages
from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.frames import FrameDecoder, FrameHead
from pagefire.protocol.state import CONTROL, STREAMS, Phase, Role
from tests.fuzz import limits
from tests.fuzz.corpus import CORPUS, SHARES, TARGETS, kept, mutations, target
from tests.fuzz.limits import INPUT_BYTES, MemoryWithin, cpu_s
from tests.fuzz.places import PLACES

#: New inputs in all; `make fuzz` runs ten times as many, guided by coverage.
INPUTS = 100_000

every_target = pytest.mark.parametrize("name", TARGETS)


@every_target
def test_the_kept_inputs(name: str) -> None:
    for given in kept(name):
        cpu_s(target(name).one_input, given)


@pytest.mark.fuzz
@every_target
def test_new_inputs(name: str, record_property: Callable[[str, object], None]) -> None:
    count = INPUTS * SHARES[name] // sum(SHARES.values())
    for number, given in enumerate(islice(mutations(kept(name), seed=1), count)):
        try:
            cpu_s(target(name).one_input, given)
        except Exception as error:
            raise AssertionError(f"{name} failed on input {number}: bytes.fromhex({given.hex()!r})") from error
    record_property("inputs", count)
    record_property("largest_share_of_memory_limit", MemoryWithin.peak_share)


@every_target
def test_the_corpus_is_small_and_named_by_its_contents(name: str) -> None:
    files = list((CORPUS / name).iterdir())
    assert files
    assert sum(path.stat().st_size for path in files) < 60_000
    for path in files:
        given = path.read_bytes()
        assert len(given) <= INPUT_BYTES
        assert path.name == hashlib.sha1(given).hexdigest()[:16]


def test_every_target_has_a_corpus_and_a_share() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS) == set(SHARES)


def test_every_place_of_the_tables_is_fuzzed() -> None:
    """Roles, phases and messages are found, not listed: what is added to the tables is fuzzed, or it fails here."""
    found = {(place.role, place.phase) for place in PLACES}
    assert {phase for _, phase in found} == set(Phase) >= {phase for phase, _ in CONTROL}
    assert {role for role, _ in found} == set(Role)
    for role, _ in STREAMS:
        assert (role, Phase.ACTIVE) in found
    # A decision is one byte.
    assert max(len(PLACES), len(messages.CLASSES)) <= 256


# -- what each target is there for -------------------------------------------------------------------------------------


def _cut_dependent(feed: Callable[..., FrameHead | None]) -> Callable[..., FrameHead | None]:
    """A decoder that believes the last byte of a piece twice, unless it stands alone."""

    def wrong(decoder: FrameDecoder, received: bytes) -> FrameHead | None:
        head = feed(decoder, received)
        return (
            FrameHead(head.kind, head.body + received[-1:], head.payload_bytes) if head and len(received) > 1 else head
        )

    return wrong


def _forgetful(receive: Callable[..., Arrival | None]) -> Callable[..., Arrival | None]:
    def wrong(end: Connection, received: bytes) -> Arrival | None:
        if end._refused is not None:
            end._refused, end._decoder = None, FrameDecoder()
        return receive(end, received)

    return wrong


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "wrong"),
    [
        pytest.param("frame_decoder", FrameDecoder, "feed", _cut_dependent(FrameDecoder.feed), id="cuts matter"),
        pytest.param("message_bodies", messages, "_each_once", dict, id="a field twice"),
        pytest.param("bitmap_forms", bitmap_compacted, "_RUNS_PER_BYTE", 1 << 20, id="runs without bytes"),
        pytest.param(
            "conversations", Connection, "receive", _forgetful(Connection.receive), id="believes after an error"
        ),
        pytest.param("conversations", connection, "_check_size", lambda *_: None, id="sizes unchecked"),
        pytest.param("compressed_pages", codecs, "_whole", lambda name, contents, size: contents, id="another size"),
        pytest.param("compressed_pages", connection, "_check_size", lambda *_: None, id="not smaller"),
        pytest.param("switchover_payload", connection, "_check_size", lambda *_: None, id="parts beyond the payload"),
    ],
)
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, name: str, owner: Any, attribute: str, wrong: Any) -> None:
    inputs = [*kept(name), *islice(mutations(kept(name), seed=1), 2000)]
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        _run_all(name, inputs)


def _run_all(name: str, inputs: list[bytes]) -> None:
    for given in inputs:
        target(name).one_input(given)


def test_too_much_memory_and_time_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="bytes of memory"), MemoryWithin(1000):
        bytearray(2000)
    monkeypatch.setattr(limits, "SLOW_S", 0.0)
    with pytest.raises(AssertionError, match="s for an input of 3 bytes"):
        cpu_s(lambda given: None, b"abc")
