"""The phase table: every message of every side in every phase, the commit point, and that the specification says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pagefire.protocol
from pagefire.protocol import messages as m
from pagefire.protocol.errors import LocalProtocolError, RemoteProtocolError
from pagefire.protocol.state import (
    AFTER_WELCOME,
    CONTROL,
    MAY_BE_LONG,
    MAY_FAIL,
    STREAMS,
    WITH_PAYLOAD,
    Phase,
    Role,
    Side,
)
from tests.protocol.golden.conversation import Pair, example, role_towards

CLASSES = list(m.CLASSES.values())
SOURCE, DESTINATION = Side.SOURCE, Side.DESTINATION
README = (Path(pagefire.protocol.__file__).parent / "README.md").read_text()

#: Where the guest is the source's.
BEFORE_COMMIT = MAY_FAIL | {Phase.READY}

both_sides = pytest.mark.parametrize("sender", Side, ids=lambda side: str(side.value))


@both_sides
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: str(phase.value))
def test_control(phase: Phase, sender: Side) -> None:
    for message_class in CLASSES:
        message, payload_bytes = example(message_class, role_towards(phase))
        following = CONTROL.get((phase, sender), {}).get(message_class)
        if following is not None:
            pair = Pair.at(phase)
            pair.pass_on(sender, message, payload_bytes)
            assert pair.phases == {following}
            continue
        why = f"not by the {sender.value} in phase {phase.value}"
        with pytest.raises(LocalProtocolError, match=why):
            Pair.at(phase).ends[sender].send(message, payload_bytes)
        with pytest.raises(RemoteProtocolError, match=why):
            Pair.at(phase).force(sender.peer, message, payload_bytes)


@both_sides
@pytest.mark.parametrize("role", [Role.PAGES, Role.FAULT], ids=lambda role: str(role.value))
def test_streams(role: Role, sender: Side) -> None:
    for message_class in CLASSES:
        message, payload_bytes = example(message_class, role)
        if message_class in STREAMS[role, sender]:
            pair = Pair.streaming(role)
            pair.pass_on(sender, message, payload_bytes)
            assert pair.phases == {Phase.ACTIVE}
        elif message_class is not m.Failure:
            with pytest.raises(LocalProtocolError, match=f"not by the {sender.value}"):
                Pair.streaming(role).ends[sender].send(message, payload_bytes)
            with pytest.raises(RemoteProtocolError, match=f"not by the {sender.value}"):
                Pair.streaming(role).force(sender.peer, message, payload_bytes)


@both_sides
@pytest.mark.parametrize("role", [Role.PAGES, Role.FAULT], ids=lambda role: str(role.value))
def test_nothing_follows_a_failure_on_a_stream(role: Role, sender: Side) -> None:
    for message_class in CLASSES:
        message, payload_bytes = example(message_class, role)
        pair = Pair.streaming(role)
        pair.pass_on(sender, *example(m.Failure))
        assert pair.phases == {Phase.OVER}
        with pytest.raises(LocalProtocolError):
            pair.ends[sender].send(message, payload_bytes)
        with pytest.raises(RemoteProtocolError):
            pair.force(sender.peer, message, payload_bytes)


# -- the commit point --------------------------------------------------------------------------------------------------


def test_handover_is_the_only_way_across_the_commit_point() -> None:
    crossing = {
        (phase, sender, message_class)
        for (phase, sender), allowed in CONTROL.items()
        for message_class, following in allowed.items()
        if phase in BEFORE_COMMIT and following not in BEFORE_COMMIT | {Phase.OVER}
    }
    assert crossing == {(Phase.READY, SOURCE, m.Handover), (Phase.READY, DESTINATION, m.Fenced)}


def test_there_is_no_way_back_across_the_commit_point() -> None:
    after = set(Phase) - BEFORE_COMMIT
    assert {f for (phase, _), allowed in CONTROL.items() if phase in after for f in allowed.values()} <= after


def test_failure_ends_a_migration_before_the_commit_point_only() -> None:
    may_fail = {place for place, allowed in CONTROL.items() if m.Failure in allowed}
    assert may_fail == {(phase, side) for phase in MAY_FAIL for side in Side} | {
        (Phase.READY, SOURCE),
        # What it sent before it heard that the session is fenced.
        (Phase.SETTLED, SOURCE),
        # Of a session of which nothing is known.
        (Phase.ASKED, DESTINATION),
    }
    assert all(CONTROL[place][m.Failure] is Phase.OVER for place in may_fail)


def test_a_fenced_answer_that_crosses_handover_is_heard_and_noted() -> None:
    pair = Pair.at(Phase.READY)
    fenced, _ = example(m.Fenced)
    handover = pair.ends[SOURCE].send(m.Handover())
    refusal = pair.ends[DESTINATION].send(fenced)
    assert pair.deliver(SOURCE, refusal).message == fenced
    assert pair.deliver(DESTINATION, handover).message == m.Handover()
    assert pair.phases == {Phase.SETTLED}
    pair.pass_on(SOURCE, m.Noted())
    assert pair.phases == {Phase.OVER}


def test_a_recovery_begins_where_a_migration_is_past_its_commit_point() -> None:
    pair = Pair.at(Phase.ASKED)
    pair.pass_on(DESTINATION, *example(m.Taken))
    assert pair.phases == {Phase.POSTCOPY}


def test_every_phase_can_be_left_and_reached() -> None:
    reached = {following for allowed in CONTROL.values() for following in allowed.values()}
    assert reached | set(AFTER_WELCOME.values()) | {Phase.GREETING} == set(Phase)
    assert {phase for phase, _ in CONTROL} == set(Phase) - {Phase.OVER}


# -- the specification -------------------------------------------------------------------------------------------------


def table_below(heading: str) -> list[list[str]]:
    """Give the cells of the first table under a heading of README.md, without its head."""
    section = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    assert section is not None, f"README.md has no section {heading!r}"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section[1].splitlines() if "|" in line]
    return rows[2:]


def test_the_specification_has_this_phase_table() -> None:
    specified: dict[tuple[Phase, Side], dict[type[m.Message], Phase]] = {}
    by_name = {c.__name__: c for c in CLASSES}
    for name, *cells in table_below("Phases of the control connection"):
        for sender, cell in zip((SOURCE, DESTINATION), cells, strict=False):
            for message, following in re.findall(r"`(\w+)` → (\w+)", cell):
                specified.setdefault((Phase(name), sender), {})[by_name[message]] = Phase(following)
    for side in Side:
        for phase in MAY_FAIL:
            specified.setdefault((phase, side), {})[m.Failure] = Phase.OVER
        for phase in MAY_BE_LONG:
            specified.setdefault((phase, side), {})[m.Alive] = phase
    assert specified == CONTROL


def test_the_specification_has_these_messages_and_fields() -> None:
    import dataclasses

    specified = {int(number): name.strip("`") for number, name, *_ in table_below("Messages")}
    assert specified == {kind: c.__name__ for kind, c in m.CLASSES.items()}
    for message_class in CLASSES:
        if dataclasses.fields(message_class):
            rows = table_below(f"{message_class.__name__} ({message_class.kind})")
            assert [row[0].strip("`") for row in rows] == [f.name for f in dataclasses.fields(message_class)]


def test_the_specification_has_these_payloads() -> None:
    with_payload = {name.strip("`") for _, name, _, _, payload, *_ in table_below("Messages") if payload != "-"}
    assert with_payload == {c.__name__ for c in WITH_PAYLOAD}
