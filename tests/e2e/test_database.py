"""A database that migrates under load: sound after every migration, and no order that a client was told of is lost or doubled."""

from __future__ import annotations

import json
import statistics
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from pagefire.scripts.relay import Relay
from pagefire.scripts.report_folder import LATENCY_FILE, write_report_folder
from tests.e2e.host_pair import HostPair, assert_verified, finish, guest_arguments, run, until
from tests.e2e.place import Place
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

Json = dict[str, Any]
LISTENING = ["--listen", "127.0.0.1:0"]
NONE_OF = ("failed", "integrity_errors", "orders_lost", "orders_repeated")


def back_and_forth(modes: list[str], transactions_between: int = 100, **shape: Any) -> list[Json]:
    """Migrate one database from host to host, once in each of these modes; gives the reports."""
    reports = list[Json]()
    with HostPair([*guest_arguments(workload="sqlite", **shape), *LISTENING]) as pair:
        for index, mode in enumerate(modes):
            pair.wait_for_commits(transactions_between)
            report = pair.migrate(mode=mode) if index % 2 == 0 else pair.migrate_back(mode=mode)
            assert_database_sound(report)
            reports.append(report)
    orders = [report["database"]["counted"]["orders"] for report in reports]
    assert orders == sorted(set(orders))  # it went on, each time
    return reports


def assert_database_sound(report: Json) -> None:
    assert_verified(report)
    database = report["database"]
    assert {name: database["counted"][name] for name in NONE_OF} == dict.fromkeys(NONE_OF, 0)
    assert database["counted"]["orders"] > 0
    waited = database["waited"]
    # Each client's turn came a pace after its last one at the latest: from then on it waited for the rest of the stun.
    vcpus, pace_s = report["guest"]["vcpus"], report["guest"]["vcpus"] / report["guest"]["rate"]
    assert waited["transactions"] == vcpus
    assert waited["p50"] >= report["stun_s"] - pace_s - 1e-6
    assert database["through"]["max"] >= waited["max"]
    assert sum(bucket["transactions"] for bucket in database["latencies"]) >= database["through"]["transactions"]


def test_a_database_comes_and_goes_back(place: Place) -> None:
    need_pagemap_scan()
    back_and_forth(["postcopy", "hybrid"], working_set="16MiB")
    place.assert_nothing_left()


def test_the_demo_shows_what_the_clients_of_a_database_felt(place: Place, tmp_path: Path) -> None:
    need_pagemap_scan()
    folder = tmp_path / "report"
    code, _, err = run(
        "demo", "--workload", "sqlite", "--report", str(folder), "--memory", "64MiB", "--mode", "precopy",
        "--warmup", "500ms", "--settle", "200ms",
    )  # fmt: skip
    assert code == 0, err
    assert_database_sound(json.loads((folder / "report.json").read_text()))
    assert "orders lost" in (folder / "summary.txt").read_text()
    assert (folder / LATENCY_FILE).stat().st_size > 10_000
    place.assert_nothing_left()


@pytest.mark.soak
@pytest.mark.parametrize("who", ["source", "dest"])
def test_a_database_whose_daemons_die_is_adopted_whole(who: str, place: Place) -> None:
    """Once while it runs at the source, once in post-copy, when connections may be waiting for pages or for each other."""
    need_pagemap_scan()
    shape = guest_arguments(workload="sqlite", working_set="32MiB", vcpus=4, rate="4000/s")
    with HostPair([*shape, *LISTENING]) as pair, Relay(pair.port, bytes_per_s=20e6) as relay:
        pair.kill("source")
        pair.restart("source")
        pair.wait_for_commits(500)
        with (
            pair.held_at("pushing") as stands,
            pair.migrating("--to", relay.address, "--mode", "postcopy") as migration,
        ):
            stands()
            pair.kill(who)
            time.sleep(0.3)
            pair.restart(who)
            if who == "dest":
                pair.release("pushing")
            assert finish(migration)[0] == (0 if who == "dest" else 1)  # with its daemon gone the command is too
        until(lambda: pair.on_source("guest")["status"] == "completed", "it is not finished", 30.0)
        until(lambda: pair.on_dest("status")["guests"][0]["resident"], "it has not arrived", 30.0)
        pair.wait_for_commits(500)
        assert_database_sound(pair.migrate_back(mode="hybrid"))
    place.assert_nothing_left()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_twenty_migrations_of_a_database(record_property: pytest.RecordProperty, tmp_path: Path) -> None:
    """Must show: 20 migrations under load, integrity ok, 0 lost, 0 repeated, latency plot."""
    need_pagemap_scan()
    modes = list(islice(cycle(("hybrid", "hybrid", "precopy", "precopy", "postcopy", "postcopy")), 20))
    # 2,000 transactions a second: the second before a migration is one behind the last.
    reports = back_and_forth(modes, transactions_between=3_000, memory="512MiB", working_set="128MiB", vcpus=4)
    record_property("migrations", len(reports))
    record_property("orders", reports[-1]["database"]["counted"]["orders"])
    for mode in dict.fromkeys(modes):
        of_mode = [report["database"] for report in reports if report["mode"] == mode]
        for window in ("before", "precopy", "through", "after", "waited"):
            for part in ("p50", "p99", "max"):
                if found_ms := [database[window][part] * 1e3 for database in of_mode if database[window]]:
                    middle, least, most = statistics.median(found_ms), min(found_ms), max(found_ms)
                    words = f"median {middle:.2f} ms, {least:.2f} to {most:.2f}, of {len(found_ms)}"
                    record_property(f"{mode}, {window}, {part}", words)
                    print(f"{mode}, {window}, {part}: {words}")
    for index, report in enumerate(reports):
        write_report_folder(report, tmp_path / f"{index:02}-{report['mode']}")
        assert (tmp_path / f"{index:02}-{report['mode']}" / LATENCY_FILE).stat().st_size > 10_000
