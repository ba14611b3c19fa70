"""A guest whose pages went as differences, there and back, after attempts that failed and over links that were lost."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.pages import PAGE_BYTES
from pagefire.scripts.relay import Relay
from tests.e2e.host_pair import HostPair, assert_verified, finish, run, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.huge_pages import huge_pages, hugetlb_pool
from tests.support.kernel import need_pagemap_scan
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

LISTENING = ["--listen", "127.0.0.1:0"]
ROOM = 64 << 20
#: In turn, there and back. Paced, so that there is more than one round.
WAYS: list[dict[str, Any]] = [
    {"mode": "hybrid", "streams": 2, "checksum": True, "compress": "zstd"},
    {"mode": "postcopy", "compress": "lz4"},
    {"mode": "precopy", "streams": 2, "compress": "zstd"},
    {"mode": "precopy", "compress": "auto", "skip_unchanged": "on"},
    {"mode": "precopy", "compress": "lz4", "install": "rolling", "delta_cache_bytes": 5 << 20},
    {"mode": "hybrid", "compress": "lz4", "skip_unchanged": "on"},
]
_POOL_BYTES = 160 << 20
#: In bytes a second: 64 MiB in some three seconds.
SLOW = 20e6


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


def assert_adds_up(report: dict[str, Any]) -> None:
    """Check what is told of differences against what else is told."""
    cache, rounds = report["delta_cache"], report["rounds"]
    assert cache["delta_pages"] * PAGE_BYTES == cache["raw_bytes"]
    if not cache["delta_pages"]:
        assert cache["ratio"] is None
        return
    assert cache["ratio"] == cache["raw_bytes"] / cache["sent_bytes"] > 2
    assert cache["used_bytes"] <= cache["room_bytes"]
    told_pages, told_bytes = (sum(one[name] for one in rounds) for name in ("delta_pages", "delta_bytes"))
    assert told_pages <= cache["delta_pages"] <= told_pages + report["stun_pages"]
    assert told_bytes <= cache["sent_bytes"]
    for one in rounds:
        assert one["delta_pages"] <= one["pages"] - one["zero_pages"]
        assert one["delta_bytes"] <= one["payload_bytes"]
        assert 0 < one["delta_share"] <= 1
        assert 0 < one["settled_share"] <= 1


@pytest.mark.parametrize("backing", ["4k", *soaked("thp", "hugetlb")])
def test_a_guest_equals_its_twin_wherever_its_pages_went_as_differences(backing: str, place: Place) -> None:
    """Each attempt begins with no version: what this host once was sent is not what the other holds now."""
    ways = random.sample(WAYS, len(WAYS))
    backed = {"thp": huge_pages, "hugetlb": lambda: hugetlb_pool(_POOL_BYTES)}.get(backing, nullcontext)
    with backed(), HostPair([*arguments(backing=backing), *LISTENING]) as pair:
        delta_pages = 0
        for index, way in enumerate(ways):
            migrate = pair.migrate_back if index % 2 else pair.migrate
            asked = {
                "delta_cache_bytes": ROOM,
                "max_bandwidth_Bps": 60e6,
                "max_rounds": 5,
                "on_limit": "postcopy",
            } | way
            report = migrate(verify=True, **asked)
            assert_verified(report)
            assert report["verified"]["digest_match"] in (True, None)
            if way["mode"] == "postcopy":
                assert report["delta_cache"] is None
                continue
            assert_adds_up(report)
            delta_pages += report["delta_cache"]["delta_pages"]
        assert delta_pages > 0
        assert_equals_its_twin(pair, "dest" if len(ways) % 2 else "source", backing=backing)
    place.assert_nothing_left()


def test_precopy_of_a_guest_that_writes_faster_than_the_link_carries(place: Place, tmp_path: Path) -> None:
    """Some 60 MB/s of pages over 20 MB/s: without differences it is given up, with them it comes through unthrottled."""
    demo = (
        "demo", "--memory", "64MiB", "--working-set", "32MiB", "--workload", "random", "--rate", "20k/s", "--warmup", "200ms",
        "--settle", "200ms", "--mode", "precopy", "--max-bandwidth", "20MB/s", "--max-rounds", "12", "--compress", "zstd",
        "--json", "-",
    )  # fmt: skip
    code, _, err = run(*demo, "--report", str(tmp_path / "without"))
    assert code == 3
    assert "did not converge" in err
    code, out, err = run(*demo, "--delta-cache", "64MiB", "--verify", "--report", str(tmp_path / "with"))
    assert code == 0, err
    report = json.loads(out)
    assert_verified(report)
    assert report["verified"]["digest_match"]
    assert_adds_up(report)
    assert "of which differences leave" in report["stop_reason"]
    assert "differences" in (tmp_path / "with" / "summary.txt").read_text()
    assert "will not converge" not in err
    place.assert_nothing_left()


def test_hybrid_needs_next_to_no_page_after_the_resume_then(place: Place, tmp_path: Path) -> None:
    demo = (
        "demo", "--memory", "64MiB", "--working-set", "32MiB", "--workload", "random", "--rate", "20k/s", "--warmup", "200ms",
        "--settle", "200ms", "--max-bandwidth", "20MB/s", "--compress", "lz4", "--json", "-",
    )  # fmt: skip
    left = []
    for with_them in ((), ("--delta-cache", "64MiB")):
        code, out, err = run(*demo, *with_them, "--report", str(tmp_path / f"{len(with_them)}"))
        assert code == 0, err
        assert_verified(report := json.loads(out))
        left.append(report["bitmap"]["pages"])
    assert left[1] < left[0] / 4
    place.assert_nothing_left()


@pytest.mark.soak
def test_a_failed_attempt_leaves_no_version_behind(place: Place) -> None:
    """The link is lost in some round; the next attempt, to a destination that has nothing, sends all of it."""
    asked = (
        "--mode",
        "precopy",
        "--compress",
        "lz4",
        "--delta-cache",
        "64MiB",
        "--downtime-limit",
        "1ms",
        "--json",
        "-",
    )
    with HostPair(arguments()) as pair:
        for _ in range(2):
            with (
                Relay(pair.port, bytes_per_s=SLOW) as relay,
                pair.migrating("--to", relay.address, *asked) as migration,
            ):
                until(lambda: pair.on_source("guest")["status"] == "active", "it does not begin")
                until(lambda: pair.on_source("guest")["round"] > 1, "there is no second round", 30.0)
                relay.cut(for_good=True)
                assert finish(migration)[0] == 1
        report = pair.migrate(mode="precopy", compress="lz4", delta_cache_bytes=ROOM, verify=True)
        assert_verified(report)
        assert report["verified"]["digest_match"]
        assert report["rounds"][0]["delta_pages"] == 0
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_links_that_are_cut_after_the_resume(place: Place) -> None:
    """What moves after the resume moves whole, over a link that knows nothing of the rounds before as well."""
    asked = (
        "--mode", "hybrid", "--compress", "lz4", "--delta-cache", "64MiB", "--max-rounds", "2", "--downtime-limit", "1ms",
        "--json", "-",
    )  # fmt: skip
    with HostPair(arguments()) as pair:
        with Relay(pair.port, bytes_per_s=SLOW) as relay, pair.migrating("--to", relay.address, *asked) as migration:
            until(lambda: pair.on_source("guest")["status"] == "postcopy-active", "it does not resume", 30.0)
            relay.cut()
            code, out, err = finish(migration)
        assert code == 0, err
        report = json.loads(out)
        assert_verified(report)
        assert report["postcopy"]["pushed_pages"] + report["postcopy"]["faulted_pages"] == report["bitmap"]["pages"]
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_without_a_codec_it_is_a_usage_error() -> None:
    code, _, err = run("demo", "--delta-cache", "64MiB")
    assert code == 2
    assert "--delta-cache without --compress sends nothing smaller" in err
    assert "Add --compress auto, lz4 or zstd" in err
    code, _, err = run("demo", "--delta-cache", "much", "--compress", "lz4")
    assert code == 2
    assert "much" in err
