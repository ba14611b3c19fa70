"""After a migration that failed or was cancelled a guest is as fast as one that was never migrated, its page tables as before."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.observation import open_control
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.transport.control_socket import request
from tests.e2e.host_pair import HostPair, finish, guest_arguments, until
from tests.support.huge_pages import huge_pages
from tests.support.kernel import need_pagemap_scan
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

_MEASURE_S = 0.4
#: Student's t of 38 degrees of freedom (two sets of 20), two-sided 95%.
_T_95 = 2.024


class Measured:
    """A guest that stands still, by SIGSTOP, but while it is measured or migrated."""

    def __init__(self, pair: HostPair) -> None:
        self.pair = pair
        described = request(pair.source_socket, "guests")[pair.name]
        self.pid = int(described["guest_pid"])
        self._control: ControlBlock = open_control(described)
        os.kill(self.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGSTOP)

    def commits_per_s(self) -> float:
        with self.running():
            time.sleep(0.05)
            began_s, commits = time.monotonic(), self._control.commits()
            time.sleep(_MEASURE_S)
            return (self._control.commits() - commits) / (time.monotonic() - began_s)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._control.close()


def fail(pair: HostPair) -> None:
    """Let a migration fail in the middle of the stun: its shell at the destination dies."""
    with pair.held_at("bitmap-sent") as stands, pair.migrating() as command:
        stands()
        pair.kill_guest("dest")
        # Not before that is known there: HANDOVER could be faster than the news.
        until(lambda: not pair.on_dest("guests"), "the death of the shell was not noticed")
        pair.release("bitmap-sent")
        assert finish(command)[0] == 1
    assert pair.on_source("guest")["status"] == "failed"


def cancel(pair: HostPair) -> None:
    """Cancel a migration after its first round, which finds the guest's huge mappings broken down where it writes."""

    def on_event(event: dict[str, object]) -> None:
        if event["event"] == "round":
            pair.on_source("cancel")

    options = {"to": pair.destination, "mode": "precopy", "downtime_limit_s": 1e-6, "max_rounds": 1000}
    with pytest.raises(PagefireError):
        request(pair.source_socket, "migrate", on_event, timeout_s=60.0, name=pair.name, **options)
    assert pair.on_source("guest")["status"] == "cancelled"


def mapped_by(pid: int) -> tuple[int, set[str]]:
    """Read how the kernel maps guest memory: kB by huge pages, and the mapping's flags (proc(5); `uw`: write-tracked)."""
    huge_kb, flags, inside = 0, set[str](), False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0] and ":" not in line.split(" ", 1)[0]:
            inside = "memfd:guest-" in line
        elif inside and line.startswith("ShmemPmdMapped:"):
            huge_kb += int(line.split()[1])
        elif inside and line.startswith("VmFlags:"):
            flags |= set(line.split()[1:])
    return huge_kb, flags


def assert_clean(guest: Measured, huge_kb: int) -> None:
    """Nothing is tracked any more, and all that was mapped by huge pages is so again."""
    found_kb, flags = mapped_by(guest.pid)
    assert not flags & {"uw", "um", "ui"}, flags
    assert found_kb == huge_kb
    assert not guest.pair.traces_of_tracking()


def ratio(ended: str, backing: str, pairs: int) -> tuple[float, float, float]:
    """Compare a guest after each of so many attempts with one that is never migrated; gives the ratio and its 95% interval.

    As many pairs without an attempt come first: two guests are never equally fast, and theirs is what the others are divided by.
    """
    attempt = {"failed": fail, "cancelled": cancel}[ended]
    arguments = guest_arguments("128MiB", "hotspot", 2, working_set="50%", backing=backing)
    with HostPair(arguments) as one, HostPair(arguments) as other:
        steady, tried = Measured(one), Measured(other)
        try:
            huge_kb, _ = mapped_by(tried.pid)
            assert (huge_kb > 0) == (backing == "thp")
            logs: list[list[float]] = [[], []]
            for index in range(2 * pairs):
                if index >= pairs:
                    with tried.running():
                        attempt(other)
                    assert_clean(tried, huge_kb)
                # Whoever is measured second finds the machine as the first one left it: each is so every other time.
                order = (steady, tried) if index % 2 else (tried, steady)
                rates = {id(guest): guest.commits_per_s() for guest in order}
                logs[index >= pairs].append(math.log(rates[id(tried)] / rates[id(steady)]))
        finally:
            steady.close()
            tried.close()
    before, after = logs
    middle = statistics.fmean(after) - statistics.fmean(before)
    if pairs < 2:
        return math.exp(middle), 0.0, math.inf
    half = _T_95 * math.sqrt((statistics.variance(before) + statistics.variance(after)) / pairs)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


@pytest.mark.parametrize(
    ("ended", "backing"), [("failed", "4k"), ("cancelled", "thp"), *soaked(("failed", "thp"), ("cancelled", "4k"))]
)
def test_the_kernels_tables_are_clean_afterwards(ended: str, backing: str) -> None:
    need_pagemap_scan()
    with huge_pages() if backing == "thp" else contextlib.nullcontext():
        ratio(ended, backing, 1)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ended", ["failed", "cancelled"])
@pytest.mark.parametrize("backing", ["4k", "thp"])
def test_twenty_pairs(ended: str, backing: str, record_property: pytest.RecordProperty) -> None:
    """Must show: the 95% interval of the ratio to a guest that was never migrated reaches above 0.98."""
    need_pagemap_scan()
    with huge_pages() if backing == "thp" else contextlib.nullcontext():
        middle, low, high = ratio(ended, backing, 20)
    record_property("ratio", f"{middle:.3f} ({low:.3f} to {high:.3f})")
    print(
        f"{ended}, {backing}: {middle:.3f} of the throughput of a guest that was never migrated ({low:.3f} to {high:.3f})"
    )
    assert high > 0.98
