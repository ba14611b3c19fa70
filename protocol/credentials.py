"""Who is at the other end of a unix socket, by the kernel's word (SO_PEERCRED, see unix(7)): this user or root, nobody else.

The file's mode keeps strangers out already. This is for what a mode does not stop: a directory that was opened up, a descriptor
that was handed on.
"""

from __future__ import annotations

import struct

from pagefire.protocol.errors import PeerRefused

#: struct ucred: pid, uid, gid.
_UCRED = struct.Struct("=iII")
UCRED_BYTES = _UCRED.size


def require_own_user(ucred: bytes, own_uid: int) -> None:
    """Raise PeerRefused unless the peer's credentials, as the kernel gave them, are of this user or of root."""
    pid, uid, _ = _UCRED.unpack(ucred)
    if uid not in (own_uid, 0):
        raise PeerRefused(
            f"user {uid} may not use a socket of user {own_uid}",
            f"process {pid} called",
            "call as the user who started it",
        )
