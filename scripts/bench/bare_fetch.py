"""The bare fetch: what a page fault that needs a page from another process cannot do without.

Three processes: one touches the pages of its memory in an order by chance, each for the first time; this one reads each fault from
the userfaultfd, asks a third for the page over a loopback TCP connection, receives it into the memory file and shows it
(UFFDIO_CONTINUE). Blocking calls, one fault at a time, no frames, no ledger, no pages pushed beside it. Its latency is told as the
fault handler's is: from the reading of the fault to the page shown.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from multiprocessing import get_context

import numpy as np

from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES

#: Between two touches: a handler that is never asleep would show nothing of waking up.
_NAP_S = 0.0005
_PATIENCE_S = 10.0
_PAGE = struct.Struct("<Q")


def fetch_latencies_us(faults: int) -> list[float]:
    """Serve so many faults; gives the latency of each in microseconds. Raises PagefireError where none comes."""
    context = get_context("fork")
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(contextlib.closing(memfd.Mapping(memfd.create("bare-fetch", faults * PAGE_BYTES))))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        for work, arguments in ((_serve, (listener,)), (_touch, (theirs, memory))):
            process = context.Process(target=work, args=arguments)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        link = stack.enter_context(socket.create_connection(listener.getsockname()))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _, (uffd,), _, _ = socket.recv_fds(ours, 1, 1)
        stack.callback(os.close, uffd)
        return _handle(uffd, link, memory, faults)


def _handle(uffd: int, link: socket.socket, memory: memfd.Mapping, faults: int) -> list[float]:
    contents, latencies_us, poll = memory.array.data, list[float](), select.poll()
    poll.register(uffd, select.POLLIN)
    while len(latencies_us) < faults:
        if not poll.poll(_PATIENCE_S * 1000):
            raise PagefireError("the bare fetch saw no fault", f"for {_PATIENCE_S:g} s")
        began_ns = time.monotonic_ns()
        for address in userfaultfd.read_faults(uffd)["address"].tolist():
            page = (address - memory.address) // PAGE_BYTES
            link.sendall(_PAGE.pack(page))
            link.recv_into(contents[page * PAGE_BYTES : (page + 1) * PAGE_BYTES], 0, socket.MSG_WAITALL)
            _, error = userfaultfd.continue_range(uffd, memory.address + page * PAGE_BYTES, PAGE_BYTES)
            if error:
                raise OSError(error, f"UFFDIO_CONTINUE: {os.strerror(error)}")
            latencies_us.append((time.monotonic_ns() - began_ns) / 1e3)
    return latencies_us


def _touch(to_handler: socket.socket, memory: memfd.Mapping) -> None:
    """Touch each page, in a process of its own: a Python thread that waits for a page holds the GIL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uffd = userfaultfd.open_uffd(userfaultfd.DEMAND_PAGING)
    modes = userfaultfd.Mode.MISSING | userfaultfd.Mode.MINOR
    userfaultfd.register(uffd, memory.address, memory.size_bytes, modes)
    socket.send_fds(to_handler, [b"!"], [uffd])
    for page in np.random.default_rng(1).permutation(memory.pages).tolist():
        time.sleep(_NAP_S)
        memory.array[page * PAGE_BYTES] = 1


def _serve(listener: socket.socket) -> None:
    """Send a page for each number that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link, _ = listener.accept()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    page = np.random.default_rng(1).bytes(PAGE_BYTES)
    while link.recv(_PAGE.size, socket.MSG_WAITALL):
        link.sendall(page)
