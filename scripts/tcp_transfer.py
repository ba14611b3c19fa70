"""A plain TCP transfer between two processes, to learn what a link really carries: `python -m pagefire.scripts.tcp_transfer`.

`receive ADDRESS [SECONDS]` prints the port that it listens on, takes one connection to its end, or for so long, and prints
{"bytes": ..., "seconds": ...} as one JSON line; its clock runs from the first bytes to the last. `send ADDRESS PORT SECONDS` sends
zeros for so long, or until nobody takes them any more. `transfer` runs both.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0


class Transfer(NamedTuple):
    """What came, in payload bytes, and from the first to the last of them."""

    payload_bytes: int
    seconds: float

    @property
    def bits_per_s(self) -> float:
        return self.payload_bytes * 8 / self.seconds


def transfer(
    source_before: Sequence[str],
    dest_before: Sequence[str],
    address: str,
    seconds: float,
    longest_s: float | None = None,
) -> Transfer:
    """Send plain TCP from one side to `address` on the other; raises SubprocessError, ValueError where nothing came.

    The `before` words run a command on a side. The receiver counts for `longest_s`, or all that was sent.
    """
    module = [sys.executable, "-m", "pagefire.scripts.tcp_transfer"]
    at_most = [str(longest_s)] if longest_s is not None else []
    with subprocess.Popen(
        [*dest_before, *module, "receive", address, *at_most], stdout=subprocess.PIPE, text=True
    ) as receiver:
        try:
            assert receiver.stdout is not None
            port = receiver.stdout.readline().strip()
            sender = [*source_before, *module, "send", address, port, str(seconds)]
            subprocess.run(sender, check=True, timeout=seconds + _TIMEOUT_S)
            came = json.loads(receiver.stdout.readline())
        finally:
            receiver.terminate()
    if not came["seconds"]:
        raise ValueError("nothing came")
    return Transfer(int(came["bytes"]), float(came["seconds"]))


def receive(address: str, longest_s: float | None = None) -> None:
    """Take one connection to its end, or for so long, and print what came."""
    buffer, total_bytes = bytearray(_CHUNK_BYTES), 0
    with socket.create_server((address, 0)) as server:
        server.settimeout(_TIMEOUT_S)
        print(server.getsockname()[1], flush=True)
        with server.accept()[0] as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.recv_into(buffer)
            began_s = time.monotonic()
            while received := connection.recv_into(buffer):
                total_bytes += received
                if longest_s is not None and time.monotonic() - began_s > longest_s:
                    break
            ended_s = time.monotonic()
    print(json.dumps({"bytes": total_bytes, "seconds": ended_s - began_s}), flush=True)


def send(address: str, port: int, seconds: float) -> None:
    """Send zeros for so many seconds."""
    chunk = bytes(_CHUNK_BYTES)
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        end_s = time.monotonic() + seconds
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end_s:
                connection.sendall(chunk)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2], *map(float, sys.argv[3:]))
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
