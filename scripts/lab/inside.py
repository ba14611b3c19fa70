"""Run a command in a network namespace: `python -m pagefire.scripts.lab.inside NAMESPACE PARENT COMMAND...`; becomes that command.

NAMESPACE is a path (setns(2)), such as /proc/PID/fd/N of the keeper that holds it. Mounts are left as they are, unlike by `ip netns
exec`, and no iproute2 is needed. PARENT is the process that starts this one. When it dies the kernel asks the command to end
(PR_SET_PDEATHSIG, kept over exec): the keeper would see to that, and may have been killed as well.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


def enter(fd: int) -> None:
    """Put this thread into the network namespace that a descriptor stands for; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    path, parent, *command = sys.argv[1:]
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    enter(fd)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # Of a parent that died before that call nobody is told any more.
    if os.getppid() != int(parent):
        sys.exit("pagefire: the lab is gone.")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
