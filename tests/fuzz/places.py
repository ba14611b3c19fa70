"""Every place that a connection can come to: found by trying every message everywhere, so that none has to be named.

A place is a role and a phase. From the greeting of every role both ends are led on by each golden message that its sender's own
core lets out, until nothing new is reached. What may pass in a place, and where it leads, is read from the tables of state.py.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LocalProtocolError
from pagefire.protocol.state import AFTER_WELCOME, CONTROL, STREAMS, Phase, Role, Side
from tests.protocol.golden.conversation import Pair, example

_STREAM_ROLES = {role for role, _ in STREAMS}
_GREETED_BY_TABLE = (Phase.GREETING, Phase.JOINING)


@dataclass(frozen=True, slots=True)
class Place:
    role: Role
    phase: Phase
    ends: dict[Side, Connection]

    def end(self, side: Side) -> Connection:
        """Give a connection of its own that has come to this place."""
        return copy.deepcopy(self.ends[side])


def allowed(role: Role | None, phase: Phase, sender: Side) -> dict[type[m.Message], Phase]:
    """List what may be sent in a place, and the phase that follows, by the tables."""
    by_phase = CONTROL.get((phase, sender), {})
    if phase in _GREETED_BY_TABLE and role is not None:
        # Whatever the table says of a control connection: where `Welcome` leads is the role's.
        return {kind: AFTER_WELCOME[role] if kind is m.Welcome else following for kind, following in by_phase.items()}
    if role not in _STREAM_ROLES:
        return by_phase
    if phase is Phase.OVER:
        return {}
    return dict.fromkeys(STREAMS[role, sender], phase) | {m.Failure: Phase.OVER}


def _found(role: Role) -> list[Place]:
    known, to_try = {}, [Pair(role)]
    while to_try:
        pair = to_try.pop(0)
        (phase,) = pair.phases
        if phase in known:
            continue
        known[phase] = Place(role, phase, pair.ends)
        for sender in Side:
            for message_class in m.CLASSES.values():
                next_pair = copy.deepcopy(pair)
                try:
                    next_pair.pass_on(sender, *example(message_class, role))
                except LocalProtocolError:
                    continue
                to_try.append(next_pair)
    return list(known.values())


PLACES = [place for role in Role for place in _found(role)]
