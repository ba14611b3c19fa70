"""Two clocks: the offset comes from the quickest round trip, and its error is half of that."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from itertools import chain, count, repeat
from types import SimpleNamespace

import pytest

from pagefire.protocol import messages as m
from pagefire.protocol.connection import Connection
from pagefire.protocol.errors import LinkLost, RemoteProtocolError
from pagefire.protocol.report import Clock
from pagefire.protocol.state import Role, Side
from pagefire.protocol.transport.clock import compare_clocks, machine_identity
from pagefire.protocol.transport.frame_stream import FrameStream
from pagefire.protocol.transport.wire import Wire
from tests.protocol.golden.conversation import simple

Answer = Callable[[m.ClockProbe], m.ClockReading]
AHEAD_NS = 3_600_000_000_000


@pytest.fixture
async def streams() -> AsyncIterator[tuple[FrameStream, FrameStream]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    source = FrameStream(Wire(near), Connection(Side.SOURCE, Role.CONTROL))
    destination = FrameStream(Wire(far), Connection(Side.DESTINATION))
    await source.send(simple(m.Hello))
    await destination.expect(m.Hello)
    await destination.send(simple(m.Welcome))
    await source.expect(m.Welcome)
    yield source, destination
    source.close()
    destination.close()


async def compare(streams: tuple[FrameStream, FrameStream], answer: Answer) -> Clock:
    source, destination = streams

    async def serve() -> None:
        while True:
            await destination.send(answer(await destination.expect(m.ClockProbe)))

    serving = asyncio.create_task(serve())
    try:
        return await compare_clocks(source, "another machine", 5)
    finally:
        serving.cancel()
        await asyncio.wait({serving})


def test_identity_names_boot_and_time_namespace() -> None:
    assert machine_identity() == machine_identity()
    boot, namespace = machine_identity().split("/")
    assert len(boot) == 36
    assert namespace.startswith("time:[")


async def test_one_machine_asks_nothing(streams: tuple[FrameStream, FrameStream]) -> None:
    source, _ = streams
    before = source.sent_bytes
    assert await compare_clocks(source, machine_identity(), 1) == Clock(shared=True, offset_s=0.0, error_s=0.0)
    assert source.sent_bytes == before


async def test_the_offset_is_found_within_its_error(streams: tuple[FrameStream, FrameStream]) -> None:
    clock = await compare(streams, lambda probe: m.ClockReading(probe.sent_ns, time.monotonic_ns() + AHEAD_NS))
    assert not clock.shared
    assert clock.error_s > 0
    assert abs(clock.offset_s - AHEAD_NS / 1e9) <= clock.error_s + 1e-6


async def test_the_quickest_trip_counts(
    streams: tuple[FrameStream, FrameStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of the test's own: trips of 9, 5, 2 and then 7 us, whose way there takes all of them but 1 us."""
    trips_ns = chain((9_000, 5_000, 2_000), repeat(7_000))
    trip_ns, asked = 0, count()

    def monotonic_ns() -> int:
        nonlocal trip_ns
        at = next(asked)
        if at % 2 == 0:
            trip_ns = next(trips_ns)
            return at * 1_000_000
        return (at - 1) * 1_000_000 + trip_ns

    monkeypatch.setattr("pagefire.protocol.transport.clock.time", SimpleNamespace(monotonic_ns=monotonic_ns))
    clock = await compare(streams, lambda probe: m.ClockReading(probe.sent_ns, probe.sent_ns + trip_ns - 1_000))
    assert clock == Clock(shared=False, offset_s=0.0, error_s=1e-6)
    assert next(asked) > 2 * 4


async def test_an_answer_to_another_probe_is_refused(streams: tuple[FrameStream, FrameStream]) -> None:
    with pytest.raises(RemoteProtocolError, match="another clock probe"):
        await compare(streams, lambda probe: m.ClockReading(probe.sent_ns - 1, time.monotonic_ns()))


async def test_no_answer(streams: tuple[FrameStream, FrameStream]) -> None:
    with pytest.raises(LinkLost, match="no ClockReading"):
        await compare_clocks(streams[0], "another machine", 0.05)
