"""`pagefire bench`: a figure as a ratio to a reference taken in the same run, alternating, with median and spread.

throughput: round 1 of a real migration (idle guest, every page distinct and incompressible) against the bare copier (copier.py).
Free memory that lay idle is taken back by some hypervisors and costs several times as much when it is touched again, so before
every measurement as much memory as it will take is touched and freed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_size, format_throughput
from pagefire.scripts.daemons import Pair
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]


def throughput(memory_bytes: int, streams: tuple[int, ...], repetitions: int, console: Console) -> Json:
    """Measure round 1 against the copier, cold and warm; gives {rows: [...]}, see the README for the fields."""
    source = memfd.Mapping(memfd.create("bench", memory_bytes))
    try:
        _fill_distinct(source)
        rows = []
        for count in streams:
            for cold in (True, False):
                pairs = []
                for _ in range(repetitions):
                    warm_pool(memory_bytes)
                    round_bps, congestion = _round_one(memory_bytes, count, cold=cold)
                    warm_pool(memory_bytes)
                    copier_bps = _copier(source, count, congestion, cold=cold)
                    pairs.append((round_bps, copier_bps))
                    console.print(
                        f"  streams={count} cold={cold}: round 1 {format_throughput(round_bps)}, copier "
                        f"{format_throughput(copier_bps)}, ratio {round_bps / copier_bps:.2f}"
                    )
                rows.append(_row(count, cold, pairs, congestion))
    finally:
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


def _round_one(memory_bytes: int, streams: int, *, cold: bool) -> tuple[float, str]:
    """Migrate an idle guest; gives round 1's bytes per second and the congestion control of its connections."""
    with Pair(["--memory", str(memory_bytes), "--workload", "idle", "--vcpus", "1"]) as pair:
        warm_pool(memory_bytes)
        options = MigrationOptions(
            to=pair.destination, mode="precopy", streams=streams, populate=not cold, check=False, settle_s=0.0
        )
        report = request(pair.source_socket, "migrate", **dataclasses.asdict(options))["report"]
    first = report["rounds"][0]
    if first["wire_bytes"] < memory_bytes:
        raise PagefireError(
            "the benchmark's guest was not sent whole", f"{first['wire_bytes']} of {memory_bytes} bytes"
        )
    congestion = next(one["congestion"] for one in report["tcp"] if one["role"] == "pages")
    return first["wire_bytes"] / first["duration_s"], congestion


def _copier(source: memfd.Mapping, streams: int, congestion: str, *, cold: bool) -> float:
    from pagefire.scripts.copier import copy

    return copy(source, streams, congestion.encode(), cold=cold)


def warm_pool(size_bytes: int) -> None:
    """Touch and free that much memory, in a child, so that what is taken next is at hand."""
    child = os.fork()
    if child == 0:
        try:
            for _ in range(2):
                memory = memfd.Mapping(memfd.create("warm", size_bytes))
                memory.populate(0, size_bytes // PAGE_BYTES)
                memory.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


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
