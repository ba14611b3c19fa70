"""A plain TCP transfer between two processes, to learn what a link really carries: `python -m pagefire.scripts.tcp_transfer`.

`receive ADDRESS` prints the port that it listens on, takes one connection to its end, and prints {"bytes": ..., "seconds": ...} as
one JSON line; its clock runs from the first bytes to the last. `send ADDRESS PORT SECONDS` sends zeros for so long.
"""

from __future__ import annotations

import json
import socket
import sys
import time

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0


def receive(address: str) -> None:
    """Take one connection to its end and print what came."""
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
            ended_s = time.monotonic()
    print(json.dumps({"bytes": total_bytes, "seconds": ended_s - began_s}), flush=True)


def send(address: str, port: int, seconds: float) -> None:
    """Send zeros for so many seconds."""
    chunk = bytes(_CHUNK_BYTES)
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            connection.sendall(chunk)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
