"""`make soak`: the full counts of every proof and figure, into one dated results file.

Runs the tests marked `soak` (their recorded properties are kept), nine migrations of a 1 GiB oltp guest, the benchmarks of
throughput and stun, and the fuzzing. Takes about two hours on two cores; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.transport.software import versions
from pagefire.scripts.bench import suite
from pagefire.scripts.bench.ballast import warm_pool
from pagefire.scripts.bench.options import BenchOptions
from pagefire.scripts.demo import run_demo
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]

_GIB = 1 << 30
_TITLES = {
    "stuns": "the stun of a 1 GiB oltp guest, nine times",
    "throughput": "throughput of round 1 against the bare copier, seven pairs a case",
    "stun": "the stun over a hundred migrations, and against memory, dirty rate and vCPUs",
    "faults": "faults at every moment, recovery and onward migration, two tests at a time",
    "tests": "the other tests at full counts",
    "fuzz": "a million hostile inputs for what reads a peer's bytes",
}
#: The tests of the part `faults`.
FAULTS = tuple(f"tests/e2e/test_{name}.py" for name in ("fault_matrix", "onward", "recovery"))
_STUN_FIELDS = ("stun_s", "observer_stun_s", "downtime_s", "all_running_s", "stall_s", "resident_after_s", "total_s")


def soak_tests(extra: list[str]) -> Json:
    """Run tests at full counts; gives each one's outcome, time and recorded properties."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-m", "soak", "-p", "no:cacheprovider", f"--junitxml={path}", *extra]
        code = subprocess.run(command, check=False).returncode
        cases = [
            {
                "test": f"{case.get('classname')}::{case.get('name')}",
                "outcome": "failed" if any(child.tag in ("failure", "error") for child in case)
                else "skipped" if case.find("skipped") is not None else "passed",
                "time_s": float(case.get("time", 0)),
                "figures": {one.get("name"): one.get("value") for one in case.iter("property")},
            }
            for case in ElementTree.parse(path).iter("testcase")
        ]  # fmt: skip
    return {"exit_code": code, "cases": cases}


def fuzz() -> Json:
    """Run all targets of tests/fuzz, ten minutes on one CPU; gives each one's figures."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fuzz.json"
        code = subprocess.run([sys.executable, "-m", "tests.fuzz", f"--json={path}"], check=False).returncode
        return {"exit_code": code, "targets": json.loads(path.read_text()) if path.exists() else {}}


def faults(extra: list[str], console: Console) -> Json:
    """Make every fault, two at a time because nothing is timed, and print who owned the guest after each."""
    result = soak_tests(["--numprocesses=2", "--dist=worksteal", *FAULTS, *extra])
    owned: dict[str, dict[str, set[str]]] = {}
    for case in result["cases"]:
        if "owned" in case["figures"]:
            moment, fault, owner = case["figures"]["owned"].split(" | ")
            owned.setdefault(moment, {}).setdefault(fault, set()).add(owner)
    names = list(dict.fromkeys(fault for row in owned.values() for fault in row))
    table = Table("moment", *names)
    for moment, row in owned.items():
        table.add_row(moment, *(" or ".join(sorted(row.get(fault, set()))) for fault in names))
    console.print(table)
    return result


def stuns(count: int, console: Console) -> Json:
    """Must show 2: a 1 GiB oltp guest with 2 vCPUs at full speed, hybrid, `count` times."""
    config = GuestConfig("guest0", _GIB, _GIB, _GIB // 4, 2, "oltp")
    reports = []
    for index in range(count):
        warm_pool(2 * _GIB)
        report = run_demo(config, MigrationOptions(to=""), 2.0, {}, Console(quiet=True))
        reports.append(report)
        console.print(
            f"  {index + 1}/{count}: stun {report['stun_s'] * 1e3:.2f} ms, observer {report['observer_stun_s'] * 1e3:.2f} ms"
        )
    return {
        "migrations": count,
        "invariant_true": sum(bool(report["verified"]["invariant"]) for report in reports),
        "commits_lost": sum(report["verified"]["commits_lost"] for report in reports),
        "commits_repeated": sum(report["verified"]["commits_repeated"] for report in reports),
        "proven": all(_proven(report["verified"]) for report in reports),
        "medians": {name: statistics.median(report[name] for report in reports) for name in _STUN_FIELDS},
        "breakdown_medians": {
            name: statistics.median(report["downtime_breakdown"][name] for report in reports)
            for name in reports[0]["downtime_breakdown"]
        },
        "stun_s": sorted(report["stun_s"] for report in reports),
    }


def _proven(verified: Json) -> bool:
    """Does the bank balance, with no commit lost and none repeated?"""
    return bool(verified["invariant"]) and verified["commits_lost"] == verified["commits_repeated"] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(_TITLES), help="Run one part only.")
    parser.add_argument("pytest", nargs="*", help="Further arguments for pytest.")
    chosen = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    path = Path("results") / f"soak-{datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    results: Json = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg(),
        "versions": {"pagefire": versions().pagefire, "python": versions().python},
    }
    parts: dict[str, Callable[[], Json]] = {
        "stuns": lambda: stuns(9, console),
        "throughput": lambda: suite.run(
            "throughput", BenchOptions(streams="1,2", backing="4k", repetitions=7, hold_memory=True).plan(), console
        ),
        "stun": lambda: suite.run("stun", BenchOptions(migrations=100).plan(), console),
        "faults": lambda: faults(chosen.pytest, console),
        "tests": lambda: soak_tests([*(f"--ignore={path}" for path in FAULTS), *chosen.pytest]),
        "fuzz": fuzz,
    }
    for name, run in parts.items():
        if chosen.only in (None, name):
            console.print(f"{round(time.monotonic() - began)} s: {_TITLES[name]}")
            results[name] = run()
            results["took_s"] = round(time.monotonic() - began)
            path.write_text(
                json.dumps(results, indent=1) + "\n", encoding="utf-8"
            )  # after each part: the next may be interrupted
    console.print(f"Results: {path}")
    codes = (results.get(part, {}).get("exit_code", 0) for part in ("faults", "tests", "fuzz"))
    sys.exit(max(*codes, int("stuns" in results and not results["stuns"]["proven"])))


if __name__ == "__main__":
    main()
