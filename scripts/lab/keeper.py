"""The keeper of a lab: a process of its own that holds its three network namespaces, and undoes all of it when nobody wants it.

The namespaces have no names: they are there as long as this process holds them, or one runs in them. When its standard input
closes, because the lab has ended or because whoever made it was killed, it kills what still runs in its namespaces, removes the
lab's folder, and ends. Nothing of the host's own network is ever touched. One lab at a time: a lock that the keeper holds. Of a
keeper that was killed itself the next one undoes what is left (inhabitants.py).

Asked by lines of JSON, answers by one line each. `python -m pagefire.scripts.lab.keeper`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pagefire.scripts.lab import wiring
from pagefire.scripts.lab.inhabitants import FOLDER_PREFIX, forget, kill_all_in, note, undo_what_is_left
from pagefire.scripts.lab.inside import CLONE_NEWNET, enter
from pagefire.scripts.lab.plan import SIDES
from pagefire.scripts.lab.shape import LinkShape

Json = dict[str, Any]

LOCK = Path("/run/pagefire-lab.lock")
_LOOK_S = 0.1


class Namespaces:
    """The host's own namespace and the lab's three, as descriptors."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._host = _own_namespace()
        self.fds: dict[str, int] = {}
        try:
            for side in SIDES:
                if libc.unshare(CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
                self.fds[side] = _own_namespace()
        finally:
            enter(self._host)

    @contextlib.contextmanager
    def inside(self, side: str) -> Iterator[None]:
        """Be in a namespace while this lasts."""
        enter(self.fds[side])
        try:
            yield
        finally:
            enter(self._host)

    @property
    def numbers(self) -> list[int]:
        """What tells them from all others, as long as somebody is there."""
        return [os.fstat(fd).st_ino for fd in self.fds.values()]


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def answer(asked: Json, spaces: Namespaces) -> Json:
    """Do what is asked of the network; raises OSError."""
    match asked:
        case {"ends": shape}:
            wiring.join(spaces.fds, spaces.inside, LinkShape(**shape))
        case {"netem": True}:
            with spaces.inside("wire"):
                return {"offered": wiring.offers_netem()}
        case {"qdiscs": shape}:
            with spaces.inside("wire"):
                wiring.add_qdiscs(LinkShape(**shape))
        case {"tuns": True}:
            with spaces.inside("wire"):
                wiring.route_by_tuns()
        case {"dropped": True}:
            with spaces.inside("wire"):
                return {"dropped": wiring.dropped_packets()}
        case _:
            raise OSError(f"the keeper does not know {asked}")
    return {}


def _locked(lock: IO[str]) -> bool:
    """Wait for other labs to end; False when nobody waits for this one any more."""
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                _say({"waiting": True})
                told = True
            # Nothing is asked before the lab is there: what can be read is the end.
            if select.select([sys.stdin], [], [], _LOOK_S)[0]:
                return False
        else:
            return True


def _say(words: Json) -> None:
    print(json.dumps(words), flush=True)


def main() -> None:
    # Only the end of whoever asked ends it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # To append: what a killed one has left there is read first.
    with LOCK.open("a+") as lock:
        if not _locked(lock):
            return
        undo_what_is_left(lock)
        try:
            spaces = Namespaces()
        except OSError as error:
            _say({"error": str(error)})
            return
        folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
        note(lock, spaces.numbers, folder)
        try:
            for side in SIDES:
                with spaces.inside(side):
                    wiring.mark(Path(folder).name)
            paths = {side: f"/proc/{os.getpid()}/fd/{fd}" for side, fd in spaces.fds.items()}
            _say({"folder": folder, "namespaces": paths})
            for line in sys.stdin:
                try:
                    _say(answer(json.loads(line), spaces))
                except OSError as error:
                    _say({"error": error.strerror or str(error)})
        finally:
            kill_all_in(spaces.numbers)
            shutil.rmtree(folder, ignore_errors=True)
            forget(lock)


if __name__ == "__main__":
    main()
