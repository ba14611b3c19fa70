"""What carries a connection's bytes: a TCP socket, here as it is; encrypted, see tls.py.

The loop uses a wire while its socket does not block (`receive`, `sealed`), a thread once it does (`receive`, `send`, `fill`). Who
moves pages asks the wire for them by file and range and does not know what it is made of. Plain pages are never copied in user
space: sendfile on the way out, splice on the way in.

Operating system errors end here: all of it raises LinkLost, and the non-blocking half BlockingIOError when nothing is there yet.

Ended in two steps: `shut_down` is for any thread and wakes whoever is blocked, `close` for when no thread uses the wire any more.
A descriptor closed under a thread may have a new owner before the thread's next system call: pages would go to, or come from, a
stranger's connection (measured: 94 of 5,000 closes under a sending thread).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable, Iterator, Sequence

from pagefire.protocol.errors import LinkLost, PagefireError
from pagefire.protocol.frames import Buffer, Check
from pagefire.protocol.transport import vectors
from pagefire.protocol.transport.vectors import Offsets

_PIPE_BYTES = 1 << 20
#: Linux's asm-generic/socket.h; Python's socket module does not name it. Since 4.20 it takes 64 bits, all of them set for no limit.
_SO_MAX_PACING_RATE, _UNPACED = 47, (1 << 64) - 1
#: What a paced socket holds unsent: so long at its rate, but some segments at least.
_QUEUE_S, _LEAST_QUEUE_BYTES, _UNLIMITED = 0.02, 128 << 10, (1 << 32) - 1
#: What one sendfile sends at most, so that `sent_bytes` tells how far a long frame has come.
_SENDFILE_BYTES = 8 << 20
#: recvmsg takes at most 1,024 buffers.
_RECEIVE_BUFFERS = 512


class Wire:
    """One TCP connection, not encrypted. Owns the socket, and a pipe that is made when it is first needed."""

    #: Whether a byte that was changed on its way would be noticed.
    authenticated = False

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        #: What threads have handed to the socket: frames and payload, and what encryption adds.
        self.sent_bytes = 0
        self._pipe: tuple[int, int] | None = None
        self._pipe_bytes = 0
        self._held = memoryview(b"")
        self._held_room = bytearray()

    # -- for the loop, on a socket that does not block ------------------------------------------------------------------------

    def receive(self, limit: int) -> bytes:
        """Read at most so many bytes; none at the end of the stream."""
        try:
            return self.sock.recv(limit)
        except BlockingIOError:
            raise
        except OSError as error:
            raise _broken(error) from error

    def receive_into(self, room: memoryview) -> int:
        """Read into a part of `room`; gives how much, 0 at the end of the stream."""
        try:
            return self.sock.recv_into(room)
        except BlockingIOError:
            raise
        except OSError as error:
            raise _broken(error) from error

    def sealed(self, head: bytes, payload: Buffer) -> Iterator[Buffer]:
        """Give what is to be handed to the socket for a frame, in order and all of it."""
        # One piece: a message and its payload leave in one packet where they fit.
        yield head + payload if payload else head

    def last_words(self) -> PagefireError | None:
        """Give what the peer said of why it ended the connection, where that is the wire's to understand."""
        return None

    # -- for a thread, on a socket that blocks ---------------------------------------------------------------------------------

    def send(self, buffers: Sequence[Buffer], *, more: bool = False) -> None:
        """Send all of the buffers; `more`: the rest of the frame follows at once."""
        flags = socket.MSG_MORE if more else 0
        total_bytes = sum(len(buffer) for buffer in buffers)
        try:
            sent_bytes = self.sock.sendmsg(buffers, (), flags)
            self.sent_bytes += sent_bytes
            if sent_bytes < total_bytes:
                rest = b"".join(buffers)[sent_bytes:]
                self.sock.sendall(rest, flags)
                self.sent_bytes += len(rest)
        except OSError as error:
            raise _broken(error, "a page connection") from error

    def send_runs(
        self, head: bytes, contents: memoryview, starts: Offsets, stops: Offsets, *, more: bool = False
    ) -> None:
        """Send `head`, and then so many runs of `contents`, byte offsets, in order; `more` as in `send`."""
        try:
            vectors.send(self.sock.fileno(), head, contents, starts, stops, socket.MSG_MORE if more else 0)
        except OSError as error:
            raise _broken(error, "a page connection") from error
        self.sent_bytes += len(head) + int((stops - starts).sum())

    def send_range(self, fd: int, offset: int, contents: memoryview) -> None:
        """Send `contents`, which is what the file holds from `offset` on."""
        size_bytes = len(contents)
        try:
            while size_bytes:
                sent_bytes = os.sendfile(self.sock.fileno(), fd, offset, min(size_bytes, _SENDFILE_BYTES))
                if not sent_bytes:
                    raise LinkLost("a page connection broke", "sendfile sent nothing")
                offset, size_bytes = offset + sent_bytes, size_bytes - sent_bytes
                self.sent_bytes += sent_bytes
        except OSError as error:
            raise _broken(error, "a page connection") from error

    def queued_bytes(self) -> int:
        """Count what the socket holds that the peer's host has not acknowledged (tcp(7), SIOCOUTQ)."""
        try:
            return int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError as error:
            raise _broken(error, "a page connection") from error
        except ValueError:
            # Another connection's thread asks for this one, which has been closed meanwhile: its descriptor is -1.
            raise LinkLost("a page connection was closed") from None

    def fill(self, buffers: list[memoryview]) -> None:
        """Fill all of the buffers, in order."""
        if self._held:
            for buffer in buffers:
                buffer[:] = self._take_held(len(buffer))
        elif buffers:
            self._fill(buffers)

    def fill_runs(self, room: memoryview, starts: Offsets, stops: Offsets) -> None:
        """Fill runs of `room`, byte offsets, in order."""
        if self._held:
            self.fill(slices(room, starts, stops))
        elif starts.size:
            self._fill_runs(room, starts, stops)

    def fill_range(self, fd: int, offset: int, size_bytes: int) -> None:
        """Write the next bytes into a file, from `offset` on."""
        if self._held:
            write_range(fd, offset, self._take_held(size_bytes))
        else:
            self._fill_range(fd, offset, size_bytes)

    def hold(self, size_bytes: int, check: Check | None, unpack: Callable[[memoryview], Buffer] | None = None) -> None:
        """Read a payload ahead and verify it; `fill` and `fill_range` then give it, unpacked. Raises RemoteProtocolError.

        A copy more, and what it buys: nothing that was damaged is ever in the guest's memory, so no page has to be taken back.
        """
        if len(self._held_room) < size_bytes:
            self._held_room = bytearray(size_bytes)
        held = memoryview(self._held_room)[:size_bytes]
        self._fill([held])
        if check is not None:
            check.add(held)
            check.verify()
        self._held = memoryview(unpack(held)) if unpack is not None else held

    def pace(self, bytes_per_s: float | None) -> None:
        """Let the kernel send so fast at most, headers included; None: as fast as it can. Any thread, at any time.

        TCP's own pacing (SO_MAX_PACING_RATE, socket(7)) spreads segments in time; no thread sleeps, and what was queued before is
        held to the new limit as well. So little waits in the socket then (TCP_NOTSENT_LOWAT, tcp(7)) that whoever sends knows the
        link's speed, and a change of mind is not stuck behind megabytes.
        """
        limit, unsent_bytes = _UNPACED, _UNLIMITED
        if bytes_per_s is not None:
            limit, unsent_bytes = max(int(bytes_per_s), 1), int(max(bytes_per_s * _QUEUE_S, _LEAST_QUEUE_BYTES))
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, limit.to_bytes(8, sys.byteorder))
        self.sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, min(unsent_bytes, _UNLIMITED).to_bytes(4, sys.byteorder)
        )

    def shut_down(self) -> None:
        """End the connection at once, in any thread: who is blocked on it, and who uses it next, gets LinkLost."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free what it took. No other thread uses the wire any more."""
        self.shut_down()
        self.sock.close()
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    def _fill(self, buffers: list[memoryview]) -> None:
        try:
            while buffers:
                count = self.sock.recvmsg_into(buffers[:_RECEIVE_BUFFERS], 0, socket.MSG_WAITALL)[0]
                if not count:
                    raise cut_off()
                buffers = _after(buffers, count)
        except OSError as error:
            raise _broken(error, "a page connection") from error

    def _fill_runs(self, room: memoryview, starts: Offsets, stops: Offsets) -> None:
        try:
            if not vectors.receive(self.sock.fileno(), room, starts, stops):
                raise cut_off()
        except OSError as error:
            raise _broken(error, "a page connection") from error

    def _fill_range(self, fd: int, offset: int, size_bytes: int) -> None:
        if self._pipe is None:
            self._pipe = os.pipe()
            self._pipe_bytes = _grow_pipe(self._pipe[1])
        pipe_out, pipe_in = self._pipe
        try:
            while size_bytes:
                queued = os.splice(self.sock.fileno(), pipe_in, min(size_bytes, self._pipe_bytes))
                if not queued:
                    raise cut_off()
                size_bytes -= queued
                while queued:
                    moved = os.splice(pipe_out, fd, queued, offset_dst=offset)
                    queued, offset = queued - moved, offset + moved
        except OSError as error:
            raise _broken(error, "a page connection") from error

    def _take_held(self, size_bytes: int) -> memoryview:
        taken, self._held = self._held[:size_bytes], self._held[size_bytes:]
        return taken


def slices(buffer: memoryview, starts: Offsets, stops: Offsets) -> list[memoryview]:
    """Give the runs of a buffer one by one."""
    return [buffer[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def write_range(fd: int, offset: int, contents: memoryview) -> None:
    """Write all of `contents` into a file, from `offset` on."""
    while contents:
        written = os.pwrite(fd, contents, offset)
        contents, offset = contents[written:], offset + written


def cut_off() -> LinkLost:
    return LinkLost("a page connection ended in the middle of a frame")


def _broken(error: OSError, what: str = "the connection") -> LinkLost:
    return LinkLost(f"{what} broke", error.strerror or str(error))


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
