"""Looking at a guest from a third process on the same machine: an observer, a test.

The host daemon tells where its descriptors are; /proc/PID/fd opens them again, for the same user (ptrace access, proc(5)).
"""

from __future__ import annotations

import os
from typing import Any

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import memfd


def describe(guest: GuestProcess) -> dict[str, Any]:
    """Say where this daemon's control block and guest memory can be opened; plain values."""
    return {"pid": os.getpid(), "guest_pid": guest.pid, "memory_fd": guest.memory.fd, "control_fd": guest.control.fd}


def open_control(described: dict[str, Any]) -> ControlBlock:
    """Map the control block for reading; the caller closes it. Raises OSError when the daemon is gone."""
    return ControlBlock.attach(_open(described, "control_fd", os.O_RDONLY), writable=False)


def open_memory(described: dict[str, Any]) -> memfd.Mapping:
    """Map guest memory for reading; the caller closes it. Reading a hole through it allocates the page."""
    return memfd.Mapping(_open(described, "memory_fd", os.O_RDONLY), writable=False)


def _open(described: dict[str, Any], name: str, flags: int) -> int:
    return os.open(f"/proc/{described['pid']}/fd/{described[name]}", flags | os.O_CLOEXEC)
