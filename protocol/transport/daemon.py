"""What both daemons do beside migrating: run on uvloop, log to the terminal, end on a signal.

The first SIGINT or SIGTERM asks the daemon to end: it cancels what can be cancelled and finishes what cannot. A second one forces
the end. One that comes while the daemon is still being made (a guest takes seconds to fill) cancels the making.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol, TextIO

import uvloop

from pagefire.protocol.errors import Cancelled, PagefireError, UsageError
from pagefire.protocol.transport import heap
from pagefire.protocol.transport.log_lines import begin_log

#: How long a thread may hold the GIL while another waits: the default of 5 ms would be seen in the stun.
SWITCH_INTERVAL_S = 0.0001


class Daemon(Protocol):
    async def serve(self, ready: Callable[[str], None]) -> None:
        """Run until told to end; `ready` is called once with a line for the person who started it."""

    def end(self) -> None:
        """Begin to end: the first signal."""

    def force(self) -> None:
        """End now, whatever is lost: the second signal."""


def run_daemon(
    make: Callable[[], Awaitable[Daemon]], cpus: tuple[int, ...] = (), *, log_format: str = "text", quiet: bool = False
) -> int:
    """Run one daemon in this process until it ends; gives the exit code. Errors are printed for a person.

    `make` undoes what it did when it is cancelled: nobody else could. `cpus` pins this process, children included; none leaves it
    as it is. `quiet`: standard output is somebody else's, the line of a daemon that is ready goes to standard error.
    """
    begin_log(log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    heap.settle()
    try:
        if cpus:
            _pin(cpus)
        uvloop.run(_run(make, sys.stderr if quiet else sys.stdout))
    except PagefireError as error:
        print(f"pagefire: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _pin(cpus: tuple[int, ...]) -> None:
    """Pin every thread there is (libraries have started some); those to come inherit it. Raises UsageError."""
    try:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cpus)
    except OSError as error:
        asked = ", ".join(map(str, cpus))
        raise UsageError(
            f"this daemon cannot be pinned to CPUs {asked}", error.strerror or str(error), "name CPUs that are online"
        ) from error


async def _run(make: Callable[[], Awaitable[Daemon]], out: TextIO) -> None:
    loop = asyncio.get_running_loop()
    making = asyncio.ensure_future(make())
    daemon: Daemon | None = None
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if daemon is None:
            making.cancel()
        elif signals == 1:
            daemon.end()
        else:
            daemon.force()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        daemon = await making
    except asyncio.CancelledError as error:
        raise Cancelled("the daemon was told to end before it was ready") from error
    if signals:
        daemon.end()
    await daemon.serve(lambda line: print(line, file=out, flush=True))
