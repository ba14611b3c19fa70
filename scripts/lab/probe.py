"""Two processes that find out what a link does to UDP, one on each side: `python -m pagefire.scripts.lab.probe`.

`far ADDRESS` prints its port, sends back what asks for an echo, and counts everything else; a line on its standard input makes it
print what it has counted, and begin anew. `near ADDRESS PORT` does what lines of JSON say: {"echo": COUNT, "gap_s": S} gives the
round trips that came back, {"send": COUNT, "payload_bytes": N, "per_s": RATE} sends so many packets (RATE 0: as fast as it can).
"""

from __future__ import annotations

import array
import json
import select
import socket
import struct
import sys
import time
from typing import Any

from pagefire.scripts.lab.priority import PROBES, run_first

_ECHO, _COUNT = 1, 2
_HEADER = struct.Struct("!BI")
LEAST_PAYLOAD_BYTES = 18
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 << 20
_TICK_S = 0.001
#: How long after the last echo was asked for the last one may come.
_PATIENCE_S = 2.0

Json = dict[str, Any]


def far(address: str) -> None:
    """Echo and count until standard input ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.bind((address, 0))
        sock.setblocking(False)
        print(json.dumps({"port": sock.getsockname()[1]}), flush=True)
        room = bytearray(2048)
        count = _Count()
        while True:
            ready, _, _ = select.select([sock, sys.stdin], [], [])
            if sock in ready:
                _take(sock, room, count)
            if sys.stdin in ready:
                if not sys.stdin.readline():
                    return
                print(json.dumps(count.told()), flush=True)
                count = _Count()


class _Count:
    """Packets by their numbers, so that one that came twice counts once; bytes and times for the rate count every one."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.packets = self.payload_bytes = self.first_ns = self.last_ns = 0

    def told(self) -> Json:
        return {
            "distinct": len(self.seen),
            "packets": self.packets,
            # From the first packet's arrival to the last one's: the first one's bytes came before that.
            "payload_bytes_after_first": self.payload_bytes,
            "seconds": (self.last_ns - self.first_ns) / 1e9,
        }


def _take(sock: socket.socket, room: bytearray, count: _Count) -> None:
    # No more at once than leaves standard input waiting for an instant.
    for _ in range(1000):
        try:
            size, peer = sock.recvfrom_into(room)
        except BlockingIOError:
            return
        kind, number = _HEADER.unpack_from(room)
        if kind == _ECHO:
            sock.sendto(memoryview(room)[:size], peer)
            continue
        now_ns = time.monotonic_ns()
        if count.packets:
            count.payload_bytes += size
        else:
            count.first_ns = now_ns
        count.last_ns = now_ns
        count.packets += 1
        count.seen.add(number)


def near(address: str, port: int) -> None:
    """Do what is asked until standard input ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        for line in sys.stdin:
            asked = json.loads(line)
            told = _echo(sock, **asked) if "echo" in asked else _send(sock, **asked)
            print(json.dumps(told), flush=True)


def _echo(sock: socket.socket, echo: int, gap_s: float) -> Json:
    sent_s = array.array("d", [0.0] * echo)
    trips_s: dict[int, float] = {}
    sent, room, next_s = 0, bytearray(2048), time.monotonic()
    while len(trips_s) < echo:
        now_s = time.monotonic()
        if sent < echo and now_s >= next_s:
            sent_s[sent] = now_s
            sock.send(_HEADER.pack(_ECHO, sent).ljust(LEAST_PAYLOAD_BYTES, b"\0"))
            sent, next_s = sent + 1, next_s + gap_s
            continue
        if sent == echo and now_s > next_s + _PATIENCE_S:
            break
        if select.select([sock], [], [], max(0.0, next_s - now_s) if sent < echo else _PATIENCE_S)[0]:
            sock.recv_into(room)
            _, number = _HEADER.unpack_from(room)
            trips_s.setdefault(number, time.monotonic() - sent_s[number])
    return {"rtts_s": [trips_s[number] for number in sorted(trips_s)]}


def _send(sock: socket.socket, send: int, payload_bytes: int, per_s: float) -> Json:
    packet = bytearray(payload_bytes)
    began_s, sent = time.monotonic(), 0
    while sent < send:
        due = min(send, int((time.monotonic() - began_s) * per_s) + 1) if per_s else send
        for number in range(sent, due):
            _HEADER.pack_into(packet, 0, _COUNT, number)
            sock.send(packet)
        sent = due
        if sent < send:
            time.sleep(_TICK_S)
    return {"seconds": time.monotonic() - began_s}


if __name__ == "__main__":
    run_first(PROBES)
    if sys.argv[1] == "far":
        far(sys.argv[2])
    else:
        near(sys.argv[2], int(sys.argv[3]))
