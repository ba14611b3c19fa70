"""`pagefire bench` in its tiny form: every benchmark through the real command, every figure there, nothing left behind."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pagefire.scripts.bench import suite
from pagefire.scripts.bench.stun import PARTS
from tests.e2e.host_pair import Json, finish, run, start
from tests.e2e.place import Place
from tests.support.kernel import need_pagemap_scan
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

MIB = 1 << 20


def in_order(spread: Json) -> bool:
    return bool(0 < spread["min"] <= spread["median"] <= spread["max"])


def throughput(result: Json) -> None:
    assert [(row["streams"], row["backing"], row["cold"]) for row in result["rows"]] == [
        (1, "4k", True), (1, "4k", False),
    ]  # fmt: skip
    for row in result["rows"]:
        assert in_order({"min": row["ratio_min"], "median": row["ratio"], "max": row["ratio_max"]})
        # Of one pair the medians are its figures.
        assert row["round_Bps"] / row["copier_Bps"] == pytest.approx(row["ratio"])
        assert row["congestion"]


def cpu(result: Json) -> None:
    assert [row["cold"] for row in result["rows"]] == [True, False]
    for row in result["rows"]:
        for side in ("source", "dest", "both"):
            ours, theirs = (row[f"{side}_{whose}s_per_GiB"] for whose in ("", "copier_"))
            assert in_order(ours)
            assert in_order(theirs)
            assert ours["median"] / theirs["median"] == pytest.approx(row[f"{side}_ratio"]["median"])
        sides = [row[f"{side}_s_per_GiB"]["median"] for side in ("source", "dest")]
        assert sum(sides) == pytest.approx(row["both_s_per_GiB"]["median"])


def stun(result: Json) -> None:
    (row,) = result["rows"]
    assert (row["series"], row["migrations"], len(row["stuns_s"]), len(row["bares_s"])) == ("distribution", 2, 2, 2)
    for figure in (row["stun_s"], row["bare_s"], row["ratio"]):
        assert in_order(figure)
    assert row["stun_s"]["p50"] == min(row["stuns_s"])
    assert row["stun_s"]["p99"] == row["stun_s"]["max"] == max(row["stuns_s"])
    assert set(row["breakdown"]) == set(PARTS)
    # Of two migrations the median of each part is the mean, so that the parts add up to the downtime and what comes after it.
    downtime_s = sum(row["breakdown"].values()) - row["breakdown"]["first_commit_s"]
    assert downtime_s == pytest.approx(row["downtime_s"]["median"], rel=0.2)


def brownout(result: Json) -> None:
    (row,) = result["rows"]
    assert row["rate_per_s"] == 50_000
    assert result["fire_s"] > 0
    for field in ("during_over_beside", "during_over_alone", "beside_over_alone", "after_over_alone", "fires"):
        assert in_order(row[field]), field
    for of_daemon, of_stand_in in zip(row["cpu_shares"], row["stand_in_shares"], strict=True):
        assert in_order(of_daemon)
        assert in_order(of_stand_in)
    product = row["during_over_beside"]["median"] * row["beside_over_alone"]["median"]
    assert product == pytest.approx(row["during_over_alone"]["median"])


def faults(result: Json) -> None:
    # Of the few pages that hybrid leaves no vCPU may have had to wait for one: then it has no row.
    *hybrid, postcopy = result["rows"]
    assert [row["mode"] for row in result["rows"]] in (["hybrid", "postcopy"], ["postcopy"])
    # All of memory is left in mode postcopy.
    assert postcopy["remaining_pages"]["median"] == 64 * MIB // 4096
    for row in hybrid:
        assert 0 < row["remaining_pages"]["median"] < postcopy["remaining_pages"]["median"]
    for row in result["rows"]:
        assert 0 < row["faults"]["median"] <= row["remaining_pages"]["median"]
        for field in ("fault_us", "bare_us"):
            assert 0 < row[field]["p50"]["median"] <= row[field]["p99"]["median"] <= row[field]["max"]["median"]


def memory(result: Json) -> None:
    dense, sparse = result["rows"]
    assert (dense["memory_bytes"], dense["resident_bytes"]) == (64 * MIB, 64 * MIB)
    assert (sparse["memory_bytes"], sparse["resident_bytes"]) == (6 << 40, 64 * MIB)
    for row in result["rows"]:
        for side in ("source", "dest"):
            assert row[f"{side}_own_bytes"]["median"] >= row[f"{side}_rest_bytes"]["median"] > 0
            assert row[f"{side}_ratio"]["median"] >= 1
            # Guest memory is not counted: not even the guest of 6 TiB has a bitmap of it here.
            assert row[f"{side}_own_bytes"]["median"] < 150 * MIB


def compression(result: Json) -> None:
    fast, *slow = result["rows"]
    assert (fast["link_bps"], fast["contents"], fast["mode"]) == (None, "text", "auto")
    for row in result["rows"]:
        assert row["round_s"]["median"] / row["off_round_s"]["median"] == pytest.approx(row["round_ratio"]["median"])
        assert row["total_s"]["median"] / row["off_total_s"]["median"] == pytest.approx(row["total_ratio"]["median"])
    # Only root has a slow link; where there is one, compression is of use there.
    for row in slow:
        assert row["codec"] is not None
        assert row["wire_bytes"]["max"] < row["off_wire_bytes"]["min"]


def deltas(result: Json) -> None:
    (row,) = result["rows"]
    assert (row["workload"], row["mode"], row["room"]) == ("random", "precopy", 1.0)
    assert row["total_s"]["median"] / row["digests_total_s"]["median"] == pytest.approx(row["total_ratio"]["median"])
    assert row["wire_bytes"]["max"] < row["digests_wire_bytes"]["min"]
    assert row["delta_ratio"]["min"] > 5
    assert row["left_pages"]["max"] == row["digests_left_pages"]["max"] == 0


CHECKS: dict[str, Callable[[Json], None]] = {
    "throughput": throughput, "stun": stun, "cpu": cpu, "brownout": brownout, "faults": faults, "memory": memory,
    "compression": compression, "deltas": deltas,
}  # fmt: skip


#: Those that take longest, of which `make test` has the parts elsewhere.
LONG = ("brownout", "compression", "deltas", "memory", "faults")


@pytest.mark.parametrize("name", [*(name for name in suite.BENCHMARKS if name not in LONG), *soaked(*LONG)])
def test_a_small_benchmark_has_every_figure_and_leaves_nothing(name: str, place: Place, tmp_path: Path) -> None:
    need_pagemap_scan()
    folder = tmp_path / "report"
    code, out, err = run("bench", name, "--quick", "--json", "-", "--report", str(folder))
    assert code == 0, err
    result = json.loads(out)
    assert result["benchmark"] == name
    assert {"at", "reference", "repetitions", "host", "rows", "took_s"} <= result.keys()
    CHECKS[name](result)
    assert "Reference: " in err
    assert json.loads((folder / f"{name}.json").read_text()) == result
    assert (folder / f"{name}.png").stat().st_size > 20_000
    place.assert_nothing_left()


def test_an_interrupted_benchmark_leaves_nothing(place: Place) -> None:
    process = start("bench", "faults", "--quick")
    deadline = time.monotonic() + 30.0
    while not place.processes("guest_workload") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, _ = finish(process)
    assert code == 3
    place.assert_nothing_left()


def test_a_benchmark_that_does_not_exist_is_refused() -> None:
    code, _, err = run("bench", "speed")
    assert code == 2
    assert "known are throughput, stun, cpu, brownout, faults, memory, compression, deltas" in err
