"""From readings to figures: buckets of two hosts laid over each other, phases, stalls and stuns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.messages import Aftermath
from pagefire.protocol.report import Clock, VcpuStun
from pagefire.source_host import measurement
from pagefire.source_host.measurement import BUCKET_NS, Commits, Instants
from pagefire.source_host.switchover import Stun

START_NS = 1_000 * BUCKET_NS
SHARED = Clock(True, 0.0, 0.0)


def aftermath(
    since_ns: int = START_NS, buckets: list[int] | None = None, first_commits_ns: list[int] | None = None
) -> Aftermath:
    return Aftermath(
        first_commits_ns or [], since_ns, buckets or [], 0.0, 0.0, 0, 0, 0, False, [], -1, 0, 0.0, [], [], b"", 1
    )


def counts(*numbers: int) -> measurement.Counts:
    return np.array(numbers, np.uint64)


def stun_of(last_commits_ns: list[int], pause_ns: int) -> Stun:
    return Stun(pause_ns=pause_ns, last_commits_ns=np.array(last_commits_ns, np.uint64))


def test_buckets_of_both_hosts_are_added_where_they_meet() -> None:
    there = aftermath(START_NS + 2 * BUCKET_NS, [1, 7, 8])
    merged = measurement.merge(START_NS, counts(5, 5, 4, 0), there, SHARED)
    assert merged.since_ns == START_NS
    assert merged.counts.tolist() == [5, 5, 5, 7, 8]


@given(
    st.lists(st.integers(0, 1000), max_size=30),
    st.lists(st.integers(0, 1000), max_size=30),
    st.integers(-40, 40),
    st.integers(-(10**6), 10**6),
)
def test_no_bucket_is_lost_by_an_offset(here: list[int], there: list[int], shift: int, offset_buckets: int) -> None:
    clock = Clock(False, offset_buckets * BUCKET_NS / 1e9, 0.0)
    later = aftermath(START_NS + (shift + offset_buckets) * BUCKET_NS, there)
    merged = measurement.merge(START_NS, counts(*here), later, clock)
    expected = dict(enumerate(here))
    for index, count in enumerate(there, shift):
        expected[index] = expected.get(index, 0) + count
    # What lies before the source's first bucket is not part of the timeline.
    expected = {index: count for index, count in expected.items() if index >= 0}
    assert dict(enumerate(merged.counts.tolist())) == {
        index: expected.get(index, 0) for index in range(merged.counts.size)
    }
    assert max(expected, default=-1) == merged.counts.size - 1 or not there


def test_an_offset_moves_by_whole_buckets() -> None:
    clock = Clock(False, 7.0042, 0.001)
    there = aftermath(START_NS + BUCKET_NS + 7_000_000_000, [9])
    assert measurement.merge(START_NS, counts(1, 0), there, clock).counts.tolist() == [1, 9]


def test_only_whole_buckets_lie_within_an_interval() -> None:
    commits = Commits(START_NS, counts(1, 2, 3, 4))
    assert commits.between(START_NS, START_NS + 4 * BUCKET_NS).tolist() == [1, 2, 3, 4]
    assert commits.between(START_NS + 1, START_NS + 4 * BUCKET_NS - 1).tolist() == [2, 3]
    assert commits.between(START_NS - 5 * BUCKET_NS, START_NS + 2 * BUCKET_NS).tolist() == [1, 2]
    assert commits.between(START_NS + BUCKET_NS, START_NS).tolist() == []
    assert commits.rate_per_s(START_NS, START_NS + 2 * BUCKET_NS) == 150
    assert commits.rate_per_s(START_NS + 1, START_NS + BUCKET_NS) is None


def test_every_instant_has_a_phase() -> None:
    instants = Instants(10, 20, 30, 40, 50)
    phases = [instants.phase(at) for at in (9, 10, 19, 20, 29, 30, 39, 40, 49, 50)]
    assert phases == (
        [
            "none",
            "setup",
            "setup",
            "active",
            "active",
            "device",
            "device",
            "postcopy-active",
            "postcopy-active",
            "completed",
        ]
    )


def at(bucket: int) -> int:
    return START_NS + bucket * BUCKET_NS


def test_a_timeline_begins_at_the_request() -> None:
    commits = Commits(START_NS, counts(5, 6, 0, 7))
    entries = measurement.timeline(commits, Instants(at(1), at(1), at(2), at(3), at(3)))
    assert [(entry.t_s, entry.commits, entry.phase) for entry in entries] == [
        (-0.01, 5, "none"),
        (0.0, 6, "active"),
        (0.01, 0, "device"),
        (0.02, 7, "completed"),
    ]


def test_rates_before_during_and_after() -> None:
    commits = Commits(START_NS, counts(*[10] * 100, *[8] * 20, 0, *[3] * 5, *[9] * 10))
    instants = Instants(at(100), at(100), at(120), at(121), at(126))
    rates = measurement.guest_rates(commits, instants)
    assert (rates.before_per_s, rates.during_per_s, rates.after_per_s) == (1000, 800, 900)
    assert measurement.guest_rates(Commits(START_NS, counts()), instants).before_per_s is None


def test_a_stall_is_less_than_half_the_baseline() -> None:
    commits = Commits(START_NS, counts(*[10] * 100, 0, 4, 5, 0, 10, 0))
    instants = Instants(at(100), at(100), at(100), at(101), at(105))
    assert measurement.stall_s(commits, instants) == pytest.approx(0.03)
    # At full residency it ends, but never before the two buckets that the pause itself can touch.
    assert measurement.stall_s(commits, Instants(at(100), at(100), at(100), at(100), at(100))) == pytest.approx(0.02)


@pytest.mark.parametrize("before", [[], [0] * 100])
def test_a_guest_that_did_nothing_does_not_stall(before: list[int]) -> None:
    commits = Commits(START_NS, counts(*before, 0, 0, 0))
    paused = at(len(before))
    assert measurement.stall_s(commits, Instants(paused, paused, paused, paused, paused)) is None


def test_the_blackout_is_from_the_last_commit_to_the_first() -> None:
    stun = stun_of([1_000_000_000, 1_003_000_000], pause_ns=1_004_000_000)
    blackout_s, own, running_s = measurement.stuns(
        stun, aftermath(first_commits_ns=[1_010_000_000, 1_008_000_000]), SHARED, 2_000_000
    )
    assert blackout_s == pytest.approx(0.005)
    assert own == VcpuStun(pytest.approx(0.0075), pytest.approx(0.00995), pytest.approx(0.010), 0.002)
    assert running_s == pytest.approx(0.006)


def test_the_stun_begins_with_the_last_commit_of_any_vcpu() -> None:
    instants = Instants(1_000_000_000, 1_000_000_000, 1_250_000_000, 1_260_000_000, 1_260_000_000)
    assert measurement.stun_at_s(stun_of([1_240_000_000, 1_249_000_000], 1_250_000_000), instants) == pytest.approx(
        0.249
    )
    assert measurement.stun_at_s(stun_of([0, 0], 1_250_000_000), instants) is None
    assert measurement.stun_at_s(stun_of([], 1_250_000_000), instants) is None


def test_a_measured_offset_is_taken_off() -> None:
    stun = stun_of([1_000_000_000], pause_ns=1_001_000_000)
    there = aftermath(first_commits_ns=[6_010_000_000])
    blackout_s, own, running_s = measurement.stuns(stun, there, Clock(False, 5.0, 0.001), 0)
    assert (blackout_s, running_s) == (pytest.approx(0.010), pytest.approx(0.009))
    assert own is not None
    assert own.max == pytest.approx(0.010)
    assert own.baseline_max is None


def test_a_finished_vcpu_has_no_stun_of_its_own() -> None:
    stun = stun_of([1_000_000_000, 900_000_000], pause_ns=1_001_000_000)
    blackout_s, own, running_s = measurement.stuns(stun, aftermath(first_commits_ns=[1_010_000_000, 0]), SHARED, 0)
    assert blackout_s == pytest.approx(0.010)
    assert own is not None
    assert own.max == pytest.approx(0.010)
    assert running_s is None


def test_a_vcpu_that_first_commits_after_the_stun_is_waited_for() -> None:
    stun = stun_of([1_000_000_000, 0], pause_ns=1_001_000_000)
    there = aftermath(first_commits_ns=[1_010_000_000, 1_090_000_000])
    blackout_s, own, running_s = measurement.stuns(stun, there, SHARED, 0)
    assert blackout_s == pytest.approx(0.010)
    assert own is not None
    assert own.max == pytest.approx(0.010)
    assert running_s == pytest.approx(0.089)


@pytest.mark.parametrize(
    ("last", "first"),
    [([0, 0], [5, 5]), ([5, 5], [0, 0]), ([5, 0], [0, 5]), ([5], [5, 5]), ([], [])],
)
def test_without_commits_on_both_sides_there_is_no_stun(last: list[int], first: list[int]) -> None:
    assert measurement.stuns(stun_of(last, 1), aftermath(first_commits_ns=first), SHARED, 0) == (None, None, None)
