"""Where page contents land: straight from the socket into the guest's memory file.

Two ways in. Pages that are not there yet are spliced (socket, pipe, memfd): the kernel takes fresh pages and fills them without
zeroing them first or faulting them into a mapping: 2.1-2.7 GB/s against 0.6-0.7 for recv into cold memory and 0.5-1.8 for recv
behind a populating thread (bare sockets, 1 GiB over loopback with bbr, three alternating rounds; 1.0-2.1 spliced with cubic on a
busier machine). Pages that are there are received through the mapping, which copies once and needs no pipe: 4.5-7.6 GB/s against
3.0-4.8 (cubic). So nothing is populated ahead.

Both make a page present before it is full. Before the resume nobody looks; after it the guest's own mapping shows a page only once
it was published, see publishing.py.
"""

from __future__ import annotations

import fcntl
import os
import socket

from pagefire.dest_host.ledger import Ledger
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.errors import LinkLost
from pagefire.protocol.pages import PAGE_BYTES, PageSet

#: Runs of at least this many pages are worth a pipe.
SPLICE_PAGES = 16
_PIPE_BYTES = 1 << 20
#: recvmsg takes at most 1,024 buffers.
_RECEIVE_BUFFERS = 512


class Landing:
    """Fills pages of one guest from one socket; used by one thread. Owns a pipe, made when it is first needed, not the socket."""

    def __init__(self, sock: socket.socket, memory: Mapping, ledger: Ledger) -> None:
        self._sock = sock
        self._memory_fd = memory.fd
        self._bytes = memory.array.data
        self._pages = memory.array.reshape(-1, PAGE_BYTES)
        self._ledger = ledger
        self._nowhere = memoryview(bytearray(PAGE_BYTES))
        self._pipe: tuple[int, int] | None = None
        self._pipe_bytes = 0

    def fill(self, pages: PageSet, unwanted: PageSet | None = None) -> None:
        """Read the contents of `pages` from the socket into memory, those of `unwanted`, a part of them, to nowhere.

        Raises LinkLost, and pages may then be half-filled.
        """
        wanted = pages - unwanted if unwanted else pages
        short: list[memoryview] = []
        for start, stop, keep in _in_order(wanted, unwanted or PageSet.empty()):
            first, end = start * PAGE_BYTES, stop * PAGE_BYTES
            if not keep:
                short += [self._nowhere] * (stop - start)
            elif stop - start < SPLICE_PAGES or self._ledger.filled(start, stop):
                short.append(self._bytes[first:end])
            else:
                self._receive(short)
                short = []
                self._splice(first, end - first)
            if len(short) >= _RECEIVE_BUFFERS:
                self._receive(short)
                short = []
        self._receive(short)
        self._ledger.mark_filled(wanted)

    def zero(self, pages: PageSet) -> None:
        """Make `pages` read as zero. Only pages that have contents are written: a hole is zero already."""
        stale = self._ledger.filled_among(pages)
        for start, stop in zip(stale.starts.tolist(), stale.stops.tolist(), strict=True):
            self._pages[start:stop] = 0

    def place_page(self, page: int, contents: bytes) -> None:
        """Copy the contents of one page into memory; the ledger is the caller's to tell."""
        self._bytes[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = contents

    def place(self, pages: PageSet, among: PageSet, contents: bytes) -> None:
        """Copy some of the pages `among`, whose `contents` these are, into memory; the ledger is the caller's to tell."""
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
            at = among.rank(start) * PAGE_BYTES
            self._bytes[start * PAGE_BYTES : stop * PAGE_BYTES] = contents[at : at + (stop - start) * PAGE_BYTES]

    def close(self) -> None:
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    def _receive(self, buffers: list[memoryview]) -> None:
        try:
            while buffers:
                count = self._sock.recvmsg_into(buffers[:_RECEIVE_BUFFERS], 0, socket.MSG_WAITALL)[0]
                if not count:
                    raise LinkLost("a page connection ended in the middle of a frame")
                buffers = _after(buffers, count)
        except OSError as error:
            raise LinkLost("a page connection broke", error.strerror or str(error)) from error

    def _splice(self, offset: int, size: int) -> None:
        if self._pipe is None:
            self._pipe = os.pipe()
            self._pipe_bytes = _grow_pipe(self._pipe[1])
        pipe_out, pipe_in = self._pipe
        try:
            while size:
                queued = os.splice(self._sock.fileno(), pipe_in, min(size, self._pipe_bytes))
                if not queued:
                    raise LinkLost("a page connection ended in the middle of a frame")
                size -= queued
                while queued:
                    moved = os.splice(pipe_out, self._memory_fd, queued, offset_dst=offset)
                    queued, offset = queued - moved, offset + moved
        except OSError as error:
            raise LinkLost("a page connection broke", error.strerror or str(error)) from error


def _in_order(wanted: PageSet, unwanted: PageSet) -> list[tuple[int, int, bool]]:
    """Give the runs of two sets that share no page as (start, stop, wanted), in ascending order."""
    runs = [
        (start, stop, keep)
        for pages, keep in ((wanted, True), (unwanted, False))
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True)
    ]
    return sorted(runs) if unwanted else runs


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Drop what `count` received bytes have filled."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _grow_pipe(fd: int) -> int:
    """Ask for a large pipe; gives what the kernel grants this user."""
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
