"""A guest whose unchanged pages were left out, there and back, after attempts that failed and over links that were lost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pagefire.scripts.relay import Relay
from pagefire.source_host.skipping import MODES
from tests.e2e.host_pair import HostPair, assert_verified, finish, run, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.huge_pages import hugetlb_pool
from tests.support.kernel import need_pagemap_scan
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

LISTENING = ["--listen", "127.0.0.1:0"]
#: In turn, there and back. Paced, so that there is more than one round.
WAYS: list[dict[str, Any]] = [
    {"mode": "hybrid", "streams": 2, "checksum": True},
    {"mode": "postcopy"},
    {"mode": "precopy", "streams": 2, "compress": "zstd"},
    {"mode": "stop-and-copy"},
    {"mode": "hybrid", "install": "rolling"},
]
#: Both hosts' memory, and a little more.
_POOL_BYTES = 160 << 20
#: In bytes a second: 64 MiB in some three seconds.
SLOW = 20e6


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


@pytest.mark.parametrize("backing", ["hugetlb", *soaked("4k")])
def test_a_guest_equals_its_twin_wherever_pages_were_left_out(backing: str, place: Place) -> None:
    """Each attempt begins with nothing: what this host once was sent is not what the other holds now."""
    ways = random.sample(WAYS, len(WAYS))
    with hugetlb_pool(_POOL_BYTES), HostPair([*arguments(backing=backing), *LISTENING]) as pair:
        for index, way in enumerate(ways):
            migrate = pair.migrate_back if index % 2 else pair.migrate
            report = migrate(
                skip_unchanged="on", verify=True, max_bandwidth_Bps=100e6, max_rounds=5, on_limit="postcopy", **way
            )
            assert_verified(report)
            assert report["verified"]["digest_match"] in (True, None)
        assert_equals_its_twin(pair, "dest", backing=backing)
    place.assert_nothing_left()


@pytest.mark.soak
def test_a_failed_attempt_leaves_no_digest_behind(place: Place) -> None:
    """The link is lost in some round; the next attempt, to a destination that has nothing, sends all of it."""
    asked = ("--mode", "precopy", "--skip-unchanged", "on", "--downtime-limit", "1ms", "--json", "-")
    with hugetlb_pool(_POOL_BYTES), HostPair(arguments(backing="hugetlb")) as pair:
        for _ in range(2):
            with (
                Relay(pair.port, bytes_per_s=SLOW) as relay,
                pair.migrating("--to", relay.address, *asked) as migration,
            ):
                until(lambda: pair.on_source("guest")["status"] == "active", "it does not begin")
                until(lambda: pair.on_source("guest")["round"] > 1, "there is no second round", 30.0)
                relay.cut(for_good=True)
                assert finish(migration)[0] == 1
        report = pair.migrate(mode="precopy", skip_unchanged="on", downtime_limit_s=1.0, verify=True)
        assert_verified(report)
        assert report["verified"]["digest_match"]
        assert report["rounds"][0]["unchanged_pages"] == 0
        assert_equals_its_twin(pair, "dest", backing="hugetlb")
    place.assert_nothing_left()


def test_links_that_are_cut_after_the_resume(place: Place) -> None:
    """Pages that had been sent, and of which the destination was then told that it misses them, come whatever they had been."""
    asked = ("--mode", "hybrid", "--skip-unchanged", "on", "--max-rounds", "2", "--json", "-")
    with hugetlb_pool(_POOL_BYTES), HostPair(arguments(backing="hugetlb")) as pair:
        with Relay(pair.port, bytes_per_s=SLOW) as relay, pair.migrating("--to", relay.address, *asked) as migration:
            until(lambda: pair.on_source("guest")["status"] == "postcopy-active", "it does not resume", 30.0)
            relay.cut()
            code, out, err = finish(migration)
        assert code == 0, err
        report = json.loads(out)
        assert_verified(report)
        assert report["postcopy"]["pushed_pages"] + report["postcopy"]["faulted_pages"] == report["bitmap"]["pages"]
        assert_equals_its_twin(pair, "dest", backing="hugetlb")
    place.assert_nothing_left()


def test_auto_tells_why_it_does_not_look(place: Place, tmp_path: Path) -> None:
    demo = ("demo", "--memory", "64MiB", "--workload", "idle", "--warmup", "100ms", "--settle", "100ms", "--no-check")
    code, out, err = run(*demo, "--skip-unchanged", "auto", "--json", "-", "--report", str(tmp_path / "report"))
    assert code == 0, err
    unchanged = json.loads(out)["unchanged"]
    assert (unchanged["mode"], unchanged["hashed_pages"], unchanged["unchanged_pages"]) == ("auto", 0, 0)
    assert unchanged["reason"] == "memory is tracked page by page: what is dirty was written"
    assert "memory is tracked page by page" in err
    place.assert_nothing_left()


def test_another_mode_is_a_usage_error() -> None:
    code, _, err = run("demo", "--skip-unchanged", "maybe")
    assert code == 2
    assert "--skip-unchanged maybe is unknown" in err
    assert ", ".join(MODES) in err
