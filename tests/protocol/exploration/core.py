"""The product's own code at work in the explored world: the rules, the connections, the ledger, the bitmap's codec.

Nothing of it is copied: each function here puts the object of the product into the state that is asked about, lets it do one thing
and takes down what came of it. That is pure, so each question is put once and its answer remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from pagefire.dest_host.ledger import MISSING, RECEIVED, Ledger, publishable
from pagefire.protocol import messages as m
from pagefire.protocol.bitmap import decode_bitmap, encode_bitmap
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LocalProtocolError
from pagefire.protocol.ownership import RULES, Act, Event, Owner, Ownership, Rules
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.state import Phase, Role, Side
from tests.protocol.exploration.world import Frame, pages_in

F = TypeVar("F", bound=Callable[..., Any])

_WHY = ("failed", "what", "why", "do")
_SESSION, _SECRET, _DIGEST_BYTES = bytes(16), bytes(16), 16


class Wrong(Exception):
    """An invariant does not hold."""


def remembered(function: F) -> F:
    """Ask each question once; the rules and the number of pages do not change while a core lives."""
    name = function.__name__

    @functools.wraps(function)
    def ask(self: Core, *args: Hashable) -> Any:
        key = (name, args)
        try:
            return self.memory[key]
        except KeyError:
            answer = self.memory[key] = function(self, *args)
            return answer

    return ask  # type: ignore[return-value]


class _Word:
    """An owner word, where the control block would be."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner


class Core:
    """The product's code, for a guest of so many pages, under these rules."""

    def __init__(self, pages: int, rules: Rules = RULES) -> None:
        self.pages = pages
        self.every = (1 << pages) - 1
        self.memory: dict[tuple[str, tuple[Hashable, ...]], Any] = {}
        self._rules = rules
        #: (side, word, event) that were asked about: for the test that every row of the table was.
        self.walked: set[tuple[Side, Owner, Event]] = set()

    # -- the rules -----------------------------------------------------------------------------------------------------------

    @remembered
    def on(self, side: Side, word: Owner, event: Event) -> tuple[Owner, Act]:
        """`Ownership.on`: gives the word afterwards and the act; LocalProtocolError when the table does not have it."""
        self.walked.add((side, word, event))
        holder = _Word(word)
        act = Ownership(side, holder, self._rules).on(event)
        return holder.owner, act

    # -- connections ---------------------------------------------------------------------------------------------------------

    @remembered
    def send(self, side: Side, role: Role, phase: Phase, name: str, *args: Any) -> tuple[Frame, Phase]:
        """`Connection.send` of the message `name`, made of `args`: gives the frame and the phase afterwards."""
        connection = Connection(side, role)
        connection.phase = phase
        message, payload, payload_bytes = self._message(name, *args)
        head = connection.send(message, payload_bytes)
        return Frame(name, head, payload, payload_bytes), connection.phase

    @remembered
    def may_send(self, side: Side, role: Role, phase: Phase, name: str, *args: Any) -> bool:
        try:
            self.send(side, role, phase, name, *args)
        except LocalProtocolError:
            return False
        return True

    @remembered
    def receive(self, side: Side, role: Role, phase: Phase, frame: Frame) -> tuple[m.Message, Phase]:
        """`Connection.receive`, fed as a stream feeds it: gives the message and the phase afterwards."""
        connection = Connection(side, None if phase is Phase.GREETING else role)
        connection.phase = phase
        position, arrival = 0, None
        while arrival is None:
            part = frame.head[position : position + connection.wanted]
            position += len(part)
            arrival = connection.receive(part)
        assert position == len(frame.head)
        assert arrival.payload_bytes == frame.payload_bytes
        assert connection.role is role
        return arrival.message, connection.phase

    def _message(self, name: str, *args: Any) -> tuple[m.Message, object, int]:
        """Make a message: gives it, its payload (contents are versions), and the payload's length on the wire."""
        match name, args:
            case "Hello", (Role() as role,):
                session, secret = (b"", b"") if role is Role.CONTROL else (_SESSION, _SECRET)
                return m.Hello([1], [], role.value, 0, session, secret, "", "guest", 10.0), None, 0
            case "Welcome", ():
                return m.Welcome(1, [], _SESSION, _SECRET, "", "", 10.0), None, 0
            case "Offer", ():
                size = self.pages * PAGE_BYTES
                offer = m.Offer("guest", size, size, size, PAGE_BYTES, "4k", 1, "idle", 0, None, "hybrid", 1, True, 0.0)
                return offer, None, 0
            case "Foretold", (int() as missing,):
                coded = encode_bitmap("compacted", pages_of(missing), self.pages)
                return m.Foretold("compacted", missing.bit_count()), coded, len(coded)
            case "Switchover", (int() as missing, int() as hot, int() as last_round):
                coded = encode_bitmap("compacted", pages_of(missing), self.pages)
                count = missing.bit_count()
                message = m.Switchover(0, "compacted", count, [0], last_round, pages_of(hot), 0, 0)
                return message, coded, len(coded)
            case "Taken", (int() as missing,):
                coded = encode_bitmap("compacted", pages_of(missing), self.pages)
                return m.Taken(missing.bit_count(), 0, 0), coded, len(coded)
            case "Pages", (int() as mask, tuple() as versions):
                return m.Pages(pages_of(mask)), versions, mask.bit_count() * PAGE_BYTES
            case "Fetch", (int() as mask,):
                return m.Fetch(pages_of(mask)), None, 0
            case "PageDigests", (int() as mask, tuple() as versions):
                return m.PageDigests(pages_of(mask)), versions, mask.bit_count() * _DIGEST_BYTES
            case "DigestsCompared", (int() as mask,):
                return m.DigestsCompared(pages_of(mask)), None, 0
            case "RoundEnd" | "RoundReceived", (int() as number,):
                return getattr(m, name)(number), None, 0
            case "Failure" | "Fenced", ():
                return getattr(m, name)(*_WHY), None, 0
            case "Accept", ():
                return m.Accept(1, 0.0), None, 0
            case "Ready", ():
                return m.Ready(0.0, 0.0, 0.0), None, 0
            case "Resumed", ():
                return m.Resumed(0, 0), None, 0
            case "Perished", ():
                return m.Perished("why"), None, 0
            case "Resident", ():
                return m.Resident(0, 0, 0, 0, 0, [], 0.0), None, 0
            case "Aftermath", ():
                return m.Aftermath([0], 0, [], 0.0, 0.0, 0, 0, 0, True, [], 0, 0, 0.0, [], [], b"", 1), None, 0
            case "Handover" | "Noted" | "Released", ():
                return getattr(m, name)(), None, 0
        raise AssertionError(f"no message {name} of {args}")

    # -- the bitmap ----------------------------------------------------------------------------------------------------------

    @remembered
    def decoded(self, bitmap: Any) -> int:
        return mask_of(decode_bitmap("compacted", bitmap, self.pages))

    # -- the ledger: its bytes before and after ------------------------------------------------------------------------------

    def _ledger(self, states: bytes) -> Ledger:
        return Ledger(self.pages, 1, np.frombuffer(states, np.uint8).copy())

    @remembered
    def mark_filled(self, states: bytes, mask: int) -> bytes:
        ledger = self._ledger(states)
        ledger.mark_filled(pages_of(mask))
        return ledger.states.tobytes()

    @remembered
    def foretell(self, states: bytes, mask: int) -> bytes:
        ledger = self._ledger(states)
        ledger.foretell(pages_of(mask))
        return ledger.states.tobytes()

    @remembered
    def set_missing(self, states: bytes, mask: int, present: int) -> bytes:
        ledger = self._ledger(states)
        ledger.set_missing(pages_of(mask), pages_of(present))
        return ledger.states.tobytes()

    @remembered
    def claim(self, states: bytes, mask: int) -> tuple[bytes, int]:
        """`Ledger.claim`: gives the bytes afterwards, and the pages that are the caller's to fill."""
        ledger = self._ledger(states)
        fresh = ledger.claim(pages_of(mask))
        return ledger.states.tobytes(), mask_of(fresh)

    @remembered
    def mark_received(self, states: bytes, mask: int) -> bytes:
        """`Landing.fill`'s mark, then `Intake._received`'s."""
        ledger = self._ledger(states)
        ledger.mark_filled(pages_of(mask))
        ledger.mark_received(pages_of(mask))
        return ledger.states.tobytes()

    @remembered
    def request(self, states: bytes, page: int) -> tuple[bytes, int]:
        """`Ledger.request`: gives the bytes afterwards, and the pages to be fetched."""
        ledger = self._ledger(states)
        wanted = ledger.request(page)
        return ledger.states.tobytes(), sum(1 << one for one in wanted)

    @remembered
    def forget_unfinished(self, states: bytes) -> tuple[bytes, int]:
        """`Ledger.forget_unfinished` of a ledger that lives: gives the bytes afterwards, and what is still missing."""
        ledger = self._ledger(states)
        ledger.set_missing(pages_of(self.missing(states, True)))
        missing = ledger.forget_unfinished()
        return ledger.states.tobytes(), mask_of(missing)

    @remembered
    def adopt(self, states: bytes) -> bytes:
        """`Ledger.adopt` by a daemon that finds these bytes."""
        ledger = self._ledger(states)
        ledger.adopt(PageSet.span(0, 1))
        return ledger.states.tobytes()

    @remembered
    def missing(self, states: bytes, named: bool = False) -> int:
        """Give the pages that the bitmap named, or only those of them that have not been received."""
        array = np.frombuffer(states, np.uint8)
        found = (array & MISSING) != 0 if named else (array & (MISSING | RECEIVED)) == MISSING
        return sum(1 << page for page in np.flatnonzero(found).tolist())

    @remembered
    def publishable(self, states: bytes) -> int:
        """Give the pages that a vCPU may see."""
        return sum(1 << page for page in np.flatnonzero(publishable(np.frombuffer(states, np.uint8))).tolist())


def pages_of(mask: int) -> PageSet:
    return PageSet.of_pages(pages_in(mask))


def mask_of(pages: PageSet) -> int:
    return sum(1 << page for page in pages.page_numbers().tolist())
