"""Round 1 of a real migration beside the bare copier: every page of an idle guest, distinct and incompressible.

Held at two points of the migration's script: right before the round, when the destination's guest is there (until that has started,
warm memory is cold again), and right after it, so that what follows is in no figure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pagefire.guest_workload.guest_config import Backing
from pagefire.guest_workload.linux import memfd
from pagefire.protocol.errors import FeatureMissing, PagefireError
from pagefire.protocol.transport.control_socket import request
from pagefire.scripts import huge_pages
from pagefire.scripts.bench.ballast import all_held_but, warm_pool
from pagefire.scripts.bench.copier import Copied, copy, memory_of
from pagefire.scripts.bench.pairs import alternate
from pagefire.scripts.bench.plan import Plan, idle_guest
from pagefire.scripts.bench.process_figures import cpu_s
from pagefire.scripts.bench.shuttle import Shuttle
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]

_PATIENCE_S = 150.0
#: What a measurement needs beside the ballast: two guests' memory and one to spare, two daemons, two guest processes.
_NEEDED_TIMES = 3
_NEEDED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class FullRound:
    """What one round took: bytes on the wire per second, and each daemon's CPU seconds, of all its threads."""

    bytes_per_s: float
    source_cpu_s: float
    dest_cpu_s: float
    congestion: str


@dataclass(frozen=True, slots=True)
class Case:
    """Page connections, what maps memory on both sides, and whether the destination's memory is taken inside the clock."""

    streams: int
    backing: str
    cold: bool

    @property
    def words(self) -> str:
        """Name it."""
        return (
            f"{self.streams} stream{'s' if self.streams > 1 else ''}, {self.backing}, {'cold' if self.cold else 'warm'}"
        )


def cases_of(plan: Plan, backing: str) -> list[Case]:
    """Give the cases of one backing; memory on hugetlb is taken from the pool at once, so that it is never cold."""
    colds = (False,) if backing == Backing.HUGETLB.value else (True, False)
    return [Case(streams, backing, cold) for streams in plan.streams for cold in colds]


def measure_rounds(
    plan: Plan, console: Console, tell: Callable[[Case, FullRound, Copied], None]
) -> Iterator[tuple[Case, list[tuple[FullRound, Copied]]]]:
    """Take each case so often, in turn with the copier, on 2 MiB pages too where this host gives them; `tell` hears of each pair.

    What cannot be had is said on the console and left out.
    """
    needed_bytes = plan.round_bytes * _NEEDED_TIMES + (0 if plan.quick else _NEEDED_BYTES)
    for backing in plan.backings:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_given(backing, plan.round_bytes))
            except FeatureMissing as missing:
                console.print(f"  left out: {backing}: {missing.what}: {missing.why}", soft_wrap=True)
                continue
            shuttle = stack.enter_context(Shuttle(idle_guest(plan.round_bytes, backing)))
            stack.enter_context(all_held_but(needed_bytes, plan.hold_memory, console))
            for case in cases_of(plan, backing):
                yield case, _pairs(shuttle, case, plan.repetitions, needed_bytes, tell)


def _pairs(
    shuttle: Shuttle,
    case: Case,
    repetitions: int,
    needed_bytes: int,
    tell: Callable[[Case, FullRound, Copied], None],
) -> list[tuple[FullRound, Copied]]:
    rounds: list[FullRound] = []

    def migrate() -> FullRound:
        rounds.append(full_round(shuttle, case, needed_bytes))
        return rounds[-1]

    def reference() -> Copied:
        with contextlib.closing(_as_arrived(shuttle.config.memory_bytes, case.backing)) as source:
            warm_pool(needed_bytes)
            return copy(source, case.streams, rounds[-1].congestion.encode(), case.backing, cold=case.cold)

    done = []
    for pair in alternate(migrate, reference, repetitions):
        tell(case, *pair)
        done.append(pair)
    return done


def full_round(shuttle: Shuttle, case: Case, warm_bytes: int) -> FullRound:
    """Migrate the guest and measure round 1, so much free memory having been touched before. Raises PagefireError."""
    options = MigrationOptions(
        to="", mode="precopy", streams=case.streams, populate=not case.cold, check=False, settle_s=0.0
    )
    here, there = shuttle.here, shuttle.there
    with ThreadPoolExecutor(1) as background, _held(here.control, "traced"), _held(here.control, "round"):
        migration = background.submit(shuttle.migrate, options)
        _stand_at(here.control, "traced", migration)
        warm_pool(warm_bytes)
        before = cpu_s(here.pid), cpu_s(there.pid)
        request(here.control, "point", action="release", name="traced")
        _stand_at(here.control, "round", migration)
        after = cpu_s(here.pid), cpu_s(there.pid)
        request(here.control, "point", action="release", name="round")
        report = migration.result()
    first, size_bytes = report["rounds"][0], shuttle.config.memory_bytes
    if first["wire_bytes"] < size_bytes:
        raise PagefireError("the benchmark's guest was not sent whole", f"{first['wire_bytes']} of {size_bytes} bytes")
    congestion = next(one["congestion"] for one in report["tcp"] if one["role"] == "pages")
    return FullRound(first["wire_bytes"] / first["duration_s"], after[0] - before[0], after[1] - before[1], congestion)


@contextlib.contextmanager
def _held(control: Path, point: str) -> Iterator[None]:
    """Hold the script at a point; nobody is left standing there, whatever ends this."""
    request(control, "point", action="hold", name=point)
    try:
        yield
    finally:
        with contextlib.suppress(PagefireError):
            request(control, "point", action="release", name=point)


def _stand_at(control: Path, point: str, migration: Future[Json]) -> None:
    """Wait until the script stands at a point; raises what the migration failed of, if that keeps it from there."""
    try:
        request(control, "point", timeout_s=_PATIENCE_S, action="wait", name=point)
    except PagefireError:
        if migration.done():
            migration.result()
        raise


def _given(backing: str, size_bytes: int) -> contextlib.AbstractContextManager[None]:
    """Have this host give memory of a backing: as much as three guests where it comes out of a pool."""
    if backing == Backing.THP.value:
        return huge_pages.transparent_huge_pages()
    if backing == Backing.HUGETLB.value:
        return huge_pages.hugetlb_pool(_NEEDED_TIMES * size_bytes)
    return contextlib.nullcontext()


def _as_arrived(size_bytes: int, backing: str) -> memfd.Mapping:
    """Make memory of distinct pages with the past of a guest's that has arrived, fresh each time.

    It was filled through a mapping that is gone, as the destination's daemon's is, so that the kernel has each page marked as
    referenced (/proc/kpageflags), and the first sendfile moves it to the list of active pages, which is a fifth of its CPU time.
    """
    with contextlib.closing(memory_of("bench", size_bytes, backing)) as filled:
        _fill_distinct(filled)
        fd = os.dup(filled.fd)
    return memfd.Mapping(fd)


def _fill_distinct(memory: memfd.Mapping) -> None:
    words = memory.array.view(np.uint64)
    random = np.random.default_rng(1)
    step = 1 << 22
    for at in range(0, words.size, step):
        part = words[at : at + step]
        part[:] = random.integers(0, 1 << 63, part.size, np.uint64)
