"""The unix socket between a guest process and its host: one msgpack map a packet, with file descriptors beside it.

SOCK_SEQPACKET keeps packets apart, so there is no framing and no half message. Both ends are ours and of one user (the socket
has mode 0600); a packet is still bounded. Errors travel by the name of their class, and arrive as that class.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from pagefire.protocol import errors

MAX_PACKET_BYTES = 128 * 1024
MAX_FDS = 16
_FD = np.dtype(np.intc)

Message = dict[str, Any]


def send(connection: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message; the peer gets duplicates of `fds`, the caller keeps its own. Raises OSError."""
    socket.send_fds(connection, [msgpack.packb(message)], list(fds))


def receive(connection: socket.socket) -> tuple[Message, list[int]] | None:
    """Wait for one message and its descriptors, which then belong to the caller; None when the peer is gone.

    Raises OSError (TimeoutError by the socket's timeout).
    """
    # Not socket.recv_fds: it drops its flags (CPython 3.11), and a descriptor without close-on-exec would reach the next guest.
    room = socket.CMSG_SPACE(MAX_FDS * _FD.itemsize)
    try:
        packet, ancillary, flags, _ = connection.recvmsg(MAX_PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds: list[int] = []
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += np.frombuffer(rights[: len(rights) // _FD.itemsize * _FD.itemsize], _FD).tolist()
    if not packet:
        close_all(fds)
        return None
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise OSError("a packet of the guest's socket was cut short")
    message = msgpack.unpackb(packet)
    return message, fds


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def error_message(error: errors.PagefireError) -> Message:
    """Put an error into a reply."""
    return {"error": type(error).__name__, "what": error.what, "why": error.why, "do": error.do}


def raise_error(reply: Message) -> None:
    """Raise the error that a reply carries, if it does; one of a class unknown here becomes a GuestError."""
    if "error" not in reply:
        return
    kind = getattr(errors, str(reply["error"]), errors.GuestError)
    if kind is errors.FeatureMissing:
        raise errors.FeatureMissing(reply.get("what", "the guest lacks a feature"), reply.get("why", ""))
    if not (isinstance(kind, type) and issubclass(kind, errors.PagefireError)):
        kind = errors.GuestError
    raise kind(reply.get("what", "the guest failed"), reply.get("why", ""), reply.get("do", ""))
