"""What is predicted from what was seen: guests whose migrations can be computed by hand, and what holds for any."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.prediction import DirtyPoint, PathSample, Prediction
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.outstanding import LOOK_S
from pagefire.source_host.prediction import PUSH_PAGE_S, Observed, predict

LOOKS_S = [0.01 * 1.5**n for n in range(14)] + [3.0]
MIB_PAGES = 256
MODES = ("hybrid", "precopy", "postcopy", "stop-and-copy")


def path(bytes_per_s: float, zero_share: float = 0.0) -> PathSample:
    pages = round(bytes_per_s * 0.3 / PAGE_BYTES)
    zero = round(pages * zero_share)
    return PathSample(pages, zero, (pages - zero) * PAGE_BYTES, (pages - zero) * PAGE_BYTES, 0.3)


def writer(pages_per_s: float, working_set_pages: float, granules: float | None = None) -> tuple[DirtyPoint, ...]:
    """See a guest that draws pages of its working set at random; so many pages lie in the granules of it."""
    touched = working_set_pages if granules is None else granules
    return tuple(
        DirtyPoint(t, round(working_set_pages * -math.expm1(-pages_per_s * t / working_set_pages)), round(touched))
        for t in LOOKS_S
    )


def seen(bytes_per_s: float = 100e6, dirty: tuple[DirtyPoint, ...] = (), **changes: Any) -> Observed:
    """A guest of 256 MiB on a path of so many bytes a second."""
    known: dict[str, Any] = {
        "resident_pages": 256 * MIB_PAGES, "swapped_pages": 0, "vcpus": 2, "setup_s": 0.5, "first": path(bytes_per_s),
        "again": None, "empty_round_s": 0.0, "dirty": dirty, "scan_s": 0.001,
    }  # fmt: skip
    return Observed(**{**known, **changes})


def options(mode: str, **changes: Any) -> MigrationOptions:
    return MigrationOptions(to="there:7700", mode=mode, **changes)


IDLE = writer(0.001, 16)


@pytest.mark.parametrize("mode", MODES)
def test_a_guest_that_does_nothing_takes_what_its_memory_takes(mode: str) -> None:
    told = predict(seen(dirty=IDLE), options(mode))
    moving_s = 256 * (1 << 20) / 100e6
    assert told.total_s == pytest.approx(0.5 + moving_s, rel=0.02)
    assert told.outcome == "completed"
    assert len(told.rounds) == (1 if mode in ("hybrid", "precopy") else 0)
    assert told.stun_s is not None
    assert told.stun_s < 0.02 if mode != "stop-and-copy" else told.stun_s == pytest.approx(moving_s, rel=0.02)


def test_each_round_of_a_slow_writer_is_a_fixed_share_of_the_last() -> None:
    """10 MB/s on a path of 100 MB/s, in a straight line: a tenth is left each time, and nothing of that is written again."""
    line = tuple(DirtyPoint(t, round(10e6 / PAGE_BYTES * t), round(10e6 / PAGE_BYTES * t)) for t in LOOKS_S)
    told = predict(seen(dirty=line), options("precopy", downtime_limit_s=0.005))
    pages = [one.pages + one.skipped_pages for one in told.rounds]
    for before, after in itertools.pairwise(pages[1:]):
        assert after == pytest.approx(before / 10, rel=0.05)
    assert (told.converges, told.outcome) == (True, "completed")
    assert told.stun_pages * PAGE_BYTES / 100e6 <= 0.005
    assert "It converges in" in told.verdict


def test_what_is_written_while_it_waits_is_skipped() -> None:
    """All of a working set is written before its turn comes, and left for later: so the first round is shorter by that."""
    told = predict(seen(dirty=writer(200_000, 64 * MIB_PAGES)), options("hybrid"))
    (first, *_) = told.rounds
    in_first_look = 100e6 / PAGE_BYTES * LOOK_S
    assert first.skipped_pages + in_first_look / 4 >= 0.8 * 64 * MIB_PAGES
    assert first.pages + first.skipped_pages == 256 * MIB_PAGES
    assert first.dirty_pages_after == pytest.approx(64 * MIB_PAGES, rel=0.01)


def test_where_memory_is_touched_decides_what_the_first_round_has_sent_already() -> None:
    busy = writer(200_000, 8 * MIB_PAGES)
    front, back = (0.0, *[1.0] * 64), (*[0.0] * 64, 1.0)
    skipped = [
        predict(seen(dirty=busy, touched_by=where), options("hybrid")).rounds[0].skipped_pages
        for where in (front, (), back)
    ]
    assert skipped[0] < skipped[1] < skipped[2]
    assert skipped[0] == 0
    assert skipped[2] == pytest.approx(8 * MIB_PAGES, rel=0.01)


def test_a_guest_that_writes_faster_than_the_path_carries() -> None:
    adversary = writer(200_000, 128 * MIB_PAGES)
    cancelled = predict(seen(dirty=adversary), options("precopy", max_rounds=5))
    assert (cancelled.outcome, cancelled.converges, len(cancelled.rounds)) == ("cancelled", False, 5)
    assert "--max-rounds reached" in cancelled.stop_reason
    assert "Use --mode hybrid, slow the guest with --auto-converge" in cancelled.verdict
    assert (cancelled.stun_s, cancelled.resident_after_s) == (None, None)
    hybrid = predict(seen(dirty=adversary), options("hybrid"))
    assert (hybrid.outcome, hybrid.converges) == ("completed", False)
    assert hybrid.resident_after_s == pytest.approx(128 * (1 << 20) / 100e6, rel=0.05)
    assert "does not converge, but goes on after the resume" in hybrid.verdict
    slowed = predict(seen(dirty=adversary), options("precopy", auto_converge=True))
    assert (slowed.outcome, slowed.converges) == ("completed", True)
    assert any("auto-converge is taken at its aim" in one for one in slowed.caveats)
    assert slowed.total_s < cancelled.total_s * 2


@given(st.floats(5e6, 2e9), st.floats(0.01, 2.0))
def test_a_guest_that_is_slowed_always_gets_there(bytes_per_s: float, limit_s: float) -> None:
    """The last page must not be what decides: rounds leave what the limit allows, however it is rounded."""
    chosen = options("precopy", auto_converge=True, downtime_limit_s=limit_s)
    told = predict(seen(bytes_per_s, writer(500_000, 128 * MIB_PAGES)), chosen)
    assert (told.outcome, told.converges) == ("completed", True)


def test_a_rolling_install_leaves_less() -> None:
    steady = writer(3000, 128 * MIB_PAGES)
    loose, rolling = (predict(seen(dirty=steady), options("precopy", install=how)) for how in ("loose", "rolling"))
    assert rolling.rounds[0].dirty_pages_after < 0.7 * loose.rounds[0].dirty_pages_after


def test_the_push_takes_what_showing_each_page_takes() -> None:
    told = predict(seen(bytes_per_s=10e9), options("postcopy"))
    assert told.remaining_pages == 256 * MIB_PAGES
    assert told.resident_after_s is not None
    assert told.resident_after_s >= 256 * MIB_PAGES * PUSH_PAGE_S


def test_swapped_pages_go_last_where_they_may() -> None:
    told = predict(seen(dirty=IDLE, swapped_pages=10_000), options("hybrid"))
    assert told.rounds[0].pages == 256 * MIB_PAGES - 10_000
    assert told.remaining_pages >= 10_000 - 50
    assert "10,000 pages are swapped out" in told.caveats[0]
    assert predict(seen(dirty=IDLE, swapped_pages=10_000), options("precopy")).rounds[0].pages == 256 * MIB_PAGES


def test_digests_lengthen_the_stun() -> None:
    without, verified = (
        predict(seen(dirty=IDLE, digest_page_s=1e-6), options("hybrid", verify=verify)) for verify in (False, True)
    )
    assert verified.stun_s is not None
    assert without.stun_s is not None
    assert verified.stun_s - without.stun_s == pytest.approx(256 * MIB_PAGES * 1e-6)


def test_a_guest_that_is_slower_while_a_host_sends_writes_less() -> None:
    steady = writer(8000, 128 * MIB_PAGES)
    free, slowed = (predict(seen(dirty=steady, slowdown=by), options("precopy")) for by in (1.0, 3.0))
    assert slowed.rounds[0].dirty_pages_after < free.rounds[0].dirty_pages_after / 1.5
    assert slowed.slowdown == 3.0


def test_zero_pages_cost_no_bandwidth() -> None:
    told = predict(seen(first=path(400e6, 0.75), dirty=IDLE), options("precopy"))
    assert told.rounds[0].duration_s == pytest.approx(256 * (1 << 20) / 400e6, rel=0.02)
    assert "compressed" not in told.stop_reason


@given(
    st.sampled_from(MODES),
    st.floats(1e6, 5e9),
    st.floats(0, 1e6),
    st.integers(1, 256 * MIB_PAGES),
    st.integers(0, 5000),
    st.booleans(),
    st.sampled_from(["loose", "rolling"]),
    st.sampled_from(["postcopy", "cancel", None]),
    st.floats(1e-4, 5.0),
)  # fmt: skip
def test_whatever_was_seen(
    mode: str, bytes_per_s: float, pages_per_s: float, working_set: int, swapped: int, auto_converge: bool,
    install: str, on_limit: str | None, limit_s: float,
) -> None:  # fmt: skip
    chosen = options(
        mode, auto_converge=auto_converge, install=install, on_limit=on_limit, downtime_limit_s=limit_s, max_rounds=12
    )
    told = predict(seen(bytes_per_s, writer(pages_per_s, working_set), swapped_pages=swapped), chosen)
    assert_sound(told, chosen)
    # Twice as fast a path is never much slower, but for one more round that is worth its while then.
    if told.outcome == "completed" and mode in ("postcopy", "stop-and-copy"):
        faster = predict(seen(2 * bytes_per_s, writer(pages_per_s, working_set), swapped_pages=swapped), chosen)
        assert faster.total_s <= told.total_s + 1e-9


def assert_sound(told: Prediction, chosen: MigrationOptions) -> None:
    """Check what holds for every prediction: its parts add up, rounds follow each other, and nothing is negative."""
    parts = (told.setup_s, told.precopy_s, told.downtime_s or 0.0, told.resident_after_s or 0.0)
    assert told.total_s == pytest.approx(sum(parts))
    assert all(part >= 0 for part in parts)
    assert math.isfinite(told.total_s)
    assert len(told.rounds) <= chosen.max_rounds
    assert sum(one.duration_s for one in told.rounds) <= told.precopy_s + 1e-9
    for before, after in itertools.pairwise(told.rounds):
        assert abs(after.pages + after.skipped_pages - before.dirty_pages_after) <= 2
    for one in told.rounds:
        assert min(one.pages, one.skipped_pages, one.dirty_pages_after) >= 0
        assert one.dirty_pages_after <= told.resident_pages
    if told.outcome == "completed":
        assert told.stun_s is not None
        assert told.downtime_s is not None
        assert told.stun_s > told.downtime_s
        assert told.verdict
    else:
        assert chosen.limits.on_limit == "cancel"
    assert told.as_dict()["rounds"] == [dataclasses.asdict(one) for one in told.rounds]
