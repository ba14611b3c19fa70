"""What is predicted is what happens: ten mixed migrations, each predicted first, at least eight within 30% of their total time.

Where nothing bounds the path but memory, free memory is made warm before either (scripts/bench/ballast.py): what a hypervisor has
taken back costs several times as much when it is touched again, and which free page the kernel gives next nobody can predict.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_duration, parse_size
from pagefire.scripts.bench.ballast import warm_pool
from pagefire.source_host.options import MigrationOptions
from tests.e2e.host_pair import HostPair, Json, guest_arguments
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.soak, pytest.mark.alone]

WATCH_S = 3.0
#: How far the prediction of the total time may be off, as a share of what it was, and how many of the cases may be further off.
WITHIN, MISSES = 0.30, 2
_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Case:
    """One guest, by `guest_arguments`, and one migration of it."""

    guest: dict[str, Any]
    options: dict[str, Any]

    def __str__(self) -> str:
        shape = " ".join(str(value) for value in self.guest.values() if value is not None)
        return f"{shape}: " + " ".join(
            f"{name}={value:g}" if isinstance(value, float) else str(value) for name, value in self.options.items()
        )


def case(memory: str, workload: str, working_set: str, rate: str | None, mode: str, **options: Any) -> Case:
    return Case(
        {"memory": memory, "workload": workload, "vcpus": 2, "working_set": working_set, "rate": rate},
        {"mode": mode, **options},
    )


CASES = (
    case("1GiB", "oltp", "25%", "20k", "hybrid"),
    case("512MiB", "random", "25%", "20k", "hybrid", max_bandwidth_Bps=200 * _MB),
    case("512MiB", "hotspot", "50%", "30k", "precopy", max_bandwidth_Bps=400 * _MB, streams=2),
    case("256MiB", "random", "128MiB", "5k", "precopy", max_bandwidth_Bps=100 * _MB),
    case("512MiB", "random", "25%", "20k", "postcopy"),
    case("512MiB", "oltp", "25%", "10k", "stop-and-copy"),
    case("256MiB", "hotspot", "25%", "20k", "hybrid", max_bandwidth_Bps=50 * _MB),
    case("1GiB", "sequential", "25%", "10k", "hybrid", max_bandwidth_Bps=300 * _MB),
    # Faster than the path carries: it would be cancelled, and is left to move the rest afterwards.
    case("256MiB", "random", "50%", "50k", "precopy", max_bandwidth_Bps=100 * _MB, max_rounds=4, on_limit="postcopy"),
    case("512MiB", "adversary", "64MiB", None, "hybrid", max_bandwidth_Bps=150 * _MB),
)


def predicted_and_moved(one: Case) -> tuple[Json, Json]:
    """Predict a migration, and then do it; gives the prediction and the report."""
    with HostPair(guest_arguments(**one.guest)) as pair:
        options = dataclasses.asdict(MigrationOptions(to=pair.destination, **one.options))
        _make_warm(one)
        told: Json = request(pair.source_socket, "predict", timeout_s=60.0, name=pair.name, watch_s=WATCH_S, **options)[
            "prediction"
        ]
        _make_warm(one)
        return told, pair.migrate(**one.options)


def _make_warm(one: Case) -> None:
    if "max_bandwidth_Bps" not in one.options:
        warm_pool(2 * parse_size(one.guest["memory"]))


def compared(one: Case, told: Json, report: Json) -> str:
    """Lay a prediction beside the report, in some lines."""
    ratio = told["total_s"] / report["total_s"]
    figures = [
        f"{name} {format_duration(told[name])} / {format_duration(report[name])}"
        for name in ("total_s", "precopy_s", "stun_s", "resident_after_s")
    ]
    rounds = f"rounds {len(told['rounds'])} / {len(report['rounds'])}"
    left = f"left {told['stun_pages'] + told['remaining_pages']} / {report['stun_pages'] + report['bitmap']['pages']}"
    return f"{ratio:.2f} of {one}\n     " + ", ".join([*figures, rounds, left])


@pytest.mark.timeout(900)
def test_ten_predictions(record_property: pytest.RecordProperty) -> None:
    """Must show: at least eight of ten totals within 30%."""
    need_pagemap_scan()
    ratios = []
    for index, one in enumerate(CASES):
        told, report = predicted_and_moved(one)
        ratios.append(told["total_s"] / report["total_s"])
        print(f"{index + 1:2}. predicted / actual: {compared(one, told, report)}")
        record_property(f"case_{index + 1}", f"{ratios[-1]:.3f} {one}")
    within = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    print(f"{within} of {len(ratios)} within {WITHIN:.0%}")
    assert within >= len(CASES) - MISSES, ratios
