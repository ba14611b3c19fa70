"""The guest process: makes its memory, starts its vCPUs, and answers its host over a unix socket, one request at a time.

It runs in its own session, ignores SIGINT and does not die with its host: when the host's connection ends it waits for the next
one, so a restarted daemon can adopt it. Everything an adopter needs (memory, control block, kept descriptors) is given by
`describe`. The main thread serves; vCPUs run natively, without the GIL. There is no policy here: pausing, resuming and ownership
are the host's, by way of the control block.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from pagefire.guest_workload import channel, jit_cache, registry
from pagefire.guest_workload.control_block import SESSION_BYTES, ControlBlock, RunState
from pagefire.guest_workload.guest_config import Backing, GuestConfig
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.linux import memfd, scheduling, userfaultfd
from pagefire.protocol import credentials
from pagefire.protocol.errors import FeatureMissing, GuestError, PagefireError, PeerRefused, UsageError
from pagefire.protocol.ownership import Owner
from pagefire.protocol.pages import GRANULE_BYTES, PAGE_BYTES

if TYPE_CHECKING:
    from pagefire.guest_workload.workload import Workload

#: Equal to the daemons'. At 10 and 19 the guest got less of two cores in pre-copy, as if it were throttled: less was left to move
#: after the resume, but scattered, and the stun was longer (1 GiB oltp, 2 vCPUs, 5 alternating runs each: medians of 12.9, 20.8 and
#: 23.1 ms at 0, 10 and 19).
GUEST_AUTOGROUP_NICE = 0
_START_TIMEOUT_S = 60.0
_MAX_PROBLEMS = 100

Reply = tuple[channel.Message, list[int]]


class Guest:
    """A guest after `configure`: memory, control block, vCPU threads. Lives as long as its process."""

    def __init__(self, config: GuestConfig) -> None:
        """Make all of it and return when every vCPU is parked. Raises PagefireError, OSError."""
        self.config = config
        self.layout: Layout = config.layout()
        _require_room(config)
        if config.cpus is not None:
            os.sched_setaffinity(0, config.cpus)
        self.workload: Workload = _load(config)
        self.workload.require(self.layout)
        self.memory = memfd.Mapping(_take_memory(config))
        if config.backing == Backing.THP.value:
            _require_huge_pages()
            self.memory.prefer_huge()
        self.control = ControlBlock.create(config.vcpus)
        self.control.interval_ns = config.interval_ns(self.workload.interval_ns)
        self.control.stop_at = config.stop_at
        self.workload.attach(self.memory.array, self.layout)
        if not config.shell:
            self._fill()
        from pagefire.guest_workload.vcpu import start_vcpus

        self.threads = start_vcpus(self.workload, self.memory.array, self.layout, self.control)
        if not self.control.wait_parked(_START_TIMEOUT_S):
            raise GuestError(f"the guest {config.name} did not start", "its vCPUs did not park")

    def _fill(self) -> None:
        memory, layout, workload, seed = self.memory.array, self.layout, self.workload, self.config.seed

        def fill_one(vcpu: int) -> None:
            workload.fill(memory, layout, vcpu, seed)
            self.control.registers[vcpu] = workload.first_registers(memory, layout, vcpu, seed)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(fill_one, range(layout.vcpus)))
        for page in layout.scattered_pages(self.config.scattered_pages).tolist():
            memory[page * PAGE_BYTES : page * PAGE_BYTES + 8].view(np.uint64)[0] = page + 1

    def require_parked(self, what: str) -> None:
        """Raise GuestError unless every vCPU is parked; finished ones are, even in a guest that was not paused."""
        if not self.control.all_parked:
            raise GuestError(f"the guest {self.config.name} cannot be {what} now", "it is running", "pause it first")


def _take_memory(config: GuestConfig) -> int:
    name, hugetlb = f"guest-{config.name}"[:200], config.backing == Backing.HUGETLB.value
    try:
        return memfd.create(name, config.memory_bytes, hugetlb=hugetlb)
    except OSError as error:
        if not hugetlb:
            raise
        free_bytes, pool = memfd.free_hugetlb_bytes(), memfd.HUGETLB_POOL / "nr_hugepages"
        raise FeatureMissing(
            f"this host's pool of 2 MiB pages is too small for the guest {config.name}",
            f"{config.memory_bytes >> 20} MiB are needed, {free_bytes >> 20} MiB are free ({error.strerror}): "
            f"echo {config.memory_bytes // GRANULE_BYTES} | sudo tee {pool} (twice as many where it comes and goes on one host)",
        ) from error


def _require_room(config: GuestConfig) -> None:
    if config.backing == Backing.HUGETLB.value:
        return  # Its memory is the pool's, which is no part of what is available.
    available_bytes = psutil.virtual_memory().available
    if config.resident_bytes > available_bytes:
        raise UsageError(
            f"the guest {config.name} does not fit into this host's memory",
            f"{config.resident_bytes >> 20} MiB resident, {available_bytes >> 20} MiB available",
            "ask for less with --resident",
        )


def _require_huge_pages() -> None:
    if not memfd.huge_pages_allowed():
        raise FeatureMissing(
            "this host has no transparent huge pages for guest memory",
            f"{memfd.SHMEM_ENABLED} does not allow them: echo advise | sudo tee {memfd.SHMEM_ENABLED}",
        )


def _load(config: GuestConfig) -> Workload:
    allowed = set(config.user_workloads)
    registry.refuse_unknown(config.workload, allowed)
    jit_cache.use(registry.user_files(config.workload), registry.user_module_name(config.workload))
    return registry.workload_named(config.workload, allowed)


class Server:
    """Answers requests; each `_on_...` method is one operation and gives the reply and the descriptors to send with it."""

    def __init__(self) -> None:
        self._guest: Guest | None = None
        self._kept: dict[str, list[int]] = {}
        self._uffd = -1
        self._errand_fd = -1
        self._errand_table: memfd.Mapping | None = None
        self._operations: dict[str, Callable[[channel.Message, list[int]], Reply]] = {
            "configure": self._on_configure,
            "describe": self._on_describe,
            "open_uffd": self._on_open_uffd,
            "close_uffd": self._on_close_uffd,
            "keep_fds": self._on_keep_fds,
            "kept_fds": self._on_kept_fds,
            "take_errand": self._on_take_errand,
            "drop_errand": self._on_drop_errand,
            "collapse": self._on_collapse,
            "check": self._on_check,
            "digest": self._on_digest,
        }

    def serve(self, listener: socket.socket) -> None:
        """Serve one host after another, until one of them says quit."""
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    ucred = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.UCRED_BYTES)
                    credentials.require_own_user(ucred, os.getuid())
                    if self._serve_host(connection):
                        return
                except PeerRefused as error:
                    print(f"host=refused error={error}", file=sys.stderr, flush=True)
                    continue
                except OSError as error:
                    print(f"host=lost error={error!r}", file=sys.stderr, flush=True)
            self._drop_errand()
            # A host that died before there was a guest: nobody could ever find this process.
            if self._guest is None or not self._outlives_its_host(self._guest):
                path = Path(listener.getsockname())
                path.unlink(missing_ok=True)
                path.with_suffix(".log").unlink(missing_ok=True)
                return

    def _outlives_its_host(self, guest: Guest) -> bool:
        """The host is gone without a word: go on by what the owner word says; False when nobody will ask for this guest again.

        OWNER means that no other host may run the guest, so one that was paused just then (a stun, a check) goes on: a daemon that
        dies costs a stun and no outage. A shell that was never READY cannot have been handed over: the source knows that too.
        """
        control = guest.control
        if control.owner is Owner.OWNER and control.run_state is RunState.PAUSE:
            control.resume()
        return not (guest.config.shell and control.owner is Owner.NONE and control.session == bytes(SESSION_BYTES))

    def _serve_host(self, connection: socket.socket) -> bool:
        while (received := channel.receive(connection)) is not None:
            request, fds = received
            if request.get("op") == "quit":
                self._quit()
                channel.send(connection, {})
                return True
            reply, sent = self._answer(request, fds)
            channel.send(connection, reply, sent)
            if request.get("op") == "open_uffd":
                self._after_open_uffd(request, sent)
        return False

    def _answer(self, request: channel.Message, fds: list[int]) -> Reply:
        operation = self._operations.get(str(request.get("op")))
        try:
            if operation is None:
                raise GuestError("the guest does not know a request", str(request.get("op")))
            return operation(request, fds)
        except PagefireError as error:
            return channel.error_message(error), []
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"[:2000]
            return channel.error_message(GuestError(f"the guest's {request.get('op')} failed", why)), []

    def _running(self) -> Guest:
        if self._guest is None:
            raise GuestError("the guest is not there yet", "it was not configured")
        return self._guest

    def _on_configure(self, request: channel.Message, fds: list[int]) -> Reply:
        if self._guest is not None:
            raise GuestError("the guest cannot be configured again", f"it is {self._guest.config.name} already")
        self._guest = Guest(GuestConfig.of_message(request["config"]))
        return self._on_describe(request, fds)

    def _on_describe(self, request: channel.Message, fds: list[int]) -> Reply:
        guest = self._running()
        reply = {
            "ready": True,
            "pid": os.getpid(),
            "address": guest.memory.address,
            "config": guest.config.as_message(),
            "kept": sorted(self._kept),
        }
        return reply, [guest.memory.fd, guest.control.fd]

    def _on_open_uffd(self, request: channel.Message, fds: list[int]) -> Reply:
        self._running()
        try:
            return {}, [userfaultfd.open_uffd(int(request["features"]))]
        except OSError as error:
            raise FeatureMissing(
                "this host's userfaultfd cannot do what is needed", error.strerror or str(error)
            ) from error

    def _after_open_uffd(self, request: channel.Message, sent: list[int]) -> None:
        """Keep or close our own copy of what was sent.

        At the source it must go: a copy held here would freeze the guest for ever at its next write to a protected page once the
        daemon is dead. At the destination it must stay: when the last copy closes, waiting reads of missing pages return zeros.
        """
        if not sent:
            return
        if request.get("keep"):
            channel.close_all([self._uffd] if self._uffd >= 0 else [])
            self._uffd = sent[0]
        else:
            channel.close_all(sent)

    def _on_close_uffd(self, request: channel.Message, fds: list[int]) -> Reply:
        if self._uffd >= 0:
            os.close(self._uffd)
            self._uffd = -1
        return {}, []

    def _on_keep_fds(self, request: channel.Message, fds: list[int]) -> Reply:
        channel.close_all(self._kept.pop(str(request["name"]), []))
        if fds:
            self._kept[str(request["name"])] = fds
        return {}, []

    def _on_kept_fds(self, request: channel.Message, fds: list[int]) -> Reply:
        """Give what was kept under a name; "uffd" is the one that `open_uffd` kept."""
        name = str(request["name"])
        kept = [self._uffd] if name == "uffd" and self._uffd >= 0 else self._kept.get(name, [])
        return {}, list(kept)

    def _on_take_errand(self, request: channel.Message, fds: list[int]) -> Reply:
        """Hold what an errand needs: the descriptor of its calls, and the table of their arguments."""
        self._running()
        self._drop_errand()
        self._errand_fd, table_fd = fds
        self._errand_table = memfd.Mapping(table_fd)
        return {"fd": self._errand_fd, "address": self._errand_table.address}, []

    def _on_drop_errand(self, request: channel.Message, fds: list[int]) -> Reply:
        self._drop_errand()
        return {}, []

    def _drop_errand(self) -> None:
        """Let go of the errand, even in its middle when its host is gone: a call that is still made then fails, harmlessly."""
        if self._errand_table is not None:
            self._errand_table.close()
            os.close(self._errand_fd)
            self._errand_table, self._errand_fd = None, -1

    def _on_collapse(self, request: channel.Message, fds: list[int]) -> Reply:
        """Map all that is here by 2 MiB again; gives how many granules could not be."""
        guest = self._running()
        return {"left": guest.memory.collapse(memfd.data_extents(guest.memory.fd))}, []

    def _on_check(self, request: channel.Message, fds: list[int]) -> Reply:
        guest = self._running()
        guest.require_parked("checked")
        check = guest.workload.check(guest.memory.array, guest.layout, guest.control.registers)
        reply: dict[str, Any] = asdict(check)
        reply["problems"] = [problem[:500] for problem in check.problems[:_MAX_PROBLEMS]]
        return reply, []

    def _on_digest(self, request: channel.Message, fds: list[int]) -> Reply:
        from pagefire.guest_workload.digest import memory_digest

        guest = self._running()
        guest.require_parked("digested")
        return {"memory": memory_digest(guest.memory), "registers": guest.control.checkpoint_registers().hex()}, []

    def _quit(self) -> None:
        if self._guest is not None:
            self._guest.control.request_exit()


def _end_process(failure: threading.ExceptHookArgs) -> None:
    """A vCPU that died cannot be paused, so its guest must not live on."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.flush()
    os._exit(70)


def main() -> None:
    """Serve on the listening socket that was inherited; returns after `quit`, or when the first host left before configuring."""
    parser = argparse.ArgumentParser(prog="pagefire guest")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--name", default="guest")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _end_process
    scheduling.set_name(arguments.name)
    scheduling.set_autogroup_nice(GUEST_AUTOGROUP_NICE)
    with socket.socket(fileno=arguments.listen_fd) as listener:
        Server().serve(listener)
    # Not by returning: the interpreter would unmap memory below vCPU threads that are still waiting for a page.
    jit_cache.remove_private()
    sys.stderr.flush()
    os._exit(0)
