"""Checksums as both ends agree on them: from the greeting on, or not at all."""

from __future__ import annotations

import dataclasses

import pytest

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.errors import LocalProtocolError, RemoteProtocolError
from pagefire.protocol.negotiation import CHECKSUM, source_capabilities
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.state import Role, Side
from tests.protocol.golden.conversation import simple

CONTENTS = bytes(range(256)) * (2 * PAGE_BYTES // 256)
PAGES = m.Pages(PageSet.span(3, 5))


def deliver(end: Connection, frame: bytes) -> Arrival | None:
    """Bring the head of a frame."""
    arrival = None
    while frame:
        assert arrival is None
        part, frame = frame[: end.wanted], frame[end.wanted :]
        arrival = end.receive(part)
    return arrival


def damaged(frame: bytes, at: int = -1) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= 1
    return bytes(changed)


def greeting(*, wanted: bool, known: bool = True) -> tuple[Connection, Connection]:
    """Greet on a page connection, with checksums wanted by the source, known to the destination."""
    source, destination = Connection(Side.SOURCE, Role.PAGES), Connection(Side.DESTINATION)
    hello, welcome = simple(m.Hello, Role.PAGES), simple(m.Welcome)
    assert isinstance(hello, m.Hello)
    assert isinstance(welcome, m.Welcome)
    hello = dataclasses.replace(hello, capabilities=source_capabilities(checksum=wanted))
    welcome = dataclasses.replace(welcome, capabilities=[CHECKSUM] if known else [])
    deliver(destination, source.send(hello))
    deliver(source, destination.send(welcome))
    return source, destination


def test_a_payload_is_checked_by_whoever_reads_it() -> None:
    source, destination = greeting(wanted=True)
    assert source.checksums
    assert destination.checksums
    for contents in (CONTENTS, damaged(CONTENTS)):
        arrival = deliver(destination, source.send(PAGES, len(CONTENTS), [CONTENTS]))
        assert arrival is not None
        assert arrival.check is not None
        arrival.check.add(contents)
        if contents == CONTENTS:
            arrival.check.verify()
        else:
            with pytest.raises(RemoteProtocolError, match="a frame was damaged on its way"):
                arrival.check.verify()


def test_a_frame_without_payload_is_checked_at_once() -> None:
    source, destination = greeting(wanted=True)
    marker = source.send(m.RoundEnd(7))
    with pytest.raises(RemoteProtocolError, match="a frame was damaged on its way"):
        deliver(destination, damaged(marker))
    source, destination = greeting(wanted=True)
    arrival = deliver(destination, source.send(m.RoundEnd(7)))
    assert arrival == Arrival(m.RoundEnd(7), 0, None)


@pytest.mark.parametrize(("wanted", "known"), [(False, True), (True, False)])
def test_without_agreement_there_are_none(wanted: bool, known: bool) -> None:
    source, destination = greeting(wanted=wanted, known=known)
    marker = source.send(m.RoundEnd(7))
    assert marker[16:20] == bytes(4)
    arrival = deliver(destination, source.send(PAGES, len(CONTENTS)))
    assert arrival is not None
    assert arrival.check is None


def test_the_greeting_itself_is_checked() -> None:
    source, destination = Connection(Side.SOURCE, Role.CONTROL), Connection(Side.DESTINATION)
    hello = simple(m.Hello)
    assert isinstance(hello, m.Hello)
    frame = source.send(dataclasses.replace(hello, capabilities=[CHECKSUM]))
    # The last byte is one of the guest's name: nothing else would notice.
    with pytest.raises(RemoteProtocolError, match="a frame was damaged on its way"):
        deliver(destination, damaged(frame))


def test_a_refusal_instead_of_a_welcome_is_believed() -> None:
    """The destination may not have read the Hello, and then knows nothing of checksums."""
    source, destination = Connection(Side.SOURCE, Role.CONTROL), Connection(Side.DESTINATION)
    hello = simple(m.Hello)
    assert isinstance(hello, m.Hello)
    source.send(dataclasses.replace(hello, capabilities=[CHECKSUM]))
    arrival = deliver(source, destination.send(simple(m.Failure)))
    assert arrival is not None
    assert arrival.message == simple(m.Failure)


def test_what_is_not_summed_is_not_sent() -> None:
    source, _ = greeting(wanted=True)
    with pytest.raises(LocalProtocolError, match="a checksum of 0 bytes, the payload has 8192"):
        source.send(PAGES, len(CONTENTS))
