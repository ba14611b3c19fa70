"""After the resume: links that are lost and found again, daemons that die and are followed by others. The guest is what it was."""

from __future__ import annotations

import json
import random
import time

import pytest

from pagefire.scripts.relay import Relay
from tests.e2e.fault_matrix import told
from tests.e2e.host_pair import HostPair, assert_verified, finish, run, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.kernel import need_pagemap_scan
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

#: Slow enough that a test has time to do something to it, in bytes a second: 64 MiB in some three seconds.
SLOW = 20e6


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


def cut_again_and_again(cuts: int, *options: str) -> dict[str, int]:
    """Cut the link so often, at random moments of one post-copy; gives what the report counted."""
    moments = random.Random()
    asked = ("--mode", "postcopy", "--streams", "2", *options, "--json", "-")
    with HostPair(arguments()) as pair, told(pair), Relay(pair.port, bytes_per_s=SLOW) as relay:
        with pair.migrating("--to", relay.address, *asked) as migration:
            until(lambda: pair.on_source("guest")["status"] == "postcopy-active", "it does not resume")
            for _ in range(cuts):
                time.sleep(moments.uniform(0.02, 2.5 / cuts))
                relay.cut()
                until(
                    lambda: pair.on_source("guest")["status"] in ("postcopy-active", "completed"), "it does not recover"
                )
            code, out, err = finish(migration)
        assert code == 0, err
        report = json.loads(out)
        assert_verified(report)
        postcopy = report["postcopy"]
        # Each page of the bitmap was taken once, on whatever link.
        assert postcopy["pushed_pages"] + postcopy["faulted_pages"] == report["bitmap"]["pages"]
        assert_equals_its_twin(pair, "dest")
    return {
        "recoveries": report["recoveries"],
        "pages": report["bitmap"]["pages"],
        "compressed_pages": report["compression"]["compressed_pages"],
    }


def test_a_link_that_is_cut_again_and_again(place: Place) -> None:
    assert cut_again_and_again(4)["recoveries"] >= 2
    place.assert_nothing_left()


def test_compressed_pages_over_links_that_are_cut(place: Place) -> None:
    """What was half-way in comes again; the report adds up what every link compressed."""
    counted = cut_again_and_again(2, "--compress", "lz4")
    assert counted["recoveries"] >= 1
    assert counted["compressed_pages"] > 0
    place.assert_nothing_left()


@pytest.mark.soak
def test_a_link_that_is_cut_twenty_times(record_property: pytest.RecordProperty) -> None:
    """Must show: 20 cuts at random during one post-copy."""
    for name, value in cut_again_and_again(20).items():
        record_property(name, value)


@pytest.mark.parametrize("who", ["source", "dest"])
@pytest.mark.parametrize("mode", ["hybrid", *soaked("postcopy")])
def test_a_daemon_that_dies_in_post_copy_is_followed_by_one_that_finishes(who: str, mode: str, place: Place) -> None:
    with HostPair(arguments()) as pair, Relay(pair.port, bytes_per_s=SLOW) as relay:
        with pair.held_at("pushing") as stands, pair.migrating("--to", relay.address, "--mode", mode) as migration:
            stands()
            pair.kill(who)
            before = pair.transactions(pair.dest_socket) if who == "source" else 0
            time.sleep(0.3)
            pair.restart(who)
            if who == "dest":
                pair.release("pushing")
            if who == "source":
                assert finish(migration)[0] == 1  # its daemon is gone
                assert pair.transactions(pair.dest_socket) >= before
                until(lambda: pair.on_source("guest")["status"] == "completed", "it is not finished", 30.0)
            else:
                code, _, err = finish(migration)
                assert code == 0, err
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_recovery_at_another_address_by_hand(place: Place) -> None:
    with HostPair(arguments()) as pair, Relay(pair.port, bytes_per_s=SLOW) as first:
        with pair.migrating("--to", first.address, "--mode", "postcopy") as migration:
            until(lambda: pair.on_source("guest")["status"] == "postcopy-active", "it does not resume")
            first.cut(for_good=True)
            until(lambda: pair.on_source("guest")["status"] in ("postcopy-paused", "postcopy-recover"), "no pause")
            code, _, err = run("cancel", "--runtime-dir", str(pair.directory))
            assert (code, "too late to cancel" in err) == (1, True)
            here = pair.on_dest("status")["guests"][0]
            assert here["status"] == "postcopy-paused"
            assert here["missing_pages"] > 0
            with Relay(pair.port) as second:
                code, out, err = run("recover", "--to", second.address, "--runtime-dir", str(pair.directory))
                assert code == 0, err
                assert "No commit was lost or repeated" in out
                assert finish(migration)[0] == 0
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_nothing_to_recover(place: Place) -> None:
    with HostPair(arguments()) as pair:
        for more in ((), ("--take-back",)):
            code, _, err = run("recover", *more, "--runtime-dir", str(pair.directory))
            assert (code, "is not paused" in err) == (1, True)
    place.assert_nothing_left()
