"""Ties a daemon to the process that starts it: `python -m pagefire.scripts.experiment.tied PARENT COMMAND...` becomes COMMAND.

A daemon lives in a session of its own and outlives whoever started it, which is right for a guest and wrong for an experiment: one
that is killed would leave daemons that disturb what is measured next. The kernel sends a tied daemon SIGTERM when its parent's
thread ends (PR_SET_PDEATHSIG, kept over exec), and it ends with its guest.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tied_to_us() -> tuple[str, ...]:
    """Give the words that stand before a daemon's command to tie it to this process."""
    return (sys.executable, "-m", "pagefire.scripts.experiment.tied", str(os.getpid()))


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        sys.exit(f"pagefire: the daemon cannot be tied to its experiment: {os.strerror(ctypes.get_errno())}.")
    # Of a parent that died before that call nobody is told any more; another process is the parent already.
    if os.getppid() != int(sys.argv[1]):
        sys.exit("pagefire: the experiment is gone.")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
