"""Every verdict, in the words that a person reads, and what holds whatever the rounds were."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.report import Round
from pagefire.source_host.convergence import (
    NO_GAIN,
    Limits,
    bandwidth_Bps,
    judge,
    pace_Bps,
    payload_share,
    settled_pace_Bps,
)


def round_of(
    number: int,
    pages: int,
    left: int,
    *,
    skipped: int = 0,
    duration_s: float = 1.0,
    wire_bytes: int | None = None,
    share: float = 1.0,
) -> Round:
    """Make a round whose pages all had contents, of which compression left a share."""
    payload_bytes = round(pages * PAGE_BYTES * share)
    sent_bytes = payload_bytes if wire_bytes is None else wire_bytes
    rate = left / max(duration_s, 1e-6)
    return Round(number, pages, 0, sent_bytes, duration_s, left, skipped, rate, payload_bytes)


def sifted(done: Round, *, unchanged: int, look_s: float = 0.0, changed: float = 1.0) -> Round:
    """Give the round with so many pages left out besides, a look that long, and that share changed of what is left."""
    return dataclasses.replace(done, unchanged_pages=unchanged, look_s=look_s, share_changed=changed)


def limits(mode: str = "hybrid", **changes: object) -> Limits:
    allowed = {"downtime_limit_s": 0.05, "max_rounds": 30, "max_time_s": 300.0, "on_limit": "postcopy"} | changes
    return Limits(mode, **allowed)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "then"), [("precopy", "switch"), ("hybrid", "postcopy")])
def test_little_enough_is_left(mode: str, then: str) -> None:
    verdict = judge([round_of(1, 262_144, 500)], limits(mode), 1.0)
    assert (verdict.stop, verdict.then) == (True, then)
    assert verdict.reason == (
        "Stopping pre-copy after round 1: 500 pages left, 1.91 ms at 1.07 GB/s, within the limit of 50 ms; dirty rate 2.05 MB/s"
    )


def test_hybrid_goes_on_within_the_limit_while_that_halves_what_is_left() -> None:
    first, second = round_of(1, 262_144, 8000), round_of(2, 8000, 3000, duration_s=0.03)
    verdict = judge([first], limits(), 1.0)
    assert not verdict.stop
    assert verdict.reason == (
        "Going on after round 1: 8,000 pages left, 30.5 ms at 1.07 GB/s, within the limit of 50 ms; dirty rate 32.8 MB/s, "
        "so another round leaves less"
    )
    assert judge([first], limits("precopy"), 1.0).stop
    assert judge([first], limits(max_rounds=1), 1.0).then == "postcopy"
    assert not judge([first, second], limits(), 1.03).stop
    # It did not halve what was left; the guest writes half as fast as the link carries; what is left moves at once.
    assert judge([first, round_of(2, 8000, 4001, duration_s=0.03)], limits(), 1.03).stop
    assert judge([dataclasses.replace(first, dirty_pages_per_s=140_000.0)], limits(), 1.0).stop
    assert judge([first, round_of(2, 8000, 500, duration_s=0.03)], limits(), 1.03).stop


def test_pages_count_as_contents_where_they_are_compressed() -> None:
    """A third of them went over the wire in that time, so three times as many may be left."""
    assert "500 pages left, 15.3 ms at 134 MB/s, " in judge([round_of(1, 32_768, 500)], limits(), 1.0).reason
    verdict = judge([round_of(1, 98_304, 1500, share=1 / 3)], limits("precopy"), 1.0)
    assert verdict.reason == (
        "Stopping pre-copy after round 1: 1,500 pages left, 15.3 ms at 403 MB/s, compressed, within the limit of 50 ms; "
        "dirty rate 6.14 MB/s"
    )


@pytest.mark.parametrize(
    ("largest_share", "last_share", "expected_bps"),
    [
        (1.0, 1.0, 100e6),
        (0.25, 0.25, 400e6),
        # What is left compresses less than what made most of the first round.
        (0.25, 0.5, 200e6),
        (0.25, 1.0, 100e6),
        # It compresses better: the link would carry more, but whether the codec makes more is not known.
        (0.5, 0.25, 200e6),
    ],
)
def test_what_is_left_compresses_like_the_last_round(
    largest_share: float, last_share: float, expected_bps: float
) -> None:
    pages = round(100e6 / PAGE_BYTES / largest_share)
    rounds = [round_of(1, pages, 1000, share=largest_share), round_of(2, 1000, 100, duration_s=0.5, share=last_share)]
    assert bandwidth_Bps(rounds) == pytest.approx(expected_bps, rel=0.001)


def test_a_round_without_contents_tells_nothing_of_compression() -> None:
    zeros = Round(1, 1000, 1000, 5000, 0.1, 10, 0, 100.0, 0)
    assert payload_share(zeros) == 1.0
    assert bandwidth_Bps([zeros]) == pytest.approx(50_000)
    assert payload_share(Round(1, 0, 0, 40, 0.1, 0, 0, 0.0, 0)) == 1.0


def test_nothing_is_left() -> None:
    verdict = judge([round_of(1, 0, 0, wire_bytes=40)], limits("precopy"), 0.1)
    assert (verdict.stop, verdict.then) == (True, "switch")
    assert "0 pages left, 0 s at 40 B/s" in verdict.reason


def test_there_is_more_to_gain() -> None:
    verdict = judge([round_of(1, 262_144, 131_072)], limits(), 1.0)
    assert (verdict.stop, verdict.then) == (False, "")
    assert verdict.reason == (
        "Going on after round 1: 131,072 pages left, 500 ms at 1.07 GB/s, above the limit of 50 ms; dirty rate 537 MB/s"
    )


def test_hybrid_stops_when_a_round_gains_nothing() -> None:
    rounds = [round_of(1, 262_144, 131_072), round_of(2, 131_072, 120_000, duration_s=0.5)]
    verdict = judge(rounds, limits(), 1.5)
    assert (verdict.stop, verdict.then) == (True, "postcopy")
    assert verdict.reason == (
        "Stopping pre-copy after round 2: 120,000 pages left, 458 ms at 1.07 GB/s, above the limit of 50 ms; dirty rate 983 MB/s; "
        "the round began with 131,072 pages and gained nothing, the rest moves after the resume"
    )
    assert not judge(rounds, limits("precopy"), 1.5).stop


def test_the_first_round_alone_shows_no_trend() -> None:
    assert not judge([round_of(1, 1000, 990, duration_s=10)], limits(), 1.0).stop


@pytest.mark.parametrize(("on_limit", "follows"), [("postcopy", "switching to post-copy"), ("cancel", "cancelling")])
@pytest.mark.parametrize(
    ("changes", "elapsed_s", "which"),
    [({"max_rounds": 2}, 1.0, "--max-rounds"), ({"max_time_s": 5.0}, 5.0, "--max-time")],
)
def test_a_limit_is_reached(
    on_limit: str, follows: str, changes: dict[str, object], elapsed_s: float, which: str
) -> None:
    rounds = [round_of(1, 262_144, 131_072), round_of(2, 131_072, 65_536)]
    verdict = judge(rounds, limits("precopy", on_limit=on_limit, **changes), elapsed_s)
    assert (verdict.stop, verdict.then) == (True, on_limit)
    assert verdict.reason == (
        f"Stopping pre-copy after round 2: {which} reached, 65,536 pages left, 250 ms at 1.07 GB/s, above the limit of 50 ms; "
        f"dirty rate 268 MB/s; {follows}"
    )


def test_small_rounds_do_not_make_the_link_slow() -> None:
    # A round of one page measures latency: the link is what the large one of the last three says.
    rounds = [round_of(1, 100_000, 5), round_of(2, 5, 1, duration_s=0.01), round_of(3, 1, 1, duration_s=0.01)]
    assert bandwidth_Bps(rounds) == 100_000 * PAGE_BYTES
    assert bandwidth_Bps([*rounds, round_of(4, 1, 1, duration_s=0.01)]) == 5 * PAGE_BYTES / 0.01


@st.composite
def histories(draw: st.DrawFn) -> list[Round]:
    """Rounds as a migration has them: each sends what the one before left."""
    pages = draw(st.integers(0, 1 << 30))
    rounds = []
    for number in range(1, draw(st.integers(1, 8)) + 1):
        left = draw(st.integers(0, 1 << 30))
        seconds = draw(st.floats(0, 1e4))
        rounds.append(round_of(number, pages, left, duration_s=seconds, wire_bytes=draw(st.integers(0, 1 << 42))))
        pages = left
    return rounds


modes = st.sampled_from(["precopy", "hybrid"])


@given(histories(), modes, st.integers(1, 10), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1))
def test_nothing_goes_on_past_a_limit(
    rounds: list[Round], mode: str, max_rounds: int, max_time_s: float, elapsed_s: float, downtime_limit_s: float
) -> None:
    allowed = limits(
        mode, max_rounds=max_rounds, max_time_s=max_time_s, downtime_limit_s=downtime_limit_s, on_limit="cancel"
    )
    verdict = judge(rounds, allowed, elapsed_s)
    if rounds[-1].round >= max_rounds or elapsed_s >= max_time_s:
        assert verdict.stop
    if not verdict.stop:
        assert verdict.then == ""
        assert verdict.reason.startswith("Going on after round")
    # Hybrid is never cancelled for a lack of convergence it could have switched on.
    assert verdict.then in {"precopy": ("", "switch", "cancel"), "hybrid": ("", "postcopy", "cancel")}[mode]


@given(histories(), modes)
def test_a_switch_keeps_the_downtime_limit(rounds: list[Round], mode: str) -> None:
    verdict = judge(rounds, limits(mode, on_limit="cancel"), 0.0)
    left_s = rounds[-1].dirty_pages_after * PAGE_BYTES / max(bandwidth_Bps(rounds), 1.0)
    # But for what rounding makes of the limit itself.
    assert (verdict.then == "switch") <= (left_s <= 0.05 * (1 + 1e-9))
    if left_s <= 0.05 * (1 - 1e-9):
        assert verdict.stop or (mode == "hybrid" and verdict.reason.endswith("so another round leaves less"))


@given(histories())
def test_hybrid_goes_on_only_while_rounds_gain(rounds: list[Round]) -> None:
    if len(rounds) >= 2 and not judge(rounds, limits(max_rounds=100), 0.0).stop:
        assert rounds[-1].dirty_pages_after < NO_GAIN * (rounds[-1].pages + rounds[-1].skipped_pages)


def test_hybrid_stops_when_the_guest_writes_faster_than_the_link_carries() -> None:
    """Half of what was due was written before its turn: skipping it is a gain, but another round would have none."""
    first = round_of(1, 262_144, 262_144, skipped=262_144, duration_s=8.6)
    verdict = judge([dataclasses.replace(first, dirty_pages_per_s=48_000.0)], limits(), 8.6)
    assert (verdict.stop, verdict.then) == (True, "postcopy")
    assert verdict.reason == (
        "Stopping pre-copy after round 1: 262,144 pages left, 8.6 s at 125 MB/s, above the limit of 50 ms; dirty rate 197 MB/s; "
        "the guest writes faster than the link carries, the rest moves after the resume"
    )
    assert not judge([dataclasses.replace(first, dirty_pages_per_s=20_000.0)], limits(), 8.6).stop
    assert not judge([dataclasses.replace(first, dirty_pages_per_s=48_000.0)], limits("precopy"), 8.6).stop


# -- pages that are left out because they are unchanged ---------------------------------------------------------------------

#: Of 2 GiB a first round of 16 s on a link of 1 Gbit/s; the guest keeps all of its 2 MiB pages dirty, and changes one of 512.
FIRST = sifted(round_of(1, 524_288, 524_288, duration_s=17.0), unchanged=0, look_s=0.5, changed=1 / 512)
SECOND = sifted(round_of(2, 1024, 524_288, duration_s=0.5), unchanged=523_264, look_s=0.5, changed=1 / 512)


def test_a_round_of_which_most_was_left_out_does_not_tell_what_the_link_carries() -> None:
    link_bps = 2**31 / 17.0
    for rounds in ([FIRST], [FIRST, SECOND], [FIRST, SECOND, SECOND, SECOND, SECOND]):
        assert bandwidth_Bps(rounds) == pytest.approx(link_bps)
    # Unless there is no other.
    assert bandwidth_Bps([SECOND]) == pytest.approx(1024 * PAGE_BYTES / 0.5)


def test_the_next_round_takes_a_look_and_sends_what_has_changed() -> None:
    assert pace_Bps([FIRST]) == pytest.approx(2**31 / (0.5 + 17.0 / 512))
    half_changed = dataclasses.replace(SECOND, share_changed=0.5)
    assert pace_Bps([FIRST, half_changed]) == pytest.approx(2**31 / (0.5 + 17.0 / 2))
    assert pace_Bps([round_of(1, 1000, 10)]) == pytest.approx(bandwidth_Bps([round_of(1, 1000, 10)]))


def test_in_precopy_what_is_unchanged_need_not_be_sent_in_the_stun() -> None:
    # 512 MiB are left, of which 1 MiB has changed: a look of 125 ms, and 8 ms of the link.
    left = dataclasses.replace(FIRST, dirty_pages_after=131_072)
    assert judge([left], limits("precopy", downtime_limit_s=0.14), 17.0).then == "switch"
    verdict = judge([left], limits("precopy", downtime_limit_s=0.13), 17.0)
    assert not verdict.stop
    assert "131,072 pages left, 133 ms at 4.03 GB/s, 100% of them unchanged, above the limit" in verdict.reason


def test_in_hybrid_all_of_them_move_after_the_resume() -> None:
    left = dataclasses.replace(FIRST, dirty_pages_after=131_072)
    verdict = judge([left], limits(downtime_limit_s=0.13), 17.0)
    assert "131,072 pages left, 4.25 s at 126 MB/s, 100% of them unchanged, above the limit" in verdict.reason


def test_hybrid_goes_on_while_a_round_is_quicker_than_the_guest_makes_dirty() -> None:
    """Twice as many pages a second as the link carries, nearly all of them unchanged: the next round looks at them in no time."""
    rate = 2 * bandwidth_Bps([FIRST]) / PAGE_BYTES
    assert not judge([dataclasses.replace(FIRST, dirty_pages_per_s=rate)], limits(), 17.0).stop
    all_changed = dataclasses.replace(FIRST, dirty_pages_per_s=rate, share_changed=1.0)
    assert "the guest writes faster than the link carries" in judge([all_changed], limits(), 17.0).reason


def test_what_was_left_out_was_due_as_well() -> None:
    """A round that sends 1,000 of 500,000 pages and leaves 20,000 has gained."""
    quiet = dataclasses.replace(SECOND, dirty_pages_after=20_000, dirty_pages_per_s=1000.0)
    assert not judge([FIRST, quiet], limits(), 18.0).stop
    busy = dataclasses.replace(SECOND, dirty_pages_per_s=1000.0)
    assert "began with 524,288 pages and gained nothing" in judge([FIRST, busy], limits(), 18.0).reason


# -- pages that go as differences --------------------------------------------------------------------------------------------

#: Of 2 GiB a first round that sent 1.25 on a link of 1 Gbit/s, and left out what was written meanwhile. The guest writes faster
#: than the link carries; of the pages left a tenth has been sent, and a difference takes a 32nd of a page.
BEGAN = dataclasses.replace(
    round_of(1, 320_000, 230_000, skipped=200_000, duration_s=10.5), dirty_pages_per_s=48_000.0,
    delta_share=1 - 0.1 * 31 / 32, settled_share=1 / 32,
)  # fmt: skip


def delta_round(number: int, pages: int, left: int, *, known: float, duration_s: float, next_share: float) -> Round:
    """Make a round of which a share was known: those pages went as differences, a 32nd of each."""
    delta_pages = round(pages * known)
    payload_bytes = round((pages - delta_pages * 31 / 32) * PAGE_BYTES)
    return dataclasses.replace(
        round_of(number, pages, left, duration_s=duration_s, wire_bytes=payload_bytes), dirty_pages_per_s=50_000.0,
        payload_bytes=payload_bytes, delta_pages=delta_pages, delta_bytes=delta_pages * PAGE_BYTES // 32,
        delta_share=next_share, settled_share=1 / 32, look_s=pages * 3e-6,
    )  # fmt: skip


def test_a_round_of_differences_does_not_tell_what_the_link_carries() -> None:
    link_bps = 320_000 * PAGE_BYTES / 10.5
    quick = delta_round(2, 25_000, 5_000, known=1.0, duration_s=0.1, next_share=1 / 32)
    assert payload_share(quick) == 1.0
    for rounds in ([BEGAN], [BEGAN, quick], [BEGAN, quick, quick, quick, quick]):
        assert bandwidth_Bps(rounds) == pytest.approx(link_bps)
    # Half of its pages did, which took next to nothing of its time.
    half = delta_round(
        2, 100_000, 50_000, known=0.5, duration_s=100_000 * PAGE_BYTES * 33 / 64 / link_bps, next_share=0.3
    )
    assert bandwidth_Bps([half, half]) == pytest.approx(link_bps)
    assert payload_share(half) == pytest.approx(1.0, abs=0.001)


def test_what_compression_left_of_whole_pages_counts_for_those_only() -> None:
    packed = round_of(1, 100_000, 50_000, share=0.4)
    quick = delta_round(2, 50_000, 1_000, known=1.0, duration_s=0.3, next_share=1 / 32)
    assert bandwidth_Bps([packed, quick]) == pytest.approx(100_000 * PAGE_BYTES)


def test_the_next_round_takes_and_sends_differences() -> None:
    link_bps = bandwidth_Bps([BEGAN])
    assert pace_Bps([BEGAN]) == pytest.approx(link_bps / BEGAN.delta_share)
    assert settled_pace_Bps([BEGAN]) == pytest.approx(32 * link_bps)
    quick = delta_round(2, 25_000, 5_000, known=1.0, duration_s=0.1, next_share=1 / 32)
    assert pace_Bps([BEGAN, quick]) == pytest.approx(1 / (1 / 32 / link_bps + 3e-6 / PAGE_BYTES))


def test_no_more_is_promised_of_differences_than_they_did_where_the_link_was_idle() -> None:
    slow = delta_round(2, 25_000, 5_000, known=1.0, duration_s=0.2, next_share=1 / 32)
    small = delta_round(3, 1_000, 500, known=1.0, duration_s=0.02, next_share=1 / 32)
    for rounds in ([BEGAN, slow], [BEGAN, slow, small]):
        assert pace_Bps(rounds) == settled_pace_Bps(rounds) == pytest.approx(25_000 * PAGE_BYTES / 0.2)
    # Most of its time went into pages that went whole: the link was not idle.
    mixed = delta_round(2, 25_000, 5_000, known=0.5, duration_s=0.42, next_share=1 / 32)
    assert pace_Bps([BEGAN, mixed]) > 3 * 25_000 * PAGE_BYTES / 0.42


def test_a_page_that_has_not_changed_is_not_counted_twice() -> None:
    both = dataclasses.replace(BEGAN, delta_share=0.3, share_changed=0.5)
    assert pace_Bps([both]) == pytest.approx(bandwidth_Bps([both]) / 0.3)
    assert pace_Bps([dataclasses.replace(both, share_changed=0.1)]) == pytest.approx(bandwidth_Bps([both]) / 0.1)


def test_in_precopy_differences_shorten_the_stun() -> None:
    quick = delta_round(2, 25_000, 5_000, known=1.0, duration_s=0.1, next_share=1 / 32)
    verdict = judge([BEGAN, quick], limits("precopy"), 10.6)
    assert verdict.then == "switch"
    assert "5,000 pages left, 20.1 ms at 1.02 GB/s, of which differences leave 3%, within the limit" in verdict.reason
    assert not judge([BEGAN, dataclasses.replace(quick, delta_share=1.0)], limits("precopy"), 10.6).stop


def test_hybrid_goes_on_where_pages_that_have_been_sent_once_get_ahead_of_the_guest() -> None:
    assert not judge([BEGAN], limits(), 10.5).stop
    all_over = dataclasses.replace(BEGAN, delta_share=0.99, settled_share=0.9)
    assert "the guest writes faster than the link carries" in judge([all_over], limits(), 10.5).reason
    # What moves after the resume moves whole.
    left = delta_round(2, 25_000, 5_000, known=1.0, duration_s=0.1, next_share=1 / 32)
    assert "5,000 pages left, 164 ms at 125 MB/s" in judge([BEGAN, left], limits(), 10.6).reason


def test_a_round_that_has_made_pages_known_has_gained() -> None:
    """As many pages are left as it began with, but of each a version is there now."""
    same = delta_round(2, 230_000, 225_000, known=0.1, duration_s=6.8, next_share=1 / 32)
    assert not judge([BEGAN, same], limits(), 17.3).stop
    again = dataclasses.replace(same, round=3)
    assert "gained nothing" in judge([BEGAN, same, again], limits(), 24.0).reason
