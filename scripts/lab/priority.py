"""Running before everything else that is not real-time: what a wire and those who measure it have to do, whatever the hosts do."""

from __future__ import annotations

import ctypes
import os
import threading

_PR_SET_TIMERSLACK = 29
_NICE = -20
#: The wire before those who measure it.
WIRE, PROBES = 2, 1


def run_first(priority: int) -> str:
    """Let this thread run first and wake up on time; gives how it is scheduled: fifo, nice, or usual where neither is allowed."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        except OSError:
            return "usual"
        return "nice"
    return "fifo"
