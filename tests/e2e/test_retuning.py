"""`pagefire set`: a migration is changed while it is under way, and the guest is still what it was."""

from __future__ import annotations

import json

import pytest

from tests.e2e.host_pair import HostPair, assert_verified, finish, run, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

#: So slow that a first round of 64 MiB would last more than a minute.
CRAWL = ("--max-bandwidth", "1MB/s")


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


def set_in_flight(pair: HostPair, *options: str) -> tuple[int, str]:
    code, _, err = run("set", *options, "--runtime-dir", str(pair.directory))
    return code, err


@pytest.mark.parametrize("streams", ["1", "2"])
def test_a_crawling_migration_is_let_go(streams: str, place: Place) -> None:
    with HostPair(arguments()) as pair:
        with pair.migrating(*CRAWL, "--streams", streams, "--json", "-") as migration:
            until(lambda: pair.on_source("guest")["status"] == "active", "no round begins")
            assert set_in_flight(pair, "--max-bandwidth", "off") == (0, "Set.\n")
            code, out, err = finish(migration)
        assert code == 0, err
        report = json.loads(out)
        assert_verified(report)
        assert [(one["option"], one["value"]) for one in report["retuned"]] == [("max_bandwidth_Bps", None)]
        assert 0 < report["retuned"][0]["at_s"] < report["total_s"]
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_a_person_has_had_enough_of_pre_copy(place: Place) -> None:
    with HostPair(arguments()) as pair:
        with pair.migrating(*CRAWL, "--mode", "precopy", "--json", "-") as migration:
            until(lambda: pair.on_source("guest")["status"] == "active", "no round begins")
            code, err = set_in_flight(pair, "--mode", "postcopy")
            assert code == 0, err
            until(lambda: pair.on_source("guest")["status"] == "postcopy-active", "it does not resume", 60.0)
            code, err = set_in_flight(pair, "--mode", "precopy")
            assert (code, "too late to set mode: pre-copy is over" in err) == (1, True)
            assert set_in_flight(pair, "--max-bandwidth", "off")[0] == 0
            code, out, err = finish(migration)
        assert code == 0, err
        report = json.loads(out)
        assert_verified(report)
        assert "told to by `pagefire set --mode postcopy`" in report["stop_reason"]
        assert report["rounds"][0]["skipped_pages"] > 0
        assert report["bitmap"]["pages"] >= report["rounds"][0]["skipped_pages"]
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_a_guest_that_stays_cannot_be_retuned(place: Place) -> None:
    with HostPair(arguments()) as pair:
        code, err = set_in_flight(pair, "--max-bandwidth", "1MB/s")
        assert (code, "guest guest0 is not migrating" in err) == (1, True)
        code, err = set_in_flight(pair)
        assert (code, "nothing is to be set" in err) == (2, True)
    place.assert_nothing_left()
