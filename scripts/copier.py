"""The bare copier: two processes that move the same bytes over the same kind of sockets, and do nothing else.

The yardstick of `pagefire bench throughput`: no tracking, no frames, no zero test, no acknowledgement but one byte at the end. It
uses for each case the quickest way that plain Python has here: sendfile from a memfd, and at the other end splice into a cold memfd
or recv_into a mapping that has its pages.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.pages import PAGE_BYTES

_CHUNK_BYTES = 8 << 20
_PIPE_BYTES = 1 << 20


def copy(source: memfd.Mapping, streams: int, congestion: bytes, *, cold: bool) -> float:
    """Move all of `source` into another process's fresh memory over loopback; gives bytes per second.

    Cold: that memory is taken inside the clock. Warm: before it.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    context = get_context("fork")
    here, there = context.Pipe()
    sink = context.Process(target=_sink, args=(listener, there, source.size_bytes, streams, cold))
    sink.start()
    try:
        socks = []
        for _ in range(streams):
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
            sock.connect(listener.getsockname())
            socks.append(sock)
        here.recv()
        began = time.perf_counter()
        _each_share(source.size_bytes, streams, lambda i, first, end: _send(socks[i], source.fd, first, end))
        here.recv()
        elapsed_s = time.perf_counter() - began
        for sock in socks:
            sock.close()
    finally:
        sink.join()
        listener.close()
    return source.size_bytes / elapsed_s


def _sink(listener: socket.socket, parent: Connection, size_bytes: int, streams: int, cold: bool) -> None:
    memory = memfd.Mapping(memfd.create("copier-sink", size_bytes))
    socks = [listener.accept()[0] for _ in range(streams)]
    if not cold:
        memory.populate(0, size_bytes // PAGE_BYTES)
    receive = _splice if cold else _receive
    parent.send("ready")
    _each_share(size_bytes, streams, lambda i, first, end: receive(socks[i], memory, first, end))
    parent.send("done")


def _each_share(size_bytes: int, streams: int, move: Callable[[int, int, int], None]) -> None:
    """Move each stream's share by a thread of its own."""
    share = -(-size_bytes // streams // PAGE_BYTES) * PAGE_BYTES
    threads = [
        threading.Thread(target=move, args=(i, i * share, min((i + 1) * share, size_bytes))) for i in range(streams)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _send(sock: socket.socket, fd: int, first: int, end: int) -> None:
    while first < end:
        first += os.sendfile(sock.fileno(), fd, first, min(_CHUNK_BYTES, end - first))


def _receive(sock: socket.socket, memory: memfd.Mapping, first: int, end: int) -> None:
    view = memory.array.data
    while first < end:
        first += sock.recv_into(view[first : min(first + _CHUNK_BYTES, end)], 0, socket.MSG_WAITALL)


def _splice(sock: socket.socket, memory: memfd.Mapping, first: int, end: int) -> None:
    pipe_out, pipe_in = os.pipe()
    fcntl.fcntl(pipe_in, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    while first < end:
        queued = os.splice(sock.fileno(), pipe_in, min(_PIPE_BYTES, end - first))
        while queued:
            moved = os.splice(pipe_out, memory.fd, queued, offset_dst=first)
            queued, first = queued - moved, first + moved
