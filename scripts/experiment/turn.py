"""One migration at a time on a machine: experiments of this user wait for each other, whoever starts them.

Parallel migrations on one machine spoil each other's timings, and a Dask cluster, or a second terminal, may well start two. Who
holds the turn is bound to an abstract unix address, which belongs to the machine's network namespace and leaves no file: it is free
again when its process ends, however it does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator

_LOOK_S = 0.1


@contextlib.contextmanager
def one_at_a_time(waiting: Callable[[], None] = lambda: None, name: str = "experiment") -> Iterator[None]:
    """Wait for the turn and hold it; `waiting` is called once where somebody else has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as turn:
        told = False
        while not _bound(turn, f"\0pagefire-{name}-{os.getuid()}"):
            if not told:
                waiting()
                told = True
            time.sleep(_LOOK_S)
        yield


def _bound(turn: socket.socket, address: str) -> bool:
    try:
        turn.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
