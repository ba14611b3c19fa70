"""What a host leaves in its guest's process so that it outlives the daemon: a record, and descriptors beside it, under a name.

The record is a msgpack map in a memfd of its own; the guest keeps descriptors and looks at none. An adopter finds both, or neither.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgpack

from pagefire.guest_workload.guest_process import GuestProcess

Record = dict[str, Any]


def leave(guest: GuestProcess, name: str, record: Record, fds: Sequence[int] = ()) -> None:
    """Leave a record and copies of `fds`, in the place of what has that name. Blocks; raises GuestError."""
    fd = os.memfd_create(f"pagefire-{name}", os.MFD_CLOEXEC)
    try:
        os.write(fd, msgpack.packb(record))
        guest.keep_fds(name, [fd, *fds])
    finally:
        os.close(fd)


def find(guest: GuestProcess, name: str) -> tuple[Record, list[int]] | None:
    """Get what an earlier host left under a name; the caller owns the descriptors. None where there is nothing."""
    if name not in guest.kept:
        return None
    fd, *fds = guest.kept_fds(name)
    try:
        return msgpack.unpackb(os.pread(fd, os.fstat(fd).st_size, 0)), fds
    finally:
        os.close(fd)


def drop(guest: GuestProcess, name: str) -> None:
    """Remove what has that name. Blocks; raises GuestError."""
    guest.keep_fds(name, [])
