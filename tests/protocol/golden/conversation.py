"""Pairs of connections that have come to any phase of a migration: the way there is found in the table, not written down."""

from __future__ import annotations

import dataclasses

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.frames import encode_head
from pagefire.protocol.state import AFTER_WELCOME, CONTROL, Phase, Role, Side
from tests.protocol.golden.examples import BY_CLASS, EXAMPLES

Step = tuple[Side, m.Message, int]


def example(message_class: type[m.Message], role: Role = Role.CONTROL) -> tuple[m.Message, int]:
    if message_class is m.Hello:
        hello = EXAMPLES["Hello control"][0]
        assert isinstance(hello, m.Hello)
        return m.Hello(
            hello.versions,
            hello.capabilities,
            role.value,
            0,
            hello.session,
            hello.secret,
            hello.software,
            hello.name,
            10.0,
        ), 0
    return BY_CLASS[message_class]


def simple(message_class: type[m.Message], role: Role = Role.CONTROL) -> m.Message:
    """Give the example of a message that needs no payload."""
    message, payload_bytes = example(message_class, role)
    assert not payload_bytes
    return message


def role_towards(goal: Phase) -> Role:
    """Give the role of a connection that can come to `goal`: a recovery begins where no other does."""
    return Role.RECOVERY if goal is Phase.ASKED else Role.CONTROL


def steps_to(goal: Phase) -> list[Step]:
    """Find the shortest legal conversation that ends in `goal` on a control or recovery connection."""
    role = role_towards(goal)
    paths: dict[Phase, list[Step]] = {Phase.GREETING: []}
    while goal not in paths:
        known = dict(paths)
        for (phase, sender), allowed in CONTROL.items():
            for message_class, named in allowed.items():
                following = AFTER_WELCOME[role] if message_class is m.Welcome else named
                if phase in known and following not in paths:
                    paths[following] = [*known[phase], (sender, *example(message_class, role))]
    return paths[goal]


class Pair:
    """Both ends of one connection; `pass_on` brings a message from one to the other, in pieces."""

    def __init__(self, role: Role = Role.CONTROL) -> None:
        self.ends = {Side.SOURCE: Connection(Side.SOURCE, role), Side.DESTINATION: Connection(Side.DESTINATION)}

    @classmethod
    def at(cls, phase: Phase) -> Pair:
        """Make the two ends of a control connection that has come to `phase`."""
        pair = cls(role_towards(phase))
        for sender, message, payload_bytes in steps_to(phase):
            pair.pass_on(sender, message, payload_bytes)
        return pair

    @classmethod
    def streaming(cls, role: Role) -> Pair:
        """Make the two ends of a page or fault connection that has been greeted."""
        pair = cls(role)
        pair.pass_on(Side.SOURCE, *example(m.Hello, role))
        pair.pass_on(Side.DESTINATION, *example(m.Welcome))
        return pair

    @property
    def phases(self) -> set[Phase]:
        return {end.phase for end in self.ends.values()}

    def pass_on(self, sender: Side, message: m.Message, payload_bytes: int = 0, piece_bytes: int = 1 << 20) -> Arrival:
        return self.deliver(sender.peer, self.ends[sender].send(message, payload_bytes), piece_bytes)

    def force(self, receiver: Side, message: m.Message, payload_bytes: int = 0) -> Arrival:
        """Bring a message that the other end would not have sent."""
        return self.deliver(receiver, encode_head(message.kind, m.encode(message), payload_bytes))

    def deliver(self, receiver: Side, head: bytes, piece_bytes: int = 1 << 20) -> Arrival:
        end, arrival = self.ends[receiver], None
        while head:
            assert arrival is None
            size = min(end.wanted, piece_bytes)
            arrival = end.receive(head[:size])
            head = head[size:]
        assert arrival is not None
        return arrival


def greeted(listed: list[str], known: list[str], role: Role = Role.PAGES) -> Pair:
    """Greet, with some capabilities listed by the source and some by the destination."""
    pair = Pair(role)
    hello, welcome = simple(m.Hello, role), simple(m.Welcome)
    assert isinstance(hello, m.Hello)
    assert isinstance(welcome, m.Welcome)
    pair.pass_on(Side.SOURCE, dataclasses.replace(hello, capabilities=listed))
    pair.pass_on(Side.DESTINATION, dataclasses.replace(welcome, capabilities=known))
    return pair
