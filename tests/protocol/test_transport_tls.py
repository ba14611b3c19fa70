"""TLS between real sockets: whom it lets in, whom it refuses by which name at which end, and that bytes come out as they went."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading

import pytest

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, PagefireError, PeerRefused, RemoteProtocolError, UsageError
from pagefire.protocol.state import Role, Side
from pagefire.protocol.transport import tls
from pagefire.protocol.transport.frame_stream import FrameStream, connect, describe_failure, listen
from pagefire.protocol.transport.keys import HostKeys
from pagefire.protocol.transport.security import CallerSecurity, ListenerSecurity, is_loopback
from pagefire.protocol.transport.wire import Wire
from tests.protocol.golden.conversation import simple
from tests.support.secured import KeyRing, tcp_pair, wire_pair

PATIENCE_S = 20.0


def caller(keys: HostKeys | None) -> CallerSecurity:
    """Give the security of a source that encrypts on loopback as well."""
    return CallerSecurity(tls.context(keys, server=False) if keys else None, always=keys is not None)


def keyless(ring: KeyRing) -> CallerSecurity:
    """Give that of a client that trusts our CA and has no key: no pagefire is so, somebody's script may be."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(ring.good.ca)
    return CallerSecurity(made, always=True)


async def met(calling: CallerSecurity, listening: ListenerSecurity) -> tuple[FrameStream | BaseException, ...]:
    """Let a source call a destination and greet it; gives what each of them has in the end, a stream or an error."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]

        async def source() -> FrameStream:
            stream = await connect("127.0.0.1", port, Connection(Side.SOURCE, Role.CONTROL), PATIENCE_S, calling)
            try:
                await stream.send(simple(m.Hello))
                await stream.expect(m.Welcome, PATIENCE_S)
            except BaseException:
                stream.close()
                raise
            return stream

        async def destination() -> FrameStream:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            try:
                stream = FrameStream(await listening.secured(sock, "127.0.0.1"), Connection(Side.DESTINATION))
            except PagefireError as error:
                with contextlib.suppress(PagefireError):
                    if not isinstance(error.__cause__, PagefireError):
                        await FrameStream(Wire(sock), Connection(Side.DESTINATION)).send(describe_failure(error))
                # What the source sent meanwhile is read, so that its kernel is not told of a reset before the alert.
                await asyncio.sleep(0.05)
                sock.close()
                raise
            await stream.expect(m.Hello)
            await stream.send(simple(m.Welcome))
            return stream

        async with asyncio.timeout(PATIENCE_S):
            ends = await asyncio.gather(source(), destination(), return_exceptions=True)
    for end in ends:
        if isinstance(end, FrameStream):
            end.close()
    return tuple(ends)


def listener_with(keys: HostKeys) -> ListenerSecurity:
    return ListenerSecurity(tls.context(keys, server=True))


async def test_hosts_of_one_ca_meet(ring: KeyRing) -> None:
    ends = await met(caller(ring.good), listener_with(ring.also_good))
    for end in ends:
        assert isinstance(end, FrameStream)
        assert end.wire.authenticated


@pytest.mark.parametrize(
    ("source", "destination", "source_says", "destination_says"),
    [
        pytest.param(
            "of_another_ca", "good",
            "the destination's key is not of this host's CA", "the source refused this host's key, which is not of its CA",
            id="a source of another CA",
        ),
        pytest.param(
            "expired", "good",
            "the destination refused this host's key, which has expired", "the source's key has expired",
            id="an expired source",
        ),
        pytest.param(
            "good", "expired",
            "the destination's key has expired", "the source refused this host's key, which has expired",
            id="an expired destination",
        ),
        pytest.param(
            "", "good", "the destination refused this host, which gave no key", "the source has no key", id="no key"
        ),
    ],
)  # fmt: skip
async def test_refused_by_name_at_both_ends(
    ring: KeyRing, source: str, destination: str, source_says: str, destination_says: str
) -> None:
    calling = caller(getattr(ring, source)) if source else keyless(ring)
    ours, theirs = await met(calling, listener_with(getattr(ring, destination)))
    for error, words in ((ours, source_says), (theirs, destination_says)):
        assert isinstance(error, PagefireError)
        assert error.what == words
        assert error.do


async def test_a_destination_of_another_ca_that_trusts_ours(ring: KeyRing, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The source cannot know it by its own check alone when it is the other side that is too trusting: each checks for itself."""
    made = tls.context(ring.of_another_ca, server=True)
    made.load_verify_locations(ring.good.ca)
    ours, _ = await met(caller(ring.good), ListenerSecurity(made))
    assert isinstance(ours, PeerRefused)
    assert ours.what == "the destination's key is not of this host's CA"


async def test_a_source_of_another_ca_that_trusts_ours(ring: KeyRing) -> None:
    made = tls.context(ring.of_another_ca, server=False)
    made.load_verify_locations(ring.good.ca)
    ours, theirs = await met(CallerSecurity(made, always=True), listener_with(ring.good))
    assert isinstance(ours, PeerRefused)
    assert isinstance(theirs, PagefireError)
    assert ours.what == "the destination refused this host's key, which is not of its CA"
    assert theirs.what == "the source's key is not of this host's CA"


async def test_older_tls_is_refused(ring: KeyRing) -> None:
    old = tls.context(ring.good, server=False)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    _, theirs = await met(CallerSecurity(old, always=True), listener_with(ring.also_good))
    assert isinstance(theirs, PagefireError)
    assert theirs.what == "the source does not speak TLS 1.3"


async def test_a_destination_without_keys_says_so_to_a_tls_client(ring: KeyRing) -> None:
    ours, theirs = await met(caller(ring.good), ListenerSecurity())
    for end in (ours, theirs):
        assert isinstance(end, PeerRefused)
        assert end.what == "this destination has no keys"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it sent HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "it sent an SSH banner"),
        (b"PGF2", "does not speak TLS"),
        (b"", "ended the connection while TLS began"),
        (b"\x16\x03\x01\x00\x05hello", "TLS with the destination failed"),
    ],
)
async def test_a_stranger_at_the_other_end_is_named(ring: KeyRing, answer: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(1 << 16)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(PagefireError, match=words):
            await connect("127.0.0.1", server.getsockname()[1], Connection(Side.SOURCE), PATIENCE_S, caller(ring.good))
        thread.join()


# -- what must be encrypted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False),
        ("somewhere", False),
    ],
)  # fmt: skip
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_when_a_source_encrypts(ring: KeyRing, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PAGEFIRE_KEYS", str(tmp_path))
    without = CallerSecurity.chosen(None, insecure=False)
    assert not without.encrypts("127.0.0.1")
    with pytest.raises(
        UsageError, match=r"10\.0\.0\.1 is another host, and this one has no keys.*pagefire keys init.*--insecure"
    ):
        without.encrypts("10.0.0.1")
    assert not CallerSecurity.chosen(None, insecure=True).encrypts("10.0.0.1")
    named = CallerSecurity.chosen(str(ring.good.folder), insecure=False)
    assert named.encrypts("10.0.0.1")
    assert named.encrypts("127.0.0.1")
    monkeypatch.setenv("PAGEFIRE_KEYS", str(ring.good.folder))
    by_default = CallerSecurity.chosen(None, insecure=False)
    assert by_default.encrypts("10.0.0.1")
    assert not by_default.encrypts("127.0.0.1")


def test_where_a_destination_may_listen(ring: KeyRing, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PAGEFIRE_KEYS", str(tmp_path))
    assert ListenerSecurity.chosen(None, False, "127.0.0.1").made is None
    with pytest.raises(UsageError, match=r"0\.0\.0\.0 can be reached from other hosts.*pagefire keys init.*--insecure"):
        ListenerSecurity.chosen(None, False, "0.0.0.0")
    assert ListenerSecurity.chosen(None, True, "0.0.0.0").insecure
    assert ListenerSecurity.chosen(ring.good.folder, False, "0.0.0.0").made is not None


async def test_a_plain_caller_from_elsewhere(ring: KeyRing) -> None:
    near, far = tcp_pair()
    with near, far:
        near.setblocking(False)
        far.sendall(b"PGF2")
        with pytest.raises(
            PeerRefused, match=r"takes only TLS from other hosts: a plain connection came from 10\.0\.0\.1"
        ):
            await listener_with(ring.good).secured(near, "10.0.0.1")
        assert not (await ListenerSecurity(insecure=True).secured(near, "10.0.0.1")).authenticated
        assert near.recv(16) == b"PGF2"


# -- the bytes -------------------------------------------------------------------------------------------------------------


def test_buffers_and_ranges_arrive(wires: tuple[Wire, Wire]) -> None:
    source, destination = wires
    contents = os.urandom(1 << 20)
    there, here = (os.memfd_create(name) for name in ("there", "here"))
    os.write(here, contents)
    view = memoryview(contents)

    def send() -> None:
        source.send([b"head", view[:5], view[5:5000]], more=True)
        source.send_range(here, 5000, view[5000:600_000])
        source.send([view[600_000:600_100], b"", view[600_100:]])

    thread = threading.Thread(target=send)
    thread.start()
    assert destination.receive(4) == b"head"
    first, second = bytearray(3), bytearray(9997)
    destination.fill([memoryview(first), memoryview(second)])
    assert first + second == contents[:10_000]
    destination.fill_range(there, 10_000, 700_000)
    destination.fill_range(there, 710_000, len(contents) - 710_000)
    thread.join()
    assert os.pread(there, len(contents), 0)[10_000:] == contents[10_000:]
    for fd in (there, here):
        os.close(fd)


def test_an_end_inside_a_frame_is_a_lost_link(wires: tuple[Wire, Wire]) -> None:
    source, destination = wires
    source.send([b"half"])
    source.close()
    with pytest.raises(LinkLost, match="in the middle of a frame"):
        destination.fill([memoryview(bytearray(8))])
    assert destination.receive(8) == b""


@pytest.mark.parametrize("operation", ["receive", "fill", "fill_range"])
def test_close_wakes_a_blocked_thread(wires: tuple[Wire, Wire], operation: str) -> None:
    _, destination = wires
    file, ends = os.memfd_create("there"), list[bytes | BaseException | None]()

    def block() -> None:
        try:
            match operation:
                case "receive":
                    ends.append(destination.receive(10))
                case "fill":
                    destination.fill([memoryview(bytearray(10))])
                case _:
                    destination.fill_range(file, 0, 10)
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=block)
    thread.start()
    threading.Event().wait(0.05)
    destination.close()
    thread.join(PATIENCE_S)
    os.close(file)
    assert not thread.is_alive()
    assert ends == [b""] or isinstance(ends[0], LinkLost)


async def test_messages_pass_and_nothing_waits_for_bytes_that_are_here(ring: KeyRing) -> None:
    """Several frames in one record, larger ones in many: what OpenSSL holds already is read before the socket is waited for."""
    for pair in (wire_pair(), wire_pair(ring)):
        source, destination = (
            FrameStream(pair[0], Connection(Side.SOURCE)),
            FrameStream(pair[1], Connection(Side.DESTINATION)),
        )
        await source.send(simple(m.Hello))
        await destination.expect(m.Hello, PATIENCE_S)
        await destination.send(simple(m.Welcome))
        await source.expect(m.Welcome, PATIENCE_S)
        heads = [source.connection.send(simple(m.ClockProbe)) for _ in range(20)]
        for piece in source.wire.sealed(heads[0], b"".join(heads[1:])):
            await asyncio.get_running_loop().sock_sendall(source.sock, piece)
        await asyncio.sleep(0.05)
        for _ in heads:
            await destination.expect(m.ClockProbe, PATIENCE_S)
        for message in (m.Offer, m.Accept):
            sender, receiver = (source, destination) if message is m.Offer else (destination, source)
            await sender.send(simple(message))
            await receiver.expect(message, PATIENCE_S)
        payload = os.urandom(5 << 20)
        switchover = simple_switchover()
        async with asyncio.TaskGroup() as group:
            group.create_task(source.send(switchover, payload))
            arrival = await destination.receive()
            assert await destination.receive_payload(arrival.payload_bytes) == payload
        for stream in (source, destination):
            stream.close()


def simple_switchover() -> m.Switchover:
    from pagefire.protocol.pages import PageSet

    return m.Switchover(128, "raw", 0, [0], 0, PageSet.empty(), 0, 0)


async def test_a_record_that_was_changed_is_refused(ring: KeyRing) -> None:
    source, destination = wire_pair(ring)
    record = b"".join(source.sealed(b"handover", b""))
    source.sock.sendall(record[:-1] + bytes([record[-1] ^ 1]))
    with pytest.raises(RemoteProtocolError, match=r"TLS with the source failed: .*bad record mac"):
        destination.receive(8)
    for wire in (source, destination):
        wire.close()
