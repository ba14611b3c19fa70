"""A process beside the test that uses guest memory on command: maps it, opens the userfaultfd, stores, loads, zaps.

Tracking and demand paging are about another process than the host's, and one that waits for a page must not hold the test's GIL.
One request at a time over a unix socket. Single accesses are libc calls, which release the child's GIL, so that several of its
threads can wait for pages at once; the native loops of the stress tests are in native_users.py and imported when first asked for.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pagefire.guest_workload import channel
from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.pages import PAGE_BYTES

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 60.0
_MADV_DONTNEED, _MADV_REMOVE = 4, 9

_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.read.restype = ctypes.c_ssize_t


class MemoryUser:
    """The test's hold on such a process. One for many tests: `map` gives it fresh memory each time."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.support.memory_user", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                cwd=_ROOT,
                start_new_session=True,
            )
        self._connection.settimeout(_PATIENCE_S)
        self.pid = self._child.pid
        #: Where the memory that was mapped last lies in that process.
        self.address = 0

    def __enter__(self) -> MemoryUser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        """End the child at once, whatever it waits for."""
        self._child.kill()
        self._child.wait()

    def ask(self, op: str, fds: Sequence[int] = (), **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """Ask and wait for the reply and its descriptors, which are the caller's; RuntimeError if it failed there."""
        channel.send(self._connection, {"op": op, **arguments}, fds)
        received = channel.receive(self._connection)
        assert received is not None, f"the child died in {op}"
        if "error" in received[0]:
            raise RuntimeError(f"{op}: {received[0]['error']}")
        return received

    def map(self, memory: memfd.Mapping) -> None:
        """Let the child map this memory, in place of what it had."""
        self.address = self.ask("map", [memory.fd])[0]["address"]

    def unmap(self) -> None:
        """Let the child give back what it mapped last."""
        self.ask("unmap")

    def open_uffd(self, features: userfaultfd.Feature, *, keep: bool = False) -> int:
        """Open a userfaultfd there; the caller owns it. `keep`: the child keeps a copy until `close_uffd` or `map`."""
        return self.ask("open_uffd", features=int(features), keep=keep)[1][0]

    def store(self, pages: Sequence[int], value: int) -> None:
        """Fill a line in each of these pages with a byte."""
        self.ask("store", pages=list(pages), value=value)

    def load(self, pages: Sequence[int], threads: int = 1) -> list[list[int]]:
        """Read whole pages, by so many threads at once; gives the distinct bytes found in each page, by any thread."""
        return self.ask("load", pages=list(pages), threads=threads)[0]["found"]

    def zap(self, pages: Sequence[int]) -> None:
        """Take pages out of the child's page table (MADV_DONTNEED); the file keeps them."""
        self._advise(pages, 1, _MADV_DONTNEED)

    def zap_run(self, start: int, count: int) -> None:
        """Do the same for a run of pages in one call."""
        self._advise([start], count, _MADV_DONTNEED)

    def punch(self, pages: Sequence[int]) -> None:
        """Give pages back (MADV_REMOVE): the file has holes there then, which read as zero."""
        self._advise(pages, 1, _MADV_REMOVE)

    def read_into(self, page: int, contents: bytes) -> int:
        """Let read(2) store into a page; gives 0 or the error number."""
        return self.ask("read_into", page=page, contents=contents)[0]["errno"]

    def _advise(self, starts: Sequence[int], count: int, advice: int) -> None:
        self.ask("advise", starts=list(starts), count=count, advice=advice)

    def page_table_bytes(self) -> int:
        """Give the memory that the child's page tables take (VmPTE)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmPTE:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def memory_flags(self) -> set[str]:
        """Give the flags of the mapped memory (VmFlags in smaps; uw: write-tracked by userfaultfd, um and ui: demand-paged)."""
        smaps = Path(f"/proc/{self.pid}/smaps").read_text()
        block = smaps.split(f"\n{self.address:x}-", 1)[1]
        return set(re.search(r"VmFlags: (.*)", block)[1].split())  # type: ignore[index]


class _Child:
    def __init__(self) -> None:
        self.memory: memfd.Mapping | None = None
        self._uffd = -1
        self._stress: Any = None

    def on_map(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        self.on_close_uffd(request, fds)
        if self.memory is not None:
            self.memory.close()
        self.memory = memfd.Mapping(fds[0])
        return {"address": self.memory.address}, []

    def on_unmap(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        return {}, []

    def on_open_uffd(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        self._uffd = userfaultfd.open_uffd(request["features"])
        return {}, [self._uffd]

    def after_open_uffd(self, request: channel.Message) -> None:
        if not request["keep"]:
            self.on_close_uffd(request, [])

    def on_close_uffd(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        if self._uffd >= 0:
            os.close(self._uffd)
            self._uffd = -1
        return {}, []

    def on_store(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        for page in request["pages"]:
            _libc.memset(self._at(page) + 128, request["value"], 64)
        return {}, []

    def on_load(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        found: list[set[int]] = [set() for _ in request["pages"]]

        def load() -> None:
            seen = ctypes.create_string_buffer(PAGE_BYTES)
            for index, page in enumerate(request["pages"]):
                _libc.memcpy(seen, self._at(page), PAGE_BYTES)
                found[index] |= set(seen.raw)

        threads = [threading.Thread(target=load) for _ in range(request["threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"found": [sorted(each) for each in found]}, []

    def on_advise(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        for page in request["starts"]:
            if _libc.madvise(self._at(page), request["count"] * PAGE_BYTES, request["advice"]):
                raise OSError(ctypes.get_errno(), f"madvise {request['advice']}")
        return {}, []

    def on_read_into(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        reading, writing = os.pipe()
        try:
            os.write(writing, request["contents"])
            count = _libc.read(reading, self._at(request["page"]), len(request["contents"]))
            error = ctypes.get_errno() if count < 0 else 0
            assert error or count == len(request["contents"])
            return {"errno": error}, []
        finally:
            os.close(reading)
            os.close(writing)

    def on_stress(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        """Begin a stress: what it does is `kind`, a class of native_users.py; its own requests go to its `on_...`."""
        from tests.support import native_users

        assert self.memory is not None
        self._stress = getattr(native_users, request["kind"])(self.memory, fds, request)
        return {}, []

    def on_tell_stress(self, request: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]]:
        return getattr(self._stress, request["what"])(request) or {}, []

    def _at(self, page: int) -> int:
        assert self.memory is not None
        assert 0 <= page < self.memory.pages
        return self.memory.address + page * PAGE_BYTES


def _serve(connection: socket.socket) -> None:
    child = _Child()
    while (received := channel.receive(connection)) is not None:
        request, fds = received
        operation: Callable[[channel.Message, list[int]], tuple[channel.Message, list[int]]]
        operation = getattr(child, f"on_{request['op']}")
        try:
            reply, sent = operation(request, fds)
        except Exception as error:
            reply, sent = {"error": f"{type(error).__name__}: {error}"}, []
        channel.send(connection, reply, sent)
        if request["op"] == "open_uffd" and sent:
            child.after_open_uffd(request)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # native threads may still run on the memory
