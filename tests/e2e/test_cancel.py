"""Cancel: at any moment before the commit point it is over within a second, and the guest runs at the source."""

from __future__ import annotations

import time

import pytest

from pagefire.scripts.relay import Relay
from tests.e2e.fault_matrix import MOMENTS, TIMEOUTS, Moment
from tests.e2e.host_pair import HostPair, assert_verified, finish, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.alone]

BEFORE = [moment for moment in MOMENTS if moment.has in ("runs", "parked", "scanned") and moment.host == "source"]
#: What the promise is, and what a loaded machine may add to it before this test calls it broken.
PROMISED_S, SLACK_S = 1.0, 2.0


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


@pytest.mark.parametrize("link", ["good", "stalled"])
def test_cancel_at_every_moment(link: str, place: Place, record_property: pytest.RecordProperty) -> None:
    """One pair of daemons, one guest: each attempt is cancelled, and the next begins anew; the last one is let through."""
    longest_s = 0.0
    with HostPair(arguments()) as pair, Relay(pair.port) as relay:
        for moment in BEFORE:
            with pair.guest_unharmed():
                took_s = cancelled(pair, relay, moment, link)
                relay.mend()
                relay.cut()
            longest_s = max(longest_s, took_s)
        record_property("longest_s", round(longest_s, 3))
        print(f"cancel, link {link}: at most {longest_s:.3f} s")
        assert longest_s < PROMISED_S + SLACK_S
        assert_verified(pair.migrate())
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def cancelled(pair: HostPair, relay: Relay, moment: Moment, link: str) -> float:
    """Cancel a migration at a moment, over a link that is stalled just before or not; gives how long that took."""
    if moment.point:
        pair.on_source("point", action="hold", name=moment.point)
    # The destination's own limit is the default of 10 s: it hears of the cancel, or of the connection's end.
    with pair.migrating("--to", relay.address, "--mode", moment.mode, *TIMEOUTS[2:]) as command:
        if moment.point:
            pair.on_source("point", action="wait", name=moment.point)
        else:
            until(lambda: pair.on_source("guest").get("round") == 1, "round 1 does not begin")
        if link == "stalled":
            relay.stall()
        began_s = time.monotonic()
        pair.on_source("cancel")
        took_s = time.monotonic() - began_s
        if moment.point:
            pair.release(moment.point)
        assert finish(command)[0] == 3, moment.name
    return took_s


def test_cancel_in_the_middle_of_a_long_install(place: Place) -> None:
    """A considerate install of 40 GiB of granules takes some seconds, in a thread that has to hear of the cancel."""
    sparse = ["--memory", "64GiB", "--resident", "64MiB", "--scattered", "20000", "--workload", "random"]
    with HostPair(sparse, ["--max-guest-memory", "64GiB"]) as pair:
        with pair.migrating("--to", pair.destination) as command:
            until(lambda: bool(pair.traces_of_tracking()), "the install does not begin")
            time.sleep(0.2)
            took_s = -time.monotonic()
            pair.on_source("cancel")
            took_s += time.monotonic()
            assert finish(command)[0] == 3
        print(f"cancel, mid-install: {took_s:.3f} s")
        assert took_s < PROMISED_S + SLACK_S
        assert pair.on_source("guest")["running"]
    place.assert_nothing_left()
