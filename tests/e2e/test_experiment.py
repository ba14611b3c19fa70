"""Experiments with real guests: killed in the middle and resumed, on a cluster, with faults; and what their folders hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pagefire.scripts.experiment.scenario import load_scenario
from pagefire.scripts.experiment.store import RESULTS, read_experiment, read_lines
from pagefire.scripts.experiment.sweep import tasks_of
from tests.e2e.host_pair import finish, run, start, until
from tests.e2e.place import Place
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

Json = dict[str, Any]

TINY = """
title = "Tiny"
question = "Does it work?"
repetitions = {repetitions}
warmup = "0"
warmup-migrations = 0
[guest]
memory = "64MiB"
resident = "16MiB"
vcpus = 1
workload = "random"
rate = "2k/s"
[options]
settle = "0"
check = false
[sweep]
mode = ["hybrid", "precopy"]
[[figure]]
kind = "bars"
x = "mode"
y = "stun"
"""


@pytest.fixture(autouse=True)
def _tracing() -> None:
    need_pagemap_scan()


def write_scenario(folder: Path, repetitions: int) -> Path:
    path = folder / "tiny.toml"
    path.write_text(TINY.format(repetitions=repetitions))
    return path


def lines_of(folder: Path) -> list[Json]:
    return read_lines(folder / RESULTS)[0]


def expected_keys(scenario: Path) -> list[str]:
    return [task.key for task in tasks_of(load_scenario(scenario))]


def kill_in_the_middle(scenario: Path, results: Path, after: int, place: Place) -> None:
    """Start an experiment and kill it with SIGKILL in the middle of a migration, when `after` of them are in its folder."""
    process = start("experiment", "run", str(scenario), "--results", str(results))
    with process:
        try:
            until(lambda: (results / RESULTS).exists() and len(lines_of(results)) >= after, "no results come", 90.0)
            until(lambda: bool(place.processes("guest_workload")), "no guest comes")
        finally:
            process.kill()
    # Its daemons are tied to it: they end by themselves, with their guests.
    until(lambda: not place.processes(), f"still there: {place.processes()}", 30.0)


def killed_and_resumed(folder: Path, repetitions: int, after: list[int], place: Place) -> list[Json]:
    scenario, results = write_scenario(folder, repetitions), folder / "results"
    for count in after:
        kill_in_the_middle(scenario, results, count, place)
        assert len(lines_of(results)) < 2 * repetitions
    # As if the last one had been killed while it wrote.
    with (results / RESULTS).open("a") as file:
        file.write('{"key": "torn')
    code, _, err = run("experiment", "run", str(scenario), "--results", str(results))
    assert code == 0, err
    assert f"{results} has" in err
    lines = lines_of(results)
    assert sorted(line["key"] for line in lines) == sorted(expected_keys(scenario))
    assert {line["outcome"] for line in lines} == {"completed"}
    assert not (results / "underway.json").exists()
    place.assert_nothing_left()
    for line in lines:
        assert line["report"]["outcome"] == "completed"
        assert line["report"]["stun_s"] > 0
        assert line["command"].startswith("pagefire demo --memory 64MiB")
    return lines


def test_killed_in_the_middle_and_resumed_every_case_is_there_once(tmp_path: Path, place: Place) -> None:
    assert len(killed_and_resumed(tmp_path, 1, [1], place)) == 2


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_twenty_migrations_killed_thrice_are_one_report(tmp_path: Path, place: Place) -> None:
    lines = killed_and_resumed(tmp_path, 10, [2, 7, 13], place)
    assert len(lines) == 20
    results = tmp_path / "results"
    # Once more: there is nothing left to make.
    code, _, err = run("experiment", "run", str(tmp_path / "tiny.toml"), "--results", str(results))
    assert code == 0, err
    assert lines_of(results) == lines
    pytest.importorskip("plotly", reason="plotly is missing: pip install 'pagefire[report]'")
    code, _, err = run("report", str(results))
    assert code == 0, err
    assert "20 of 20: 20 completed" in (results / "report.html").read_text()
    assert len(list((results / "pictures").glob("*.png"))) == 1
    # The same folder does not take the results of another form of it.
    code, _, err = run("experiment", "run", str(write_scenario(tmp_path, 3)), "--results", str(results))
    assert code == 2
    assert "`repetitions` was 10 and is 3" in err


@pytest.mark.soak
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, place: Place) -> None:
    scenario, results = write_scenario(tmp_path, 2), tmp_path / "results"
    process = start("experiment", "run", str(scenario), "--results", str(results))
    with process:
        until(lambda: (results / RESULTS).exists() and len(lines_of(results)) >= 1, "no results come", 60.0)
        process.send_signal(signal.SIGINT)
        code, _, _ = finish(process)
    assert code == 3
    assert 1 <= len(lines_of(results)) < 4
    place.assert_nothing_left()


@contextlib.contextmanager
def cluster(folder: Path, workers: int, *resources: str) -> Iterator[str]:
    """A Dask scheduler and workers on this machine; gives the scheduler's address."""
    pytest.importorskip("distributed", reason="Dask is missing: pip install 'pagefire[dask]'")
    known = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    log = (folder / "dask.log").open("w")
    here = {"cwd": folder, "stdout": log, "stderr": log, "start_new_session": True}
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(known)]
    worker = ["worker", "--scheduler-file", str(known), "--nthreads", "1", "--no-dashboard", "--no-nanny", *resources]
    started = [subprocess.Popen([*dask, *scheduler], **here)]  # type: ignore[call-overload]
    try:
        until(known.exists, "no scheduler comes", 60.0)
        started += [subprocess.Popen([*dask, *worker], **here) for _ in range(workers)]  # type: ignore[call-overload]
        address = json.loads(known.read_text())["address"]
        from distributed import Client

        with Client(address, set_as_default=False, timeout=60) as client:
            client.wait_for_workers(workers, timeout=60)
        yield address
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_cluster_makes_the_same_set_of_results(tmp_path: Path, place: Place) -> None:
    scenario = write_scenario(tmp_path, 2)
    code, _, err = run("experiment", "run", str(scenario), "--results", str(tmp_path / "here"))
    assert code == 0, err
    # Two workers on one machine: still one migration at a time.
    with cluster(tmp_path, 2, "--resources", "pagefire=1") as address:
        there = ("experiment", "run", str(scenario), "--results", str(tmp_path / "there"), "--scheduler", address)
        code, _, err = run(*there)
        assert code == 0, err

    def results(folder: Path) -> set[tuple[str, str, str]]:
        return {(line["key"], line["outcome"], line["command"]) for line in lines_of(folder)}

    assert results(tmp_path / "there") == results(tmp_path / "here")
    assert read_experiment(tmp_path / "there")["scenario"] == read_experiment(tmp_path / "here")["scenario"]
    spans = sorted(
        (time.mktime(time.strptime(line["started_at"][:19], "%Y-%m-%dT%H:%M:%S")), line["took_s"])
        for line in lines_of(tmp_path / "there")
    )
    for (began_s, took_s), (next_s, _) in pairwise(spans):
        assert next_s + 1 >= began_s + took_s, "two migrations at once on one machine"


@pytest.mark.soak
def test_a_cluster_without_the_resource_is_refused(tmp_path: Path, place: Place) -> None:
    with cluster(tmp_path, 1) as address:
        code, _, err = run(
            "experiment",
            "run",
            str(write_scenario(tmp_path, 1)),
            "--results",
            str(tmp_path / "r"),
            "--scheduler",
            address,
        )
    assert code == 2
    assert "no worker of this cluster offers the resource pagefire" in err


@pytest.mark.soak
def test_no_scheduler_is_told(tmp_path: Path, place: Place) -> None:
    pytest.importorskip("distributed", reason="Dask is missing: pip install 'pagefire[dask]'")
    to = ("--scheduler", "127.0.0.1:1")
    code, _, err = run("experiment", "run", str(write_scenario(tmp_path, 1)), "--results", str(tmp_path / "r"), *to)
    assert code == 1
    assert "no Dask scheduler answers at 127.0.0.1:1" in err


@pytest.mark.soak
@pytest.mark.parametrize(
    ("mode", "fault", "owner", "outcome"),
    [
        ("hybrid", "destination daemon killed, between rounds", "source", "failed"),
        ("postcopy", "link cut, after the resume", "destination", "completed"),
    ],
)
def test_a_fault_is_made_and_the_guest_is_whole_afterwards(
    mode: str, fault: str, owner: str, outcome: str, tmp_path: Path, place: Place
) -> None:
    scenario, results = write_scenario(tmp_path, 1), tmp_path / "results"
    text = scenario.read_text().replace('mode = ["hybrid", "precopy"]', f'mode = "{mode}"\nfault = "{fault}"')
    scenario.write_text(text.replace('settle = "0"', 'settle = "0"\nlink-timeout = "1s"\nconnect-timeout = "1s"'))
    code, _, err = run("experiment", "run", str(scenario), "--results", str(results))
    assert code == 0, err
    (line,) = lines_of(results)
    assert line["outcome"] == outcome, line["error"]
    assert line["fault"]["owner"] == owner
    assert line["fault"]["settled_s"] > 0
    assert (line["fault"]["verified"]["commits_lost"], line["fault"]["verified"]["commits_repeated"]) == (0, 0)
    assert line["command"].startswith(f"pagefire experiment run {scenario} --only {line['key']}")
    if outcome == "completed":
        assert line["report"]["recoveries"] == 1
    place.assert_nothing_left()


@pytest.mark.soak
def test_a_migration_that_does_not_converge_is_a_result(tmp_path: Path, place: Place) -> None:
    scenario, results = write_scenario(tmp_path, 1), tmp_path / "results"
    text = scenario.read_text().replace('mode = ["hybrid", "precopy"]', 'mode = "precopy"')
    text = text.replace(
        'settle = "0"', 'settle = "0"\nmax-bandwidth = "20MB/s"\ndowntime-limit = "1ms"\nmax-rounds = 2'
    )
    scenario.write_text(text)
    code, _, err = run("experiment", "run", str(scenario), "--results", str(results))
    assert code == 0, err
    (line,) = lines_of(results)
    assert line["outcome"] == "cancelled"
    assert line["error"]["what"]
    assert len(line["report"]["rounds"]) >= 2


@pytest.mark.soak
@pytest.mark.root
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_link_is_made_measured_and_told(tmp_path: Path, place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces are missing: they need root")
    scenario, results = write_scenario(tmp_path, 1), tmp_path / "results"
    text = scenario.read_text().replace('mode = ["hybrid", "precopy"]', 'delay = ["0ms", "5ms"]\nmode = "hybrid"')
    scenario.write_text(text.replace("[sweep]", '[link]\nlink-rate = "100mbit"\n[sweep]'))
    code, _, err = run("experiment", "run", str(scenario), "--results", str(results))
    assert code == 0, err
    near, far = sorted(lines_of(results), key=lambda line: str(line["case"]["delay"]))
    for line, rtt_s in ((near, 0.0), (far, 0.01)):
        assert line["outcome"] == "completed", line["error"]
        link = line["report"]["link"]
        assert link["asked"]["rtt_s"] == rtt_s
        assert abs(link["measured"]["rtt_s"] - rtt_s) < 0.0016
        assert link["measured"]["rate_bps"] == pytest.approx(100e6, rel=0.1)
        assert line["command"].startswith("pagefire lab --memory 64MiB")
    assert near["report"]["link"]["shaper"] == "tbf"
    assert far["report"]["all_running_s"] > near["report"]["all_running_s"]
    place.assert_nothing_left()
