"""Scattered runs of one buffer sent or filled by one system call, without a Python object for each.

`socket.sendmsg` and `recvmsg_into` want a memoryview for each run: 512 single pages take 66 us to slice, the GIL held, and 7 to
hand over. Here the vector of addresses (struct iovec, iovec(3type)) is computed as an array, in 10 us.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

#: Byte offsets into a buffer.
Offsets = npt.NDArray[np.int64]

#: What one call takes at most (UIO_MAXIOV).
_MOST = 1024


class _MessageHeader(ctypes.Structure):
    """struct msghdr of the C library (recvmsg(2)), which both ABIs pad alike."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.sendmsg, _libc.recvmsg):
    _call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    _call.restype = ctypes.c_ssize_t


def send(fd: int, head: bytes, contents: memoryview, starts: Offsets, stops: Offsets, flags: int) -> None:
    """Send `head` and then the runs of `contents`, all of it, on a blocking socket. Raises OSError."""
    array = np.frombuffer(contents, np.uint8)
    vectors = np.empty((starts.size + 1, 2), np.uint64)
    lead = np.frombuffer(head, np.uint8) if head else array[:0]
    vectors[0] = lead.ctypes.data, lead.size
    _place(vectors[1:], array, starts, stops)
    for part, last in _parts(vectors):
        _move(_libc.sendmsg, fd, part, flags if last else flags | socket.MSG_MORE)


def receive(fd: int, room: memoryview, starts: Offsets, stops: Offsets) -> bool:
    """Fill the runs of `room` from a blocking socket; False where the stream ended before. Raises OSError."""
    array = np.frombuffer(room, np.uint8)
    vectors = np.empty((starts.size, 2), np.uint64)
    _place(vectors, array, starts, stops)
    return all(_move(_libc.recvmsg, fd, part, socket.MSG_WAITALL) for part, _ in _parts(vectors))


def _place(vectors: npt.NDArray[np.uint64], array: npt.NDArray[np.uint8], starts: Offsets, stops: Offsets) -> None:
    if starts.size and not 0 <= int(starts.min()) <= int(stops.max()) <= array.size:
        raise ValueError("a run outside of its buffer")
    vectors[:, 0] = starts
    vectors[:, 0] += np.uint64(array.ctypes.data)
    vectors[:, 1] = stops - starts


def _parts(vectors: npt.NDArray[np.uint64]) -> Iterator[tuple[npt.NDArray[np.uint64], bool]]:
    for first in range(0, len(vectors), _MOST):
        yield vectors[first : first + _MOST], first + _MOST >= len(vectors)


def _move(call: ctypes._NamedFuncPointer, fd: int, vectors: npt.NDArray[np.uint64], flags: int) -> bool:
    """Repeat a call until it has moved all of the vectors, which it changes; False where it moved nothing."""
    while (ends := np.cumsum(vectors[:, 1])).size and (left := int(ends[-1])):
        header = _MessageHeader(vectors=vectors.ctypes.data, vector_count=len(vectors))
        moved = call(fd, ctypes.byref(header), flags)
        if moved == left:
            break
        if moved < 0:
            error = ctypes.get_errno()
            if error == errno.EINTR:
                continue
            raise OSError(error, os.strerror(error))
        if not moved:
            return False
        # A signal came in between.
        whole = int(np.searchsorted(ends, np.uint64(moved), side="right"))
        rest = moved - (int(ends[whole - 1]) if whole else 0)
        vectors = vectors[whole:]
        vectors[0, 0] += np.uint64(rest)
        vectors[0, 1] -= np.uint64(rest)
    return True
