"""The emulator: a process of its own in the wire's namespace that carries packets between two TUN devices.

Asked by lines of JSON on its standard input, answers by one line each; when that closes it ends, and its devices are gone with
it. It runs before everything else that is not real-time (SCHED_FIFO): a wire does not slow down when the hosts at its ends are
busy. Where that is refused it is as nice as it may be, and says so. `python -m pagefire.scripts.lab.emulator`.

The loop is stopped for a new shape; what was on its way then is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pagefire.guest_workload import jit_cache
from pagefire.scripts.lab.plan import TUN_DEST, TUN_SOURCE
from pagefire.scripts.lab.priority import WIRE, run_first
from pagefire.scripts.lab.shape import LinkShape

Json = dict[str, Any]

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_POLLIN = 1


def open_tun(name: str) -> int:
    """Make a TUN device of this name in this process's namespace; gives its descriptor, which does not block."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


@dataclass
class Emulator:
    """Two devices, two lines, and the thread that carries packets between them while there is one."""

    source_fd: int
    dest_fd: int
    stop_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    stop: Any = field(default_factory=lambda: np.zeros(1, np.uint64))
    scheduling: str = ""
    _thread: threading.Thread | None = None
    _lines: tuple[Any, Any] | None = None
    _cpu_s: float = 0.0
    _began_s: float = 0.0

    def shape(self, shape: LinkShape) -> None:
        """Do this from now on; counters begin at zero."""
        from pagefire.scripts.lab import line, loop

        self.end()
        # A seed for each direction: what one of them loses is not what the other loses.
        self._lines = (line.make_line(shape, shape.seed), line.make_line(shape, shape.seed + (1 << 32)))
        # Told to stop before it begins: compiled, or taken from the cache, before anybody waits for packets.
        self.stop[0] = 1
        loop.run(*self._lines, *self._for_loop())
        self.stop[0] = 0
        self._thread = threading.Thread(target=self._carry, name="wire", daemon=True)
        self._cpu_s, self._began_s = _cpu_s(), time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """Stop carrying."""
        if self._thread is not None:
            self.stop[0] = 1
            os.eventfd_write(self.stop_fd, 1)
            self._thread.join()
            os.eventfd_read(self.stop_fd)
            self._thread = None

    def counters(self) -> Json:
        """Give what each direction has counted since it was shaped, and what this process took of a CPU."""
        from pagefire.scripts.lab import line

        if self._lines is None:
            return {}
        seconds = time.monotonic() - self._began_s
        forth, back = (line.counted(one) for one in self._lines)
        return {"forth": forth, "back": back, "seconds": seconds, "cpu_s": _cpu_s() - self._cpu_s}

    def _carry(self) -> None:
        from pagefire.scripts.lab import loop

        assert self._lines is not None
        self.scheduling = run_first(WIRE)
        loop.run(*self._lines, *self._for_loop())

    def _for_loop(self) -> tuple[Any, ...]:
        """Give what the loop takes beside the lines: descriptors, pollfds, room for a timespec, the word that stops it."""
        polled = np.array([self.source_fd, _POLLIN, self.dest_fd, _POLLIN, self.stop_fd, _POLLIN], np.int32)
        return self.source_fd, self.dest_fd, polled, np.zeros(2, np.int64), int(self.stop.ctypes.data)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    # Whoever asked ends it, by closing its input.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    here = Path(__file__).parent
    jit_cache.use(tuple(here / name for name in ("line.py", "loop.py", "shape.py", "tc_requests.py")))
    emulator = Emulator(open_tun(TUN_SOURCE), open_tun(TUN_DEST))
    emulator.shape(LinkShape())
    print(json.dumps({"ready": True}), flush=True)
    for request in sys.stdin:
        asked = json.loads(request)
        if "shape" in asked:
            emulator.shape(LinkShape(**asked["shape"]))
        print(json.dumps(emulator.counters() | {"scheduling": emulator.scheduling}), flush=True)
    emulator.end()


if __name__ == "__main__":
    main()
