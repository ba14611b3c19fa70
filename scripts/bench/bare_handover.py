"""The bare handover: what a stun cannot do without, between two guests that know nothing of each other.

One guest is stopped: its vCPUs quiesced, one scan of what was written since a moment before, one and a half round trips over
loopback TCP to another process, which lets the other guest run. No page, no register, no bitmap moves. The gap is told by the
vCPUs' own clock readings, from the last commit of the one to the first of the other, as the stun is. Both guests have the shape of
the one that migrates, but no more memory than its working set; parked, they cost nothing.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.layout import MIN_MEMORY_BYTES
from pagefire.guest_workload.linux import scheduling
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.ownership import Owner
from pagefire.protocol.pages import GRANULE_BYTES, GRANULE_PAGES
from pagefire.source_host.guest_tracing import GuestTracing
from pagefire.source_host.hot_pages import WINDOW_S
from pagefire.source_host.trace_install import InstallOptions
from pagefire.source_host.tracker_choice import choose_tracker
from pagefire.source_host.tracking import Granularity

#: How long a guest runs before it is stopped, and how long the other may take to its first commit.
_RUN_S, _PATIENCE_S = 0.3, 10.0
_WORD = b"\0" * 64


class BareHandover:
    """A context; `gap_s` makes one handover. Its other process and both guests are gone when it ends."""

    def __init__(self, config: GuestConfig) -> None:
        """Shape the two guests as `config`, without what they do not write."""
        size_bytes = max(-(-config.working_set_bytes // GRANULE_BYTES), config.vcpus) * GRANULE_BYTES
        self._config = replace(
            config, memory_bytes=max(size_bytes, MIN_MEMORY_BYTES), resident_bytes=size_bytes,
            working_set_bytes=min(config.working_set_bytes, size_bytes),
        )  # fmt: skip
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> BareHandover:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pagefire-")))
            self._one, self._other = (self._spawn(stack, directory / f"{name}.guest") for name in ("one", "other"))
            tracing = GuestTracing(self._one)
            stack.callback(tracing.end, guest_lives=True)
            options = InstallOptions("loose", "host", Granularity.PAGE, GRANULE_PAGES, None)
            tracing.begin(choose_tracker(), options)
            assert tracing.tracker is not None
            self._tracker = tracing.tracker
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            host = get_context("fork").Process(target=_other_host, args=(listener, self._other.control))
            host.start()
            stack.callback(host.join)
            self._link = stack.enter_context(socket.create_connection(listener.getsockname()))
            self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            scheduling.set_slice(scheduling.PROMPT_SLICE_NS)
            self._stack = stack.pop_all()
        return self

    def _spawn(self, stack: contextlib.ExitStack, path: Path) -> GuestProcess:
        guest = GuestProcess.spawn(path, self._config)
        stack.callback(guest.terminate)
        guest.control.owner = Owner.OWNER
        return guest

    def gap_s(self) -> float:
        """Make one handover; gives for how long no vCPU of either guest committed. Raises PagefireError where none begins again."""
        one, other = self._one.control, self._other.control
        one.resume()
        time.sleep(_RUN_S)
        self._tracker.collect_and_clear()
        time.sleep(WINDOW_S)
        _stop(one)
        self._tracker.collect_and_clear()
        self._link.sendall(_WORD)
        self._link.recv(len(_WORD), socket.MSG_WAITALL)
        self._link.sendall(_WORD)
        deadline = time.monotonic() + _PATIENCE_S
        while not (firsts := other.first_commits_ns()).any():
            if time.monotonic() > deadline:
                raise PagefireError("a guest of the bare handover does not run", f"it had {_PATIENCE_S:g} s")
            time.sleep(0.001)
        # Of several vCPUs the first to commit may be seen before one whose commit was earlier has written it.
        time.sleep(0.01)
        firsts = other.first_commits_ns()
        _stop(other)
        return int(firsts[firsts > 0].min() - one.last_commits_ns().max()) / 1e9

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _stop(control: ControlBlock) -> None:
    control.request_pause()
    if not control.wait_parked(_PATIENCE_S):
        raise PagefireError("a guest of the bare handover does not stop", f"it had {_PATIENCE_S:g} s")


def _other_host(listener: socket.socket, control: ControlBlock) -> None:
    """Answer each first word, and let the guest run at each second one, until the link ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    scheduling.set_slice(scheduling.PROMPT_SLICE_NS)
    link, _ = listener.accept()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while link.recv(len(_WORD), socket.MSG_WAITALL):
        link.sendall(_WORD)
        if link.recv(len(_WORD), socket.MSG_WAITALL):
            control.resume()
