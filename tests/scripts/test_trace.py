"""`pagefire trace`: its combinations, its arguments, its rows on a real guest, and its picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.linux.fire_cost import fire_cost_s
from pagefire.protocol.errors import UsageError
from pagefire.scripts.trace import shapes_of, way_words, ways_to_install
from pagefire.scripts.trace_options import TrialOptions
from pagefire.scripts.trace_plot import write_trace_folder
from tests.support.kernel import need_pagemap_scan

Json = dict[str, Any]
ROW_FIELDS = {
    "install", "tracer", "granularity", "backing", "touched", "vcpus", "step", "install_s", "any_vcpu_gap_s", "vcpu_gap_s",
    "claimed_vcpu_gap_s", "guest_rate_before_per_s", "guest_rate_install_per_s", "guest_rate_after_per_s", "fires", "scan_s",
    "tlb_shootdowns",
}  # fmt: skip


def test_every_combination_is_taken_once() -> None:
    ways = ways_to_install(["stop", "loose"], ["vcpu", "host"], ["4K", "2M"], [512, None], None)
    # A stop-based install has no choice of tracer: (1 + 2) x 2 x 2.
    assert len(ways) == len(set(ways)) == 12
    assert {way.tracer for way in ways if way.policy == "stop"} == {"vcpu"}


def test_a_rolling_install_is_the_hosts() -> None:
    ways = ways_to_install(["loose", "rolling"], ["vcpu", "host"], ["4K"], [None], None)
    assert [(way.policy, way.tracer) for way in ways] == [("loose", "vcpu"), ("loose", "host"), ("rolling", "host")]


def test_guests_are_every_combination_too() -> None:
    base = GuestConfig("g", 1 << 30, 1 << 30, 1 << 30, 1, "random")
    shapes = list(shapes_of(base, [1, 4], [0.1, 1.0], ["4k", "thp"], [0.5, None]))
    assert len({(one.config.vcpus, one.touched, one.config.backing, one.rate_share) for one in shapes}) == 16
    assert {one.config.working_set_bytes for one in shapes} == {round(0.1 * (1 << 30)), 1 << 30}


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("vcpus", "1,two", "no list of numbers"),
        ("vcpus", "300", "300 vCPUs"),
        ("touched", "0%", "not a valid share"),
        ("touched", "10%,,30%", "empty entry"),
        ("rate", "2000", "not a valid share"),
        ("backing", "hugelib", "--backing hugelib is unknown"),
        ("install", "loos", "--install loos is unknown"),
        ("tracer", "guest", "--tracer guest is unknown"),
        ("granularity", "1G", "--granularity 1G is unknown"),
        ("install_step", "4K", "--install-step 4K is unknown"),
        ("install_loss", "lots", "not a valid share"),
        ("tracker", "soft-dirty", "--tracker soft-dirty is unknown"),
        ("period", "5", "duration"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_a_guest_is_started(field: str, value: str, why: str) -> None:
    options = TrialOptions(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=why):
        (options.shapes(), options.ways(), options.times())


def test_ways_are_named_in_a_few_words() -> None:
    assert way_words("loose", "vcpu", "2M", None) == "loose by vcpu, 2M, all"
    assert way_words("stop", "vcpu", "4K", 2 << 20) == "stop, 4K, 2 MiB"


@pytest.mark.kernel
def test_a_fire_costs_something() -> None:
    need_pagemap_scan()
    assert fire_cost_s() > 0


@pytest.mark.e2e
@pytest.mark.kernel
def test_a_trial_gives_every_field_and_a_picture(tmp_path: Path) -> None:
    need_pagemap_scan()
    command = [
        sys.executable, "-m", "pagefire.scripts.cli", "trace", "--memory", "64MiB", "--vcpus", "1,2", "--rate", "50%",
        "--install", "stop,loose,rolling", "--link-rate", "2gbit",
        "--repetitions", "1", "--before", "200ms", "--traced", "300ms", "--period", "100ms", "--after", "100ms",
        "--json", "-", "--report", str(tmp_path / "report"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    result = json.loads(done.stdout)
    rows = result["rows"]
    assert [(row["vcpus"], row["install"], row["tracer"]) for row in rows] == [
        (vcpus, *way)
        for vcpus in (1, 2)
        for way in (("stop", "vcpu"), ("loose", "vcpu"), ("loose", "host"), ("rolling", "host"))
    ]
    for row in rows:
        assert row.keys() >= ROW_FIELDS
        assert set(row["vcpu_gap_s"]) == {"p50", "max"}
        assert row["fires"] >= row["dirty_pages"] > 0
        assert row["fires_cost_s"] == pytest.approx(row["fires"] * result["fire_s"])
        assert (row["claimed_vcpu_gap_s"] is not None) is (row["tracer"] == "vcpu" and row["install"] == "loose")
    # 64 MiB at 2 Gbit/s.
    assert all(row["install_s"] > 0.2 for row in rows if row["install"] == "rolling")
    assert "no vCPU" in done.stderr
    assert json.loads((tmp_path / "report" / "trace.json").read_text()) == result
    assert (tmp_path / "report" / "trace.png").stat().st_size > 10_000
    # A single combination, and shares instead of vCPUs, are drawn as well.
    write_trace_folder(result | {"rows": rows[:1], "fire_s": None}, tmp_path / "one")
    write_trace_folder(result | {"rows": [rows[0], rows[1] | {"vcpus": 1, "touched": 0.3}]}, tmp_path / "shares")
    # Where granularities were compared, so are their costs.
    assert result["crossings"] == []
    assert all(row["tracing_s"] > row["fires_cost_s"] for row in rows)
    write_trace_folder(result | {"rows": [rows[0], rows[0] | {"granularity": "2M"}]}, tmp_path / "granularities")
    write_trace_folder(result | {"rows": [rows[0], rows[0] | {"rate_share": None}]}, tmp_path / "rates")
