"""Scheduling of the calling thread: niceness, time slice, timer slack, name. Nothing here needs a privilege.

A host that quiesces a guest waits for context switches, not for time slices, if its threads are preferred to the vCPUs. Nice
values say so, but since autogrouping (CONFIG_SCHED_AUTOGROUP) they are compared only within one session, and the guest is a
session of its own: between sessions /proc/PID/autogroup counts. The guest leaves that one at 0 (see process.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.syscall.restype = ctypes.c_long

_PR_SET_NAME = 15
_PR_SET_TIMERSLACK = 29
_SCHED_SETATTR = {"x86_64": 314}.get(platform.machine(), 274)

#: The slice of a thread that answers (the shortest that Linux grants): whoever has a short one is run soon after waking.
PROMPT_SLICE_NS = 100_000
#: The slice of a thread that moves pages: a fault, a message, a vCPU that wakes on its CPU goes first.
BULK_SLICE_NS = 3_000_000

#: struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
assert _SCHED_ATTR.size == 48


def set_nice(nice: int) -> None:
    """Set the niceness of the calling thread alone (Linux keeps it per thread). Raises OSError when it needs privilege."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def set_autogroup_nice(nice: int) -> bool:
    """Set the niceness of this session against other sessions; False where that is missing or refused (then nothing changed)."""
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as autogroup:
            autogroup.write(str(nice))
    except OSError:
        return False
    return True


def set_real_time() -> bool:
    """Let the calling process go before every ordinary one (SCHED_FIFO, lowest priority); False where that is not allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    return True


def set_slice(slice_ns: int) -> bool:
    """Ask for a time slice (0.1 to 100 ms) for the calling thread, whose niceness stays; False where the kernel refuses.

    Since Linux 6.12 EEVDF takes sched_runtime of an ordinary thread as its slice (kernel/sched/syscalls.c); a shorter one is
    scheduled sooner. Older kernels ignore the field or answer EINVAL.
    """
    thread = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    packed = _SCHED_ATTR.pack(_SCHED_ATTR.size, 0, 0, nice, 0, slice_ns, 0, 0)
    attributes = ctypes.create_string_buffer(packed, _SCHED_ATTR.size)
    if _libc.syscall(ctypes.c_long(_SCHED_SETATTR), ctypes.c_long(thread), attributes, ctypes.c_ulong(0)) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
        return False
    raise OSError(error, f"sched_setattr: {os.strerror(error)}")


def set_prompt() -> None:
    """Let the calling thread go before every ordinary one where that is allowed (root), else ask for the shortest slice."""
    if not set_real_time():
        set_slice(PROMPT_SLICE_NS)


def set_name(name: str) -> None:
    """Name the calling thread as `ps` and `top` show it, cut to 15 bytes; in the main thread that names the process."""
    kept = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(kept), "PR_SET_NAME")


def set_timer_slack(slack_ns: int) -> None:
    """Let the calling thread's timeouts be late by at most this (50 us by default), at the price of more interrupts."""
    _prctl(_PR_SET_TIMERSLACK, slack_ns, "PR_SET_TIMERSLACK")


def _prctl(option: int, argument: int, name: str) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
