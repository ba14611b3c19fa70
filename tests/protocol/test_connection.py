"""Connections: a whole migration byte by byte, and what each end refuses to send and to believe."""

from __future__ import annotations

import pytest

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, LocalProtocolError, RemoteProtocolError
from pagefire.protocol.frames import encode_head
from pagefire.protocol.messages import (
    MAX_EXTENT_RUNS,
    MAX_FRAME_PAGES,
    MAX_FRAME_RUNS,
    MAX_LONG_FRAME_PAGES,
    MAX_ZERO_PAGES,
)
from pagefire.protocol.negotiation import CHECKSUM, LONG_FRAMES
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.state import Phase, Role, Side
from tests.protocol.golden.conversation import Pair, example, greeted, simple

SOURCE, DESTINATION = Side.SOURCE, Side.DESTINATION

MIGRATION: list[tuple[Side, type[m.Message], Phase]] = [
    (SOURCE, m.Hello, Phase.JOINING),
    (DESTINATION, m.Welcome, Phase.SETUP),
    (SOURCE, m.ClockProbe, Phase.SETUP),
    (DESTINATION, m.ClockReading, Phase.SETUP),
    (SOURCE, m.Offer, Phase.OFFERED),
    (DESTINATION, m.Accept, Phase.ACTIVE),
    (SOURCE, m.Populate, Phase.POPULATING),
    (DESTINATION, m.Populated, Phase.ACTIVE),
    (DESTINATION, m.RoundReceived, Phase.ACTIVE),
    (DESTINATION, m.RoundReceived, Phase.ACTIVE),
    (SOURCE, m.Switchover, Phase.SWITCHING),
    (DESTINATION, m.RoundReceived, Phase.SWITCHING),
    (DESTINATION, m.Ready, Phase.READY),
    (SOURCE, m.PageDigests, Phase.READY),
    (DESTINATION, m.DigestsCompared, Phase.READY),
    (SOURCE, m.Handover, Phase.COMMITTED),
    (DESTINATION, m.Resumed, Phase.POSTCOPY),
    (DESTINATION, m.Resident, Phase.RESIDENT),
    (SOURCE, m.Released, Phase.RELEASED),
    (DESTINATION, m.Aftermath, Phase.OVER),
]


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
def test_a_whole_migration(piece_bytes: int) -> None:
    pair = Pair()
    for sender, message_class, following in MIGRATION:
        message, payload_bytes = example(message_class)
        arrival = pair.pass_on(sender, message, payload_bytes, piece_bytes)
        assert (arrival.message, arrival.payload_bytes) == (message, payload_bytes)
        assert pair.phases == {following}
    for end in pair.ends.values():
        end.end_of_stream()


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
def test_page_and_fault_connections(piece_bytes: int) -> None:
    conversations: dict[Role, list[tuple[Side, type[m.Message]]]] = {
        Role.PAGES: [(SOURCE, m.Pages), (SOURCE, m.ZeroPages), (SOURCE, m.RoundEnd), (SOURCE, m.Pages)],
        Role.FAULT: [(DESTINATION, m.Fetch), (SOURCE, m.Pages), (DESTINATION, m.Fetch), (SOURCE, m.ZeroPages)],
    }
    for role, steps in conversations.items():
        pair = Pair.streaming(role)
        assert {end.role for end in pair.ends.values()} == {role}
        for sender, message_class in steps:
            message, payload_bytes = example(message_class)
            assert pair.pass_on(sender, message, payload_bytes, piece_bytes).message == message
            assert pair.phases == {Phase.ACTIVE}


# -- the end of the stream ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.OVER])
def test_the_peer_may_not_leave_before_the_end(phase: Phase) -> None:
    for end in Pair.at(phase).ends.values():
        with pytest.raises(LinkLost, match=phase.value):
            end.end_of_stream()


def test_the_peer_may_not_leave_inside_a_frame() -> None:
    end = Pair.at(Phase.OVER).ends[SOURCE]
    end.end_of_stream()
    end.receive(b"P")
    with pytest.raises(LinkLost):
        end.end_of_stream()


# -- roles -------------------------------------------------------------------------------------------------------------


def test_a_connection_keeps_its_role() -> None:
    hello = simple(m.Hello, Role.PAGES)
    with pytest.raises(LocalProtocolError, match="pages on a control connection"):
        Connection(SOURCE, Role.CONTROL).send(hello)
    pair = Pair()
    pair.force(DESTINATION, hello)
    assert pair.ends[DESTINATION].role is Role.PAGES


def test_an_unknown_role_is_named() -> None:
    hello = m.Hello([1], [], "telepathy", 0, b"", b"", "", "", 10.0)
    with pytest.raises(RemoteProtocolError, match="telepathy"):
        Pair().force(DESTINATION, hello)


@pytest.mark.parametrize("role", [Role.PAGES, Role.FAULT])
def test_a_destination_may_refuse_a_connection_of_any_role(role: Role) -> None:
    pair = Pair(role)
    pair.pass_on(SOURCE, *example(m.Hello, role))
    pair.pass_on(DESTINATION, *example(m.Failure))
    assert pair.phases == {Phase.OVER}


def test_a_destination_may_refuse_who_has_said_nothing() -> None:
    pair = Pair()
    pair.pass_on(DESTINATION, *example(m.Failure))
    assert pair.phases == {Phase.OVER}


# -- after an error ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(b"GET / HTTP/1.0\r\n", id="no frame"),
        pytest.param(encode_head(m.Hello.kind, b"", 0), id="a broken body"),
        pytest.param(encode_head(255, b"", 0), id="an unknown kind"),
        pytest.param(encode_head(m.Handover.kind, m.encode(m.Handover()), 0), id="out of turn"),
    ],
)
def test_nothing_is_believed_behind_what_was_refused(refused: bytes) -> None:
    """The Hello that was due would begin a migration as if the peer had said nothing before it."""
    pair = Pair()
    with pytest.raises(RemoteProtocolError):
        pair.deliver(DESTINATION, refused)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="before"):
            pair.force(DESTINATION, simple(m.Hello))
    assert pair.ends[DESTINATION].phase is Phase.GREETING
    # The reason may still be told.
    assert pair.pass_on(DESTINATION, simple(m.Failure)).message == simple(m.Failure)


# -- payloads and limits -----------------------------------------------------------------------------------------------


def refused_both_ways(pair: Pair, sender: Side, message: m.Message, payload_bytes: int, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        pair.force(sender.peer, message, payload_bytes)
    with pytest.raises(LocalProtocolError, match=why):
        pair.ends[sender].send(message, payload_bytes)


def runs(count: int) -> PageSet:
    return PageSet(range(0, 2 * count, 2), range(1, 2 * count, 2))


def test_only_some_messages_bring_a_payload() -> None:
    refused_both_ways(Pair(), SOURCE, simple(m.Hello), 1, "no payload")
    refused_both_ways(Pair.streaming(Role.PAGES), SOURCE, m.ZeroPages(runs(1)), PAGE_BYTES, "no payload")


@pytest.mark.parametrize("payload_bytes", [0, PAGE_BYTES, 2 * PAGE_BYTES - 1, 2 * PAGE_BYTES + 1])
def test_pages_bring_exactly_their_contents(payload_bytes: int) -> None:
    message = m.Pages(PageSet.span(4, 6))
    refused_both_ways(Pair.streaming(Role.PAGES), SOURCE, message, payload_bytes, "2 pages announced")


@pytest.mark.parametrize(("registers_bytes", "swapped_bytes"), [(-1, 0), (101, 0), (0, -1), (0, 101), (60, 41)])
def test_registers_and_swap_bitmap_lie_inside_their_payload(registers_bytes: int, swapped_bytes: int) -> None:
    message = m.Switchover(registers_bytes, "raw", 0, [], 0, PageSet.empty(), 0, swapped_bytes)
    refused_both_ways(Pair.at(Phase.ACTIVE), SOURCE, message, 100, f"swap bitmap of {swapped_bytes} announced")


def test_a_frame_names_so_many_pages() -> None:
    """A receiver holds a frame's pages one by one: a Fetch of 2**51 pages would be its end."""
    largest, beyond = PageSet.span(0, MAX_FRAME_PAGES), PageSet.span(0, MAX_FRAME_PAGES + 1)
    Pair.streaming(Role.PAGES).pass_on(SOURCE, m.Pages(largest), largest.size_bytes)
    Pair.streaming(Role.FAULT).pass_on(DESTINATION, m.Fetch(largest))
    Pair.streaming(Role.PAGES).pass_on(SOURCE, m.ZeroPages(PageSet.span(0, MAX_ZERO_PAGES)))
    zeros = m.ZeroPages(PageSet.span(0, MAX_ZERO_PAGES + 1))
    refused_both_ways(Pair.streaming(Role.PAGES), SOURCE, zeros, 0, "65537 zero pages")
    refused_both_ways(Pair.streaming(Role.PAGES), SOURCE, m.Pages(beyond), beyond.size_bytes, "2049 pages")
    refused_both_ways(Pair.streaming(Role.FAULT), DESTINATION, m.Fetch(beyond), 0, "2049 pages")
    refused_both_ways(Pair.streaming(Role.FAULT), DESTINATION, m.Fetch(PageSet.span(0, 1 << 51)), 0, "pages")
    switchover = m.Switchover(0, "raw", 0, [], 0, beyond, 0, 0)
    refused_both_ways(Pair.at(Phase.ACTIVE), SOURCE, switchover, 0, "2049 pages")


@pytest.mark.parametrize(
    ("role", "listed", "known", "most_pages"),
    [
        (Role.PAGES, [LONG_FRAMES], [LONG_FRAMES], MAX_LONG_FRAME_PAGES),
        (Role.PAGES, [LONG_FRAMES], [], MAX_FRAME_PAGES),
        (Role.PAGES, [], [LONG_FRAMES], MAX_FRAME_PAGES),
        (Role.PAGES, [LONG_FRAMES, CHECKSUM], [LONG_FRAMES, CHECKSUM], MAX_FRAME_PAGES),
        (Role.PAGES, [LONG_FRAMES, CHECKSUM], [LONG_FRAMES], MAX_LONG_FRAME_PAGES),
        (Role.FAULT, [LONG_FRAMES], [LONG_FRAMES], MAX_FRAME_PAGES),
    ],
)
def test_a_frame_is_long_where_both_can_and_nobody_holds_it(
    role: Role, listed: list[str], known: list[str], most_pages: int
) -> None:
    pair = greeted(listed, known, role)
    assert {end.most_pages for end in pair.ends.values()} == {most_pages}
    largest, beyond = PageSet.span(0, most_pages), PageSet.span(0, most_pages + 1)
    if not pair.ends[SOURCE].checksums:  # a payload that is summed has to be there
        pair.pass_on(SOURCE, m.Pages(largest), largest.size_bytes)
    with pytest.raises(LocalProtocolError, match=f"a frame names {most_pages} at most here"):
        pair.ends[SOURCE].send(m.Pages(beyond), beyond.size_bytes)
    if not pair.ends[DESTINATION].checksums:  # which `force` does not make
        with pytest.raises(RemoteProtocolError, match=f"a frame names {most_pages} at most here"):
            pair.force(DESTINATION, m.Pages(beyond), beyond.size_bytes)


def test_a_frame_names_so_many_runs() -> None:
    largest, beyond = runs(MAX_FRAME_RUNS), runs(MAX_FRAME_RUNS + 1)
    for message_class in (m.Pages, m.ZeroPages):
        payload_bytes = PAGE_BYTES if message_class is m.Pages else 0
        pair = Pair.streaming(Role.PAGES)
        pair.pass_on(SOURCE, message_class(largest), largest.pages * payload_bytes)
        refused_both_ways(pair, SOURCE, message_class(beyond), beyond.pages * payload_bytes, "513 runs")
    refused_both_ways(Pair.streaming(Role.FAULT), DESTINATION, m.Fetch(beyond), 0, "513 runs")


def test_an_announcement_names_so_many_runs() -> None:
    Pair.at(Phase.ACTIVE).pass_on(SOURCE, m.Populate(runs(MAX_EXTENT_RUNS)))
    refused_both_ways(Pair.at(Phase.ACTIVE), SOURCE, m.Populate(runs(MAX_EXTENT_RUNS + 1)), 0, "40001 runs")


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(m.RoundEnd(1 << 64), id="beyond 64 bits"),
        pytest.param(m.ZeroPages(runs(70_000)), id="beyond a body"),
    ],
)
def test_what_cannot_be_coded_is_our_mistake(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError, match=type(message).__name__):
        Pair.streaming(Role.PAGES).ends[SOURCE].send(message)


def test_a_stranger_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="HTTP"):
        Connection(DESTINATION).receive(b"GET / HTTP/1.0\r\n")
