"""Who may use a unix socket: its user and root; the kernel's answer is read as it comes."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from pagefire.protocol.credentials import UCRED_BYTES, require_own_user
from pagefire.protocol.errors import PeerRefused


@pytest.mark.parametrize(("caller", "owner", "welcome"), [(7, 7, True), (0, 7, True), (8, 7, False), (7, 0, False)])
def test_own_user_and_root(caller: int, owner: int, welcome: bool) -> None:
    ucred = struct.pack("=iII", 4711, caller, 100)
    if welcome:
        require_own_user(ucred, owner)
        return
    with pytest.raises(PeerRefused, match=f"user {caller} may not use a socket of user {owner}: process 4711 called"):
        require_own_user(ucred, owner)


def test_the_kernels_own() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        require_own_user(ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED_BYTES), os.getuid())
