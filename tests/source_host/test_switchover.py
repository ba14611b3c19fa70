"""The breakdown of a downtime adds up to it, whatever the instants and the clocks were."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.messages import Ready, Resumed
from pagefire.protocol.report import Clock
from pagefire.source_host.switchover import Stun

MS = 1_000_000


def stun_of(instants_ns: list[int], ready: Ready, resumed: Resumed) -> Stun:
    names = ("pause", "parked", "scanned", "coded", "sent", "ready", "verified", "handover")
    stun = Stun(**{f"{name}_ns": at for name, at in zip(names, instants_ns, strict=True)})
    stun.ready, stun.resumed = ready, resumed
    return stun


gaps = st.lists(st.integers(0, 10**10), min_size=8, max_size=8)
seconds = st.floats(0, 10)


@given(gaps, st.tuples(seconds, seconds, seconds), st.integers(0, 10**9), st.integers(0, 10**9), st.floats(-1e6, 1e6))
def test_the_parts_add_up(
    steps_ns: list[int], there_s: tuple[float, float, float], to_arrival_ns: int, to_resume_ns: int, offset_s: float
) -> None:
    instants = [10**15 + sum(steps_ns[: index + 1]) for index in range(8)]
    arrived_ns = instants[-1] + to_arrival_ns + round(offset_s * 1e9)
    stun = stun_of(instants, Ready(*there_s), Resumed(arrived_ns, arrived_ns + to_resume_ns))
    clock = Clock(False, offset_s, 0.0)
    downtime_s = stun.downtime_s(clock)
    breakdown = stun.breakdown(clock)
    assert breakdown is not None
    assert sum(asdict(breakdown).values()) == pytest.approx(downtime_s, abs=1e-6)
    assert downtime_s == pytest.approx((instants[-1] - instants[0] + to_arrival_ns + to_resume_ns) / 1e9, abs=1e-6)


def test_each_part_is_where_it_belongs() -> None:
    instants = [at * MS for at in (100, 101, 103, 107, 112, 132, 139, 140)]
    stun = stun_of(instants, Ready(0.004, 0.003, 0.005), Resumed(5147 * MS, 5156 * MS))
    breakdown = stun.breakdown(Clock(False, 5.0, 0.001))
    assert breakdown is not None
    expected = {
        "quiesce_s": 0.001,
        "final_scan_s": 0.002,
        "bitmap_s": 0.004,
        "checkpoint_s": 0.005,
        "drain_s": 0.003,
        "transfer_s": 0.020 - 0.012 + 0.008,
        "install_s": 0.009,
        "verify_s": 0.007,
        "resume_s": 0.009,
    }
    assert asdict(breakdown) == pytest.approx(expected)
    assert stun.downtime_s(Clock(False, 5.0, 0.001)) == pytest.approx(0.056)


def test_parts_that_nobody_knows_are_not_made_up() -> None:
    """A daemon that took the place of one that died knows when the guest was resumed, but not when HANDOVER came."""
    instants = [at * MS for at in (100, 101, 103, 107, 112, 132, 139, 140)]
    stun = stun_of(instants, Ready(0.004, 0.003, 0.005), Resumed(0, 5156 * MS))
    assert stun.breakdown(Clock(False, 5.0, 0.001)) is None
    assert stun.downtime_s(Clock(False, 5.0, 0.001)) == pytest.approx(0.056)


def test_marks_are_taken_from_the_clock() -> None:
    stun = Stun()
    first, second = stun.mark("parked"), stun.mark("scanned")
    assert 0 < first == stun.parked_ns <= second == stun.scanned_ns
    assert not stun.remaining
    assert stun.last_commits_ns.size == 0
