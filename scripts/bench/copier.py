"""The bare copier: two processes that move the same bytes over the same kind of sockets, and do nothing else.

The yardstick of throughput and CPU time: no tracking, no frames, no zero test, no acknowledgement but one byte at the end. It
uses for each case the quickest way that plain Python has here: sendfile from a memfd, and at the other end splice into a cold memfd
or recv_into a mapping that has its pages. That is so for 2 MiB pages as well: a cold memfd, filled through a mapping that asks for
them, took 0.31-0.41 GB/s, spliced 0.25-0.89 (1 GiB, three alternating rounds on a busy machine). hugetlb has neither sendfile nor
splice, so that there both ends go through their mappings, and no hole, so that it is never cold.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from pagefire.guest_workload.guest_config import Backing
from pagefire.guest_workload.linux import memfd
from pagefire.protocol.pages import PAGE_BYTES

_CHUNK_BYTES = 8 << 20
_PIPE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Copied:
    """What one copy took: bytes per second, and each process's CPU seconds, user and system, from the first byte to the last."""

    bytes_per_s: float
    sender_cpu_s: float
    receiver_cpu_s: float


def memory_of(name: str, size_bytes: int, backing: str) -> memfd.Mapping:
    """Make memory of this backing; the caller closes it. Raises OSError where the host has none."""
    memory = memfd.Mapping(memfd.create(name, size_bytes, hugetlb=backing == Backing.HUGETLB.value))
    if backing == Backing.THP.value:
        memory.prefer_huge()
    return memory


def copy(source: memfd.Mapping, streams: int, congestion: bytes, backing: str, *, cold: bool) -> Copied:
    """Move all of `source` into another process's fresh memory of this backing, over loopback.

    Cold: that memory is taken inside the clock. Warm: before it.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    context = get_context("fork")
    here, there = context.Pipe()
    sink = context.Process(target=_sink, args=(listener, there, source.size_bytes, streams, backing, cold))
    sink.start()
    try:
        socks = []
        for _ in range(streams):
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
            sock.connect(listener.getsockname())
            socks.append(sock)
        send = _send if source.unit_pages == 1 else _send_mapped
        here.recv()
        began, cpu_s = time.perf_counter(), time.process_time()
        _each_share(source.size_bytes, streams, lambda i, first, end: send(socks[i], source, first, end))
        receiver_cpu_s: float = here.recv()
        elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        for sock in socks:
            sock.close()
    finally:
        sink.join()
        listener.close()
    return Copied(source.size_bytes / elapsed_s, cpu_s, receiver_cpu_s)


def _sink(listener: socket.socket, parent: Connection, size_bytes: int, streams: int, backing: str, cold: bool) -> None:
    memory = memory_of("copier-sink", size_bytes, backing)
    socks = [listener.accept()[0] for _ in range(streams)]
    if not cold:
        memory.populate(0, size_bytes // PAGE_BYTES)
    receive = _splice if cold and memory.unit_pages == 1 else _receive
    parent.send("ready")
    cpu_s = time.process_time()
    _each_share(size_bytes, streams, lambda i, first, end: receive(socks[i], memory, first, end))
    parent.send(time.process_time() - cpu_s)


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


def _send(sock: socket.socket, memory: memfd.Mapping, first: int, end: int) -> None:
    while first < end:
        first += os.sendfile(sock.fileno(), memory.fd, first, min(_CHUNK_BYTES, end - first))


def _send_mapped(sock: socket.socket, memory: memfd.Mapping, first: int, end: int) -> None:
    view = memory.array.data
    while first < end:
        first += sock.send(view[first : min(first + _CHUNK_BYTES, end)])


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
