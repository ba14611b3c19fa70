"""`pagefire bench`: a figure as a ratio to a reference taken in the same run, alternating, with median and spread.

throughput: round 1 of a real migration (idle guest, every page distinct and incompressible) against the bare copier (copier.py).

Free memory that lay idle is taken back by some hypervisors (free page reporting, after 2 s) and costs several times as much when it
is touched again. So before every measurement a child touches and frees as much as it needs. Which free page the kernel gives next
cannot be told, though, so that does not help much (0.5-0.9 GB/s right afterwards, 1.2 the second time). Where the machine is yours,
`--hold-memory` lets a child hold all free memory but what the benchmark needs: then what is given next was touched just before.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_size, format_throughput
from pagefire.scripts.daemons import Pair
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]

#: What a measurement needs beside the ballast: two guests' memory and one to spare, two daemons, two guest processes.
_NEEDED_TIMES = 3
_NEEDED_BYTES = 1 << 30
#: What is left alone when the rest is touched, so that nobody has to be killed for it.
_UNTOUCHED_BYTES = 384 << 20


def throughput(
    memory_bytes: int, streams: tuple[int, ...], repetitions: int, console: Console, *, hold_memory: bool
) -> Json:
    """Measure round 1 against the copier, cold and warm; gives {rows: [...]}, see the README for the fields."""
    source = memfd.Mapping(memfd.create("bench", memory_bytes))
    needed_bytes = memory_bytes * _NEEDED_TIMES + _NEEDED_BYTES
    if hold_memory:
        console.print(f"  all free memory but {format_size(needed_bytes)} is held until the end")
    ballast = Ballast(_free_bytes() - needed_bytes if hold_memory else 0)
    try:
        _fill_distinct(source)
        rows = []
        for count in streams:
            for cold in (True, False):
                pairs, congestion = list[tuple[float, float]](), ""
                for repetition in range(repetitions):
                    # Whoever comes second finds the machine as the first one left it: each does so every other time.
                    if repetition % 2:
                        copier_bps = _copier(source, count, congestion, needed_bytes, cold=cold)
                    round_bps, congestion = _round_one(memory_bytes, count, needed_bytes, cold=cold)
                    if not repetition % 2:
                        copier_bps = _copier(source, count, congestion, needed_bytes, cold=cold)
                    pairs.append((round_bps, copier_bps))
                    console.print(
                        f"  streams={count} cold={cold}: round 1 {format_throughput(round_bps)}, copier "
                        f"{format_throughput(copier_bps)}, ratio {round_bps / copier_bps:.2f}"
                    )
                rows.append(_row(count, cold, pairs, congestion))
    finally:
        ballast.release()
        source.close()
    return {"benchmark": "throughput", "memory_bytes": memory_bytes, "repetitions": repetitions, "rows": rows}


def _row(streams: int, cold: bool, pairs: list[tuple[float, float]], congestion: str) -> Json:
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    return {
        "streams": streams,
        "backing": "4k",
        "cold": cold,
        "congestion": congestion,
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "copier_Bps": statistics.median(theirs for _, theirs in pairs),
        "round_Bps": statistics.median(ours for ours, _ in pairs),
    }


def _round_one(memory_bytes: int, streams: int, needed_bytes: int, *, cold: bool) -> tuple[float, str]:
    """Migrate an idle guest; gives round 1's bytes per second and the congestion control of its connections."""
    with (
        Pair(["--memory", str(memory_bytes), "--workload", "idle", "--vcpus", "1"]) as pair,
        ThreadPoolExecutor(1) as background,
    ):
        options = MigrationOptions(
            to=pair.destination, mode="precopy", streams=streams, populate=not cold, check=False, settle_s=0.0
        )
        # Held right before round 1: until the destination's shell has started, warm memory is cold again.
        request(pair.source_socket, "point", action="hold", name="traced")
        migration = background.submit(request, pair.source_socket, "migrate", **dataclasses.asdict(options))
        request(pair.source_socket, "point", action="wait", name="traced")
        warm_pool(min(needed_bytes, _free_bytes() - _UNTOUCHED_BYTES))
        request(pair.source_socket, "point", action="release", name="traced")
        report = migration.result()["report"]
    first = report["rounds"][0]
    if first["wire_bytes"] < memory_bytes:
        raise PagefireError(
            "the benchmark's guest was not sent whole", f"{first['wire_bytes']} of {memory_bytes} bytes"
        )
    congestion = next(one["congestion"] for one in report["tcp"] if one["role"] == "pages")
    return first["wire_bytes"] / first["duration_s"], congestion


def _copier(source: memfd.Mapping, streams: int, congestion: str, needed_bytes: int, *, cold: bool) -> float:
    from pagefire.scripts.copier import copy

    warm_pool(min(needed_bytes, _free_bytes() - _UNTOUCHED_BYTES))
    return copy(source, streams, congestion.encode(), cold=cold)


def warm_pool(size_bytes: int) -> None:
    """Touch and free that much memory, in a child, so that what is taken next is at hand."""
    os.waitpid(_holding(size_bytes, lambda: None), 0)


def _free_bytes() -> int:
    return int(psutil.virtual_memory().free)


class Ballast:
    """A child that holds so much memory, none below a page, from now until `release`."""

    def __init__(self, held_bytes: int) -> None:
        ours, theirs = os.pipe()

        def hold() -> None:
            # Ends with this process too, however that ends: then nobody has the other end any more.
            os.close(theirs)
            os.read(ours, 1)

        self._child = _holding(held_bytes, hold)
        os.close(ours)
        self._release = theirs

    def release(self) -> None:
        os.close(self._release)
        os.waitpid(self._child, 0)


def _holding(size_bytes: int, until: Callable[[], None]) -> int:
    """Fork a child that takes so much memory, returns from `until` and ends; gives its pid once the memory is taken."""
    taken, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if size_bytes >= PAGE_BYTES:
                memory = memfd.Mapping(memfd.create("held", size_bytes // PAGE_BYTES * PAGE_BYTES))
                memory.populate(0, memory.pages)
            os.write(tell, b"!")
            until()
        finally:
            os._exit(0)
    os.close(tell)
    done = os.read(taken, 1)
    os.close(taken)
    if not done:
        os.waitpid(child, 0)
        raise PagefireError(f"{format_size(size_bytes)} of memory could not be taken", "", "run it on an idle machine")
    return child


def _fill_distinct(memory: memfd.Mapping) -> None:
    words = memory.array.view(np.uint64)
    random = np.random.default_rng(1)
    step = 1 << 22
    for at in range(0, words.size, step):
        part = words[at : at + step]
        part[:] = random.integers(0, 1 << 63, part.size, np.uint64)


BENCHMARKS: dict[str, Callable[..., Json]] = {"throughput": throughput}


def print_rows(result: Json, console: Console) -> None:
    """Print a benchmark's rows for a person."""
    console.print(
        f"{result['benchmark']}: {format_size(result['memory_bytes'])}, median of {result['repetitions']}, ratio to the bare copier"
    )
    for row in result["rows"]:
        console.print(
            f"  {row['streams']} stream(s), destination memory {'cold' if row['cold'] else 'warm'}: "
            f"ratio {row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f}), "
            f"round 1 {format_throughput(row['round_Bps'])}, copier {format_throughput(row['copier_Bps'])}"
        )
    console.print(f"  measured {time.strftime('%Y-%m-%d %H:%M')}")
