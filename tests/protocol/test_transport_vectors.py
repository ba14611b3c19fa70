"""Scattered runs over real sockets: whatever the runs, they arrive in order, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.protocol.errors import LinkLost
from pagefire.protocol.transport import vectors
from pagefire.protocol.transport.wire import Wire
from tests.support.secured import wire_pair

SIZE = 1 << 20
Runs = list[tuple[int, int]]


def offsets(runs: Runs) -> tuple[vectors.Offsets, vectors.Offsets]:
    starts, stops = np.array(runs, np.int64).reshape(-1, 2).T
    return starts.copy(), stops.copy()


@st.composite
def some_runs(draw: st.DrawFn) -> Runs:
    edges = sorted(draw(st.lists(st.integers(0, SIZE), max_size=40)))
    return list(zip(edges[::2], edges[1::2], strict=False))


def pass_over(one: Wire, other: Wire, head: bytes, contents: bytearray, runs: Runs) -> tuple[bytes, bytearray]:
    """Send runs of `contents` behind a head; gives the head and the room that was filled with them."""
    room, starts_and_stops = bytearray(SIZE), offsets(runs)
    sender = threading.Thread(target=one.send_runs, args=(head, memoryview(contents), *starts_and_stops))
    sender.start()
    came = bytearray(len(head))
    other.fill([memoryview(came)])
    other.fill_runs(memoryview(room), *starts_and_stops)
    sender.join()
    return bytes(came), room


def flood(wire: Wire) -> None:
    """Send more than any socket holds."""
    for _ in range(100):
        wire.send_runs(b"head", memoryview(bytearray(SIZE)), *offsets([(0, SIZE)]))


def test_runs_arrive_where_they_belong(wires: tuple[Wire, Wire]) -> None:
    contents = bytearray(np.random.default_rng(1).bytes(SIZE))

    @given(runs=some_runs(), head=st.binary(min_size=1, max_size=50))
    @settings(max_examples=40, deadline=None)
    def check(runs: Runs, head: bytes) -> None:
        came, room = pass_over(*wires, head, contents, runs)
        expected = bytearray(SIZE)
        for start, stop in runs:
            expected[start:stop] = contents[start:stop]
        assert came == head
        assert room == expected

    check()


def test_more_runs_than_a_call_takes(wires: tuple[Wire, Wire]) -> None:
    contents = bytearray(np.random.default_rng(2).bytes(SIZE))
    runs = [(at, at + 100) for at in range(0, SIZE - 256, 256)]
    assert len(runs) > 3 * 1024
    before = wires[0].sent_bytes
    _, room = pass_over(*wires, b"head", contents, runs)
    assert all(room[start:stop] == contents[start:stop] for start, stop in runs)
    assert sum(room) == sum(sum(contents[start:stop]) for start, stop in runs)
    assert wires[0].sent_bytes - before >= 4 + 100 * len(runs)


def test_a_signal_in_the_middle_changes_nothing() -> None:
    """What a call had moved until then, half a run perhaps, is not moved again."""
    one, other = wire_pair()
    contents = bytearray(np.random.default_rng(3).bytes(SIZE))
    runs, room = [(at, at + 4000) for at in range(0, SIZE, 4096)], bytearray(SIZE)
    stream = b"".join(contents[start:stop] for start, stop in runs)
    signals = 0

    def note(*_: object) -> None:
        nonlocal signals
        signals += 1

    def send() -> None:
        for at in range(0, len(stream), 12_345):
            one.send([stream[at : at + 12_345]])
            time.sleep(0.001)
            signal.pthread_kill(receiver, signal.SIGUSR1)

    receiver, old = threading.get_ident(), signal.signal(signal.SIGUSR1, note)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        other.fill_runs(memoryview(room), *offsets(runs))
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, old)
        one.close()
        other.close()
    assert signals
    assert all(room[start:stop] == contents[start:stop] for start, stop in runs)


def test_a_peer_that_goes_is_a_lost_link() -> None:
    one, other = wire_pair()
    one.send([b"half"])
    one.close()
    with pytest.raises(LinkLost, match="ended in the middle"):
        other.fill_runs(memoryview(bytearray(SIZE)), *offsets([(0, 3), (10, 20)]))
    with pytest.raises(LinkLost, match="broke"):
        flood(other)
    other.close()
    with pytest.raises(LinkLost):
        other.send_runs(b"head", memoryview(bytearray(SIZE)), *offsets([(0, 5)]))


def test_a_run_outside_of_the_buffer_is_refused_before_a_byte_moves() -> None:
    ours, theirs = socket.socketpair()
    room = memoryview(bytearray(100))
    for runs in ([(90, 101)], [(-1, 5)], [(0, 5), (200, 201)]):
        with pytest.raises(ValueError, match="outside"):
            vectors.send(ours.fileno(), b"", room, *offsets(runs), 0)
        with pytest.raises(ValueError, match="outside"):
            vectors.receive(ours.fileno(), room, *offsets(runs))
    ours.close()
    assert theirs.recv(10) == b""
    theirs.close()
    with pytest.raises(OSError, match=os.strerror(9)):
        vectors.send(-1, b"x", room, *offsets([]), 0)
