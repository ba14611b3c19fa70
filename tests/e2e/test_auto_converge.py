"""A guest that writes faster than the link carries: it converges where it is slowed, and is never left slow."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from pagefire.guest_workload.control_block import ControlBlock, now_ns
from pagefire.guest_workload.observation import open_control
from pagefire.scripts.relay import Relay
from tests.e2e.host_pair import HostPair, assert_verified, finish, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

#: It writes all of its 2,048 pages again and again, 16,000 a second; the link carries 4,900.
GUEST = {"workload": "adversary", "resident": "12MiB", "working_set": "8MiB"}
RATE_PER_S, LINK_BPS = 16_000, 20e6


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


@contextmanager
def looking_at(pair: HostPair) -> Iterator[ControlBlock]:
    """Give the guest's control block, which outlives its daemon."""
    control = open_control(pair.on_source("guests")[pair.name])
    yield control
    control.close()


def test_an_adversary_converges_where_it_is_slowed_and_loses_nothing(place: Place) -> None:
    with (
        HostPair([*arguments(RATE_PER_S, **GUEST), "--listen", "127.0.0.1:0"]) as pair,
        Relay(pair.port, LINK_BPS) as relay,
    ):
        precopy = ("--to", relay.address, "--mode", "precopy", "--json", "-")
        with pair.guest_unharmed(), pair.migrating(*precopy, "--max-rounds", "3") as command:
            code, out, err = finish(command)
        assert code == 3, err
        assert "--max-rounds reached" in err
        assert "slow the guest with --auto-converge" in err
        assert [one["dirty_pages_after"] for one in json.loads(out)["rounds"]] == [2048] * 3

        with pair.migrating(*precopy, "--auto-converge") as command:
            until(lambda: pair.on_source("guest").get("throttle_max"), "the status shows no throttle")
            code, out, err = finish(command)
        assert code == 0, err
        report = json.loads(out)
        assert_verified(report)
        assert report["mode"] == "precopy"
        throttle = report["throttle"]
        assert [one["round"] for one in throttle["rounds"]] == list(range(1, len(report["rounds"]) + 1))
        assert all(0 <= one["mean"] <= one["max"] <= 1 for one in throttle["rounds"])
        assert all(0 < slept_s < report["precopy_s"] for slept_s in throttle["slept_s"])
        assert "slowed by auto-converge: the vCPUs slept" in report["stop_reason"]
        assert "the vCPUs slept" in err

        # At the destination nothing of it is left, and hybrid does without.
        there = pair.on_dest("guests")[pair.name]
        control = open_control(there)
        assert (control.throttled_until_ns, control.slept_ns().tolist()) == (0, [0, 0])
        control.close()
        back = pair.migrate_back(mode="hybrid", auto_converge=True)
        assert_verified(back)
        assert back["throttle"] == {"reason": back["throttle"]["reason"], "slept_s": [], "rounds": []}
        assert "hybrid needs none" in back["throttle"]["reason"]
        assert_equals_its_twin(pair, "source", **GUEST)
    place.assert_nothing_left()


def sleeps(control: ControlBlock, beyond_ns: int) -> bool:
    return int(control.slept_ns().max()) > beyond_ns


def is_free(control: ControlBlock) -> bool:
    return control.throttled_until_ns < now_ns()


@pytest.mark.soak
def test_whatever_ends_a_migration_the_guest_is_not_left_slow(place: Place) -> None:
    with HostPair(arguments(RATE_PER_S, **GUEST)) as pair, Relay(pair.port, LINK_BPS) as relay:
        # A limit that no round of this link can keep: it goes on until something else ends it.
        endless = ("--to", relay.address, "--mode", "precopy", "--auto-converge", "--downtime-limit", "1us")
        before_per_s = pair.commits_per_s()
        for ended in ("cancelled", "failed", "killed"):
            with looking_at(pair) as control, pair.migrating(*endless, "--max-rounds", "10000") as command:
                enough_ns = int(control.slept_ns().max()) + 100_000_000
                until(partial(sleeps, control, enough_ns), "the guest is not slowed")
                if ended == "cancelled":
                    pair.on_source("cancel")
                elif ended == "failed":
                    relay.cut()
                else:
                    pair.kill("source")
                assert finish(command)[0] == (3 if ended == "cancelled" else 1)
                if ended != "killed":
                    assert control.throttled_until_ns == 0
                until(partial(is_free, control), "nobody renews it, and it does not end")
                time.sleep(0.01)  # who slept has slept to the end of that
                slept_ns, commits, began_s = int(control.slept_ns().sum()), control.commits(), time.monotonic()
                time.sleep(0.3)
                assert int(control.slept_ns().sum()) == slept_ns
                assert (control.commits() - commits) / (time.monotonic() - began_s) > before_per_s / 2
        pair.restart("source")
        assert_verified(pair.migrate(mode="precopy", auto_converge=True))
    place.assert_nothing_left()
