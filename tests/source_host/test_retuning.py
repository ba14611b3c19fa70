"""What `pagefire set` makes of a migration's options, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.scripts.move_options import changes_in_flight
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.retuning import retuned

HYBRID = MigrationOptions("127.0.0.1:1")


def test_changes_are_taken() -> None:
    changes = {"max_bandwidth_Bps": 125e6, "downtime_limit_s": 0.3, "mode": "precopy"}
    assert retuned(HYBRID, changes, stopped=False) == replace(HYBRID, **changes)  # type: ignore[arg-type]


def test_postcopy_ends_precopy() -> None:
    told = retuned(replace(HYBRID, mode="precopy"), {"mode": "postcopy"}, stopped=False)
    assert told == replace(HYBRID, switch_now=True)


@pytest.mark.parametrize(
    ("mode", "changes", "stopped", "words"),
    [
        ("hybrid", {}, False, "nothing is to be set"),
        ("hybrid", {"streams": 2}, False, "streams cannot be set in flight"),
        ("hybrid", {"mode": "precopy"}, True, "too late to set mode"),
        ("hybrid", {"downtime_limit_s": 1.0, "max_bandwidth_Bps": 1e6}, True, "too late to set downtime_limit_s"),
        ("hybrid", {"mode": "stop-and-copy"}, False, "cannot become stop-and-copy"),
        ("postcopy", {"mode": "precopy"}, False, "in mode postcopy cannot become precopy: nothing traces"),
    ],
)
def test_what_cannot_be(mode: str, changes: dict[str, Any], stopped: bool, words: str) -> None:
    with pytest.raises(PagefireError, match=words):
        retuned(replace(HYBRID, mode=mode), changes, stopped=stopped)


def test_the_bandwidth_can_be_set_to_the_end() -> None:
    assert retuned(HYBRID, {"max_bandwidth_Bps": None}, stopped=True) == HYBRID


def test_what_a_person_types() -> None:
    assert changes_in_flight("1Gbit/s", "postcopy", "10ms", 3, "1m", "cancel") == {
        "max_bandwidth_Bps": 125e6,
        "mode": "postcopy",
        "downtime_limit_s": 0.01,
        "max_rounds": 3,
        "max_time_s": 60.0,
        "on_limit": "cancel",
    }
    assert changes_in_flight("off", None, None, None, None, None) == {"max_bandwidth_Bps": None}
    with pytest.raises(UsageError):
        changes_in_flight(None, "stop-and-copy", None, None, None, None)
