"""Frames over real sockets: a peer that leaves, falls silent, refuses or is somebody else, and what stays open afterwards."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator

import pytest
import uvloop

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import (
    LinkLost,
    LocalProtocolError,
    PagefireError,
    PeerRefused,
    RemoteProtocolError,
    UsageError,
)
from pagefire.protocol.frames import encode_head
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.state import Phase, Role, Side
from pagefire.protocol.transport.frame_stream import (
    FrameStream,
    connect,
    describe_failure,
    listen,
    refusal,
)
from pagefire.protocol.transport.wire import Wire
from tests.protocol.golden.conversation import simple

TIMEOUT_S = 0.05
Link = tuple[FrameStream, socket.socket]


@pytest.fixture
def link() -> Iterator[Link]:
    """A destination's stream, and the bare socket of its source."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    stream = FrameStream(Wire(near), Connection(Side.DESTINATION))
    yield stream, far
    stream.close()
    far.close()


@pytest.fixture
async def streams(link: Link) -> tuple[FrameStream, FrameStream]:
    """A source's and a destination's stream, joined: the next message is an offer."""
    destination, far = link
    source = FrameStream(Wire(far), Connection(Side.SOURCE, Role.CONTROL))
    await source.send(simple(m.Hello))
    await destination.expect(m.Hello)
    await destination.send(simple(m.Welcome))
    await source.expect(m.Welcome)
    return source, destination


def bytes_of(message: m.Message, payload_bytes: int = 0) -> bytes:
    return encode_head(message.kind, m.encode(message), payload_bytes)


HELLO = simple(m.Hello)
PAGES_HELLO = simple(m.Hello, Role.PAGES)


async def test_messages_arrive_and_are_counted(streams: tuple[FrameStream, FrameStream]) -> None:
    source, destination = streams
    before = source.sent_bytes
    offer = simple(m.Offer)
    await source.send(offer)
    assert await destination.expect(m.Offer, 5) == offer
    assert source.sent_bytes - before == len(bytes_of(offer))


async def test_a_payload_is_left_for_its_reader(streams: tuple[FrameStream, FrameStream]) -> None:
    source, destination = streams
    for sender, receiver, kind in ((source, destination, m.Offer), (destination, source, m.Accept)):
        await sender.send(simple(kind))
        await receiver.expect(kind)
    payload = bytes(range(256)) * 4096
    before = source.sent_bytes
    switchover = m.Switchover(128, "raw", 0, [0], 0, PageSet.empty(), 0, 0)
    async with asyncio.TaskGroup() as group:
        group.create_task(source.send(switchover, memoryview(payload)))
        arrival = await destination.receive()
        assert arrival.payload_bytes == len(payload)
        assert await destination.receive_payload(arrival.payload_bytes) == payload
    assert source.sent_bytes - before == len(bytes_of(switchover)) + len(payload)
    await destination.send(simple(m.Ready))
    await source.expect(m.Ready)


async def test_senders_take_turns(link: Link) -> None:
    """Two tasks may send on one stream: their frames do not mix, however long they are."""
    destination, far = link
    source = FrameStream(Wire(far), Connection(Side.SOURCE, Role.PAGES))
    await source.send(PAGES_HELLO)
    await destination.receive()
    await destination.send(simple(m.Welcome))
    await source.expect(m.Welcome)
    contents = [bytes([number]) * (512 * PAGE_BYTES) for number in range(4)]
    async with asyncio.TaskGroup() as group:
        for number, payload in enumerate(contents):
            group.create_task(source.send(m.Pages(PageSet.span(number * 512, number * 512 + 512)), payload))
        for number, payload in enumerate(contents):
            arrival = await destination.receive()
            assert arrival.message == m.Pages(PageSet.span(number * 512, number * 512 + 512))
            assert await destination.receive_payload(arrival.payload_bytes) == payload


async def test_nothing_is_read_beyond_the_greeting(link: Link) -> None:
    """The bare socket is given to a thread afterwards: what follows must still be in it."""
    stream, far = link
    far.sendall(bytes_of(PAGES_HELLO) + b"contents")
    await stream.receive()
    bare = stream.detach().sock
    assert bare.getblocking()
    assert bare.recv(64) == b"contents"


async def test_what_a_stream_has_sent_its_wire_has_sent(streams: tuple[FrameStream, FrameStream]) -> None:
    """Whoever adds up what connections have sent must not see the sum fall when one becomes a thread's."""
    for stream in streams:
        assert stream.sent_bytes > 100
        assert stream.detach().sent_bytes == stream.sent_bytes


async def test_what_may_not_be_sent_is_not_sent(link: Link) -> None:
    stream, far = link
    with pytest.raises(LocalProtocolError):
        await stream.send(m.Handover())
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    assert stream.sent_bytes == 0


# -- a peer that ends or is silent -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 40])
async def test_the_peer_leaves_inside_a_frame(link: Link, cut: int) -> None:
    stream, far = link
    far.sendall(bytes_of(HELLO)[:cut])
    far.close()
    with pytest.raises(LinkLost, match="closed the connection"):
        await stream.receive()


async def test_the_peer_leaves_inside_a_payload(link: Link) -> None:
    stream, far = link
    far.sendall(b"half")
    far.close()
    with pytest.raises(LinkLost, match="middle of a payload"):
        await stream.receive_payload(8)


async def test_a_connection_that_is_over_has_still_ended(link: Link) -> None:
    stream, far = link
    await stream.send(simple(m.Failure))
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(LinkLost, match="closed the connection"):
        await stream.receive()


async def test_a_reset_is_a_lost_link_with_its_reason(link: Link) -> None:
    stream, far = link
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    with pytest.raises(LinkLost, match=r"broke: .*reset"):
        await stream.receive()
    with pytest.raises(LinkLost, match="sending Failure failed"):
        await stream.send(simple(m.Failure))


@pytest.mark.parametrize("cut", [0, 20])
async def test_a_silent_peer_is_a_lost_link(link: Link, cut: int) -> None:
    stream, far = link
    far.sendall(bytes_of(HELLO)[:cut])
    with pytest.raises(LinkLost, match=r"no Hello within 0\.05 s: the peer is silent"):
        await stream.expect(m.Hello, TIMEOUT_S)


def test_close_wakes_who_waits() -> None:
    """On the loop that the daemons run on."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            near, _ = listener.accept()
        stream = FrameStream(Wire(near), Connection(Side.DESTINATION))
        waiting = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        stream.close()
        with pytest.raises(LinkLost):
            await asyncio.wait_for(waiting, 5)

    uvloop.run(main())


async def test_a_wire_that_is_shut_down_wakes_a_thread_and_keeps_its_descriptor(link: Link) -> None:
    stream, _ = link
    wire = stream.detach()
    number = wire.sock.fileno()
    waiting = asyncio.create_task(asyncio.to_thread(wire.receive, 1))
    await asyncio.sleep(0.01)
    wire.shut_down()
    assert await asyncio.wait_for(waiting, 5) == b""
    assert wire.sock.fileno() == number
    for _ in range(2):
        wire.close()
        assert wire.sock.fileno() == -1
        wire.shut_down()


# -- a peer that says no, or something else ----------------------------------------------------------------------------


async def test_a_failure_is_raised_in_the_peers_words(streams: tuple[FrameStream, FrameStream]) -> None:
    source, destination = streams
    error = UsageError("the guest is too large", "8 GiB", "start the destination with more")
    await destination.send(describe_failure(error))
    with pytest.raises(PeerRefused) as refused:
        await source.expect(m.Accept)
    assert str(refused.value) == str(error)


def test_failures_there_and_back() -> None:
    described = describe_failure(LinkLost("what", "why", "do"), "cancelled")
    assert described == m.Failure("cancelled", "what", "why", "do")
    assert str(refusal(described)) == "what: why. Do."
    unexpected = describe_failure(KeyError("x"))
    assert unexpected == m.Failure("failed", "the peer failed unexpectedly", "KeyError: 'x'", "read its log")


async def test_another_message_than_expected(streams: tuple[FrameStream, FrameStream]) -> None:
    source, destination = streams
    await source.send(simple(m.ClockProbe))
    with pytest.raises(RemoteProtocolError, match="Offer expected: ClockProbe came"):
        await destination.expect(m.Offer)


async def test_a_message_out_of_turn(link: Link) -> None:
    stream, far = link
    far.sendall(bytes_of(m.Handover()))
    with pytest.raises(RemoteProtocolError, match="Handover out of turn"):
        await stream.receive()


async def test_a_stranger_is_named(link: Link) -> None:
    stream, far = link
    far.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20))
    with pytest.raises(RemoteProtocolError, match="TLS"):
        await stream.expect(m.Hello, 5)


# -- opening -----------------------------------------------------------------------------------------------------------


def source_control() -> Connection:
    return Connection(Side.SOURCE, Role.CONTROL)


def no_socket_is_left_open(raised: pytest.ExceptionInfo[BaseException]) -> None:
    """A socket that nobody closed becomes a ResourceWarning here, which the test configuration makes an error."""
    raised.value.__traceback__ = raised.value.__cause__ = raised.value.__context__ = None
    gc.collect()


async def test_listen_and_connect() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert not listener.getblocking()
        host, port = listener.getsockname()
        stream = await connect(host, port, source_control(), 5)
        accepted, _ = listener.accept()
    with accepted:
        assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await stream.send(HELLO)
        assert Connection(Side.DESTINATION).receive(accepted.recv(16)) is None
    stream.close()


@pytest.mark.parametrize("option", ["--listen", "--metrics"])
def test_a_taken_port_is_named(option: str) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PagefireError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use.*{option}") as raised:
            listen("127.0.0.1", port, option)
    no_socket_is_left_open(raised)


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(
        LinkLost, match=rf"cannot connect to 127\.0\.0\.1:{port}: .+ Start `pagefire dest` there"
    ) as raised:
        await connect("127.0.0.1", port, source_control(), 5)
    no_socket_is_left_open(raised)


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address where a connection is neither taken nor refused: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        callers = [socket.socket() for _ in range(3)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield listener.getsockname()
        for caller in callers:
            caller.close()


async def test_nobody_answers(deaf: tuple[str, int]) -> None:
    with pytest.raises(LinkLost, match=r"no answer from .* within 0\.05 s.*firewall") as raised:
        await connect(*deaf, source_control(), TIMEOUT_S)
    no_socket_is_left_open(raised)


async def test_connecting_can_be_cancelled(deaf: tuple[str, int]) -> None:
    connecting = asyncio.create_task(connect(*deaf, source_control(), 60))
    await asyncio.sleep(0.01)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await connecting
    del connecting
    no_socket_is_left_open(raised)


async def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    with pytest.raises(LinkLost, match="cannot resolve nowhere: Name or service not known"):
        await connect("nowhere", 1, source_control(), 5)


async def test_a_refused_conversation_ends_at_both_ends(streams: tuple[FrameStream, FrameStream]) -> None:
    source, destination = streams
    await destination.send(simple(m.Failure))
    with pytest.raises(PeerRefused):
        await source.expect(m.Accept)
    assert source.connection.phase is destination.connection.phase is Phase.OVER
    with pytest.raises(LocalProtocolError):
        await source.send(simple(m.Offer))
