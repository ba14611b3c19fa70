"""Scheduling of threads: priority, niceness, time slice, timer slack, name. What needs a privilege does nothing without it.

A host that quiesces a guest waits for context switches, not for time slices, if its threads are preferred to the vCPUs. Nice
values say so, but since autogrouping (CONFIG_SCHED_AUTOGROUP) they are compared only within one session, and the guest is a
session of its own: between sessions /proc/PID/autogroup counts. The guest leaves that one at 0 (see process.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.syscall.restype = ctypes.c_long

_PR_SET_NAME = 15
_PR_SET_TIMERSLACK = 29
#: The system calls sched_setattr and sched_getattr.
_SCHED_SETATTR, _SCHED_GETATTR = {"x86_64": (314, 315)}.get(platform.machine(), (274, 275))
_RESET_ON_FORK = 1

#: SCHED_FIFO: threads that are raised, and before them those that others wait for.
_RAISED_PRIORITY, _PROMPT_PRIORITY = 1, 2
#: The slice of a thread that answers (the shortest that Linux grants): whoever has a short one is run soon after waking.
PROMPT_SLICE_NS = 100_000
#: The slice of a thread that moves pages: a fault, a message, a vCPU that wakes on its CPU goes first.
BULK_SLICE_NS = 3_000_000

#: struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
assert _SCHED_ATTR.size == 48


class Attributes(NamedTuple):
    """How a thread is scheduled: the policy, an ordinary one's niceness and slice, another one's priority; flags of the kernel."""

    policy: int
    nice: int = 0
    priority: int = 0
    slice_ns: int = 0
    flags: int = 0


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
    """Let the calling thread go before every ordinary one, and before raised ones; False where that is not allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PROMPT_PRIORITY))
    except PermissionError:
        return False
    return True


def raise_all_threads() -> dict[int, Attributes]:
    """Let every ordinary thread of this process go before those of others; gives what they were, for `lower_threads`.

    Threads that they start are ordinary. Nothing where that is not allowed.
    """
    before: dict[int, Attributes] = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        try:
            if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                attributes = attributes_of(thread)
                raised = Attributes(os.SCHED_FIFO, priority=_RAISED_PRIORITY, flags=_RESET_ON_FORK)
                _set_attributes(thread, raised)
                before[thread] = attributes
        except ProcessLookupError:
            continue  # it has ended
        except OSError:
            break  # not allowed, or not known here: nobody depends on it
    return before


def lower_threads(before: dict[int, Attributes]) -> None:
    """Let threads be as they were, those that have changed since excepted."""
    for thread, attributes in before.items():
        with contextlib.suppress(ProcessLookupError):
            if os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO:
                try:
                    _set_attributes(thread, attributes)
                except PermissionError:
                    # Allowed to raise itself by a limit alone (RLIMIT_RTPRIO), it may not take that flag back.
                    _set_attributes(thread, attributes._replace(flags=_RESET_ON_FORK))


def set_slice(slice_ns: int) -> bool:
    """Ask for a time slice (0.1 to 100 ms) for the calling thread, whose niceness stays; False where the kernel refuses.

    Since Linux 6.12 EEVDF takes sched_runtime of an ordinary thread as its slice (kernel/sched/syscalls.c); a shorter one is
    scheduled sooner. Older kernels ignore the field or answer EINVAL.
    """
    thread = threading.get_native_id()
    try:
        _set_attributes(thread, Attributes(os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, thread), slice_ns=slice_ns))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
            return False
        raise
    return True


def set_prompt() -> None:
    """Let the calling thread go before every ordinary one where that is allowed (root), else ask for the shortest slice."""
    if not set_real_time():
        set_slice(PROMPT_SLICE_NS)


def spread(threads: Sequence[int]) -> None:
    """Divide the CPUs that the calling thread may use, the one that it runs on excepted, among some threads of this process.

    Nothing where there are fewer CPUs than threads, or where they may not be chosen.
    """
    others = sorted(os.sched_getaffinity(0) - {_libc.sched_getcpu()})
    if len(others) >= len(threads):
        for at, thread in enumerate(threads):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, others[at :: len(threads)])


def attributes_of(thread: int) -> Attributes:
    """Tell how a thread is scheduled now, the slice of one that never asked for one included. Raises ProcessLookupError."""
    packed = ctypes.create_string_buffer(_SCHED_ATTR.size)
    _syscall(_SCHED_GETATTR, thread, packed, _SCHED_ATTR.size, 0)
    _, policy, flags, nice, priority, slice_ns, _, _ = _SCHED_ATTR.unpack(packed.raw)
    return Attributes(policy, nice, priority, slice_ns, flags)


def _set_attributes(thread: int, wanted: Attributes) -> None:
    policy, nice, priority, slice_ns, flags = wanted
    packed = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, slice_ns, 0, 0)
    _syscall(_SCHED_SETATTR, thread, ctypes.create_string_buffer(packed, _SCHED_ATTR.size), 0)


def _syscall(number: int, thread: int, attributes: ctypes.Array[ctypes.c_char], *rest: int) -> None:
    if _libc.syscall(ctypes.c_long(number), ctypes.c_long(thread), attributes, *map(ctypes.c_ulong, rest)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


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
