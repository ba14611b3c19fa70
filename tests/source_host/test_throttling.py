"""Who is slowed, by how much and for how long: single decisions, what holds for all of them, and guests that have to converge."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.report import Round
from pagefire.source_host.convergence import Limits, judge
from pagefire.source_host.throttling import (
    AIM,
    FASTER,
    LEAST_RUNNING,
    LOW,
    SLOWER,
    Course,
    Floats,
    Reading,
    after,
    during,
    towards_end,
    waterline,
)

LINK_PAGES_PER_S = 1000.0
TICK_S = 0.1


def floats(*each: float) -> Floats:
    return np.array(each, np.float64)


def course(*readings: tuple[float, list[float]], pages: int = 1000) -> Course:
    """Make a round of `pages` at 1,000 pages/s from (seconds, pages written by each vCPU); each page took one commit."""
    taken = [Reading(at_s, floats(*written), floats(*written)) for at_s, written in readings]
    return Course(pages, LINK_PAGES_PER_S, 50.0, taken)


def rewriting(pages_written: float, *at_s: float, pages: int = 10_000) -> Course:
    """Make a round in which a vCPU has written all its pages before the first look, and goes on writing them, 20,000 a second."""
    return Course(
        pages, LINK_PAGES_PER_S, 50.0, [Reading(one, floats(pages_written), floats(20_000 * one)) for one in at_s]
    )


# -- single decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "allowed", "level"),
    [
        ([10, 10], 30, math.inf),
        ([10, 20], 30, math.inf),
        ([10, 100], 30, 20),
        ([100, 100], 30, 15),
        ([1, 2, 300, 400], 103, 50),
        ([0, 0, 50], 10, 10),
        ([7], 0, 0),
    ],
)
def test_those_that_write_most_are_kept_to_one_level(rates: list[float], allowed: float, level: float) -> None:
    assert waterline(floats(*rates), allowed) == level


@pytest.mark.parametrize(
    ("what", "readings", "running", "wanted"),
    [
        ("half of what the link carries", [(0.1, [50]), (0.2, [100])], [1], [1]),
        ("as much as the link carries", [(0.1, [100]), (0.2, [200])], [1], [0.6]),
        ("four times as much: by half at most", [(0.1, [400]), (0.2, [800])], [1], [SLOWER]),
        ("one reading shows no trend", [(0.1, [400])], [1], [1]),
        ("but it can be enough", [(0.1, [8000])], [1], [SLOWER]),
        ("too much at first, slow enough now", [(0.1, [7000]), (0.2, [7040])], [0.2], [0.2]),
        ("only who writes most", [(0.1, [10, 150]), (0.2, [20, 300])], [1, 1], [1, SLOWER]),
        ("both, down to one level", [(0.1, [55, 50]), (0.2, [110, 100])], [1, 1], [300 / 550, 300 / 500]),
        ("slowed too much", [(0.1, [10]), (0.2, [20])], [0.1], [0.1 * FASTER]),
        ("slowed too much, and up to its full speed", [(0.1, [10]), (0.2, [20])], [0.9], [1]),
        ("nothing is written any more", [(0.1, [0]), (0.2, [0])], [0.4], [0.4 * FASTER]),
    ],
)  # fmt: skip
def test_during_a_round(
    what: str, readings: list[tuple[float, list[float]]], running: list[float], wanted: list[float]
) -> None:
    assert during(course(*readings, pages=10_000), floats(*running)) == pytest.approx(floats(*wanted)), what


def test_pages_that_are_always_written_do_no_harm_in_a_long_round() -> None:
    assert during(rewriting(3000, 0.1, 0.2), floats(1.0)) == [1.0]
    # But what was taken for their sake, in shorter rounds, is not given back either: the next one begins with all of them.
    assert during(rewriting(3000, 0.1, 0.2), floats(0.5)) == [0.5]
    assert during(rewriting(30, 0.1, 0.2), floats(0.5)) == [0.5 * FASTER]


@pytest.mark.parametrize("decide", [during, towards_end])
def test_a_round_that_is_lost_prepares_for_the_next_one_at_its_end(decide: Callable[[Course, Floats], Floats]) -> None:
    assert decide(rewriting(9000, 0.1, 5.0), floats(1.0)) == [1.0]
    assert decide(rewriting(9000, 0.1, 9.0), floats(1.0))[0] == pytest.approx(AIM)
    assert after(rewriting(9000, 0.1, 10.0), floats(1.0))[0] == pytest.approx(AIM)


@pytest.mark.parametrize(
    ("what", "readings", "running", "wanted"),
    [
        ("half of it left", [(1.0, [500])], [1], [1]),
        ("as many as were sent", [(1.0, [1000])], [1], [0.6]),
        ("four times as many", [(1.0, [4000])], [1], [SLOWER]),
        ("few enough for the stun", [(1.0, [45])], [1], [1]),
        ("slowed enough meanwhile", [(0.1, [700]), (1.0, [1250])], [0.1], [0.1]),
        ("only who writes most", [(1.0, [50, 950])], [1, 1], [1, 550 / 950]),
        ("slowed too much", [(1.0, [200])], [0.1], [0.1 * FASTER]),
        ("nothing was written", [(1.0, [0])], [0.4], [0.4 * FASTER]),
    ],
)  # fmt: skip
def test_after_a_round(
    what: str, readings: list[tuple[float, list[float]]], running: list[float], wanted: list[float]
) -> None:
    assert after(course(*readings), floats(*running)) == pytest.approx(floats(*wanted)), what


def test_a_vcpu_within_one_long_transaction_is_judged_by_its_pages() -> None:
    readings = [Reading(1.0, floats(900.0), floats(0.0))]
    assert after(Course(1000, LINK_PAGES_PER_S, 50.0, readings), floats(1.0))[0] < 1.0


def test_what_the_next_round_sends_as_differences_is_no_reason_to_slow_anybody() -> None:
    """All that was sent has been written again; later rounds take a twentieth of the time for each page."""
    readings = [(0.5, [500.0]), (1.0, [1000.0])]
    full = course(*readings)
    assert after(full, floats(1.0))[0] < 1.0
    assert during(full, floats(1.0))[0] < 1.0
    cheap = dataclasses.replace(full, later_cost=0.05)
    assert after(cheap, floats(1.0))[0] == during(cheap, floats(1.0))[0] == 1.0


def test_a_guest_that_outruns_differences_is_slowed_by_what_they_cost() -> None:
    """It writes 1,000 pages a second, and rounds get through 1,250: a fifth less of their time than AIM wants."""
    readings = [(0.5, [500.0]), (1.0, [1000.0])]
    some = dataclasses.replace(course(*readings), later_cost=0.8)
    assert after(some, floats(1.0))[0] == pytest.approx(AIM / 0.8)


# -- what holds for all ------------------------------------------------------------------------------------------------------


@st.composite
def courses(draw: st.DrawFn) -> tuple[Course, Floats]:
    vcpus = draw(st.integers(1, 5))
    each = st.lists(st.integers(0, 1_000_000), min_size=vcpus, max_size=vcpus)
    at_s, written, commits, readings = 0.0, np.zeros(vcpus), np.zeros(vcpus), []
    for _ in range(draw(st.integers(1, 5))):
        at_s += draw(st.floats(1e-4, 100))
        written, commits = written + draw(each), commits + draw(each)
        readings.append(Reading(at_s, written, commits))
    running = draw(st.lists(st.floats(LEAST_RUNNING, 1), min_size=vcpus, max_size=vcpus))
    pages, link = draw(st.integers(0, 1 << 30)), draw(st.floats(1, 1e7))
    later_cost = draw(st.just(1.0) | st.floats(1e-3, 1))
    return Course(pages, link, draw(st.floats(0, 1e5)), readings, later_cost), floats(*running)


@given(courses(), st.booleans())
def test_a_step_is_small_and_goes_one_way(given_: tuple[Course, Floats], ended: bool) -> None:
    round_, running = given_
    decided = (after if ended else during)(round_, running)
    assert (decided >= LEAST_RUNNING).all()
    assert (decided <= 1).all()
    assert (decided >= SLOWER * running * 0.999).all()
    assert (decided <= FASTER * running * 1.001).all()
    assert (decided <= running).all() or (decided >= running).all()


@given(courses(), st.booleans())
def test_a_guest_that_writes_little_is_never_slowed(given_: tuple[Course, Floats], ended: bool) -> None:
    round_, running = given_
    each_per_s = LOW * round_.link_pages_per_s / running.size * np.ones_like(running)
    few = [Reading(one.elapsed_s, one.elapsed_s * each_per_s, one.elapsed_s * each_per_s) for one in round_.readings]
    pages = int(few[-1].elapsed_s * round_.link_pages_per_s) + 2
    light = Course(pages, round_.link_pages_per_s, 0.0, few)
    assert ((after if ended else during)(light, running) >= running * 0.999).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.floats(0, 1e6))
def test_the_level_shares_out_what_is_allowed(rates: list[float], allowed: float) -> None:
    level = waterline(floats(*rates), allowed)
    assert np.minimum(floats(*rates), level).sum() == pytest.approx(min(allowed, sum(rates)), abs=1e-6)


# -- guests that have to converge --------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """A vCPU that stores so many pages a second at full speed, in order or at random, into its working set."""

    stores_per_s: float
    working_set_pages: float
    in_order: bool = True
    written: float = 0.0
    commits: float = 0.0

    def run(self, awake_s: float) -> None:
        stores = self.stores_per_s * awake_s
        self.commits += stores
        left = self.working_set_pages - self.written
        self.written += min(stores, left) if self.in_order else left * -math.expm1(-stores / self.working_set_pages)


@dataclass
class Precopy:
    """A pre-copy over a link, as the script of a migration goes through it. The guest holds `memory_pages` at the beginning."""

    writers: list[Writer]
    memory_pages: float
    link_pages_per_s: float = 10_000.0
    round_trip_s: float = 0.002
    auto_converge: bool = True
    rounds: list[Round] = field(default_factory=list)
    history: list[Floats] = field(default_factory=list)

    def run(self) -> str:
        """Give how it ended: switch or cancel."""
        limits = Limits("precopy", 0.05, 30, math.inf, "cancel")
        running, pages, elapsed_s = np.ones(len(self.writers)), self.memory_pages, 0.0
        while True:
            duration_s = pages / self.link_pages_per_s + self.round_trip_s
            running, readings = self._during(int(pages), duration_s, running)
            left = sum(writer.written for writer in self.writers)
            wire_bytes = int(pages) * PAGE_BYTES
            self.rounds.append(
                Round(
                    len(self.rounds) + 1,
                    int(pages),
                    0,
                    wire_bytes,
                    duration_s,
                    int(left),
                    0,
                    left / duration_s,
                    wire_bytes,
                )
            )
            elapsed_s += duration_s
            verdict = judge(self.rounds, limits, elapsed_s)
            if verdict.stop:
                return verdict.then
            if self.auto_converge:
                running = after(self._course(int(pages), readings), running)
            self.history.append(running)
            pages = left
            for writer in self.writers:
                writer.written = writer.commits = 0.0

    def _during(self, pages: int, duration_s: float, running: Floats) -> tuple[Floats, list[Reading]]:
        readings: list[Reading] = []
        at_s = 0.0
        while at_s < duration_s:
            step_s = min(TICK_S, duration_s - at_s)
            at_s += step_s
            for writer, share in zip(self.writers, running, strict=True):
                writer.run(step_s * share)
            readings.append(
                Reading(
                    at_s,
                    floats(*(writer.written for writer in self.writers)),
                    floats(*(writer.commits for writer in self.writers)),
                )
            )
            if self.auto_converge and at_s < duration_s:
                decide = during if self.rounds else towards_end
                running = decide(self._course(pages, readings), running)
        return running, readings

    def _course(self, pages: int, readings: list[Reading]) -> Course:
        return Course(pages, self.link_pages_per_s, 0.05 * self.link_pages_per_s, readings)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("times_the_link", [1.1, 2, 5, 30, 200])
@pytest.mark.parametrize("share_written", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("memory_pages", [20_000, 500_000])
def test_an_adversary_converges_and_is_not_slowed_more_than_needed(
    memory_pages: int, share_written: float, times_the_link: float, in_order: bool
) -> None:
    rate = times_the_link * 10_000

    def precopy(auto_converge: bool) -> Precopy:
        writers = [Writer(rate / 2, memory_pages * share_written / 2, in_order) for _ in range(2)]
        return Precopy(writers, memory_pages, auto_converge=auto_converge)

    alone, slowed = precopy(False), precopy(True)
    without = alone.run()
    assert slowed.run() == "switch"
    if without == "switch" and not slowed.history:
        return
    if without == "cancel":
        assert slowed.history[-1].max() < 1
    # Never less than what was aimed at, of what the link carries, is left to the guest.
    assert min(float(running.mean()) for running in slowed.history) * rate > 0.95 * AIM * 10_000
    assert len(slowed.rounds) <= 22
    assert sum(one.duration_s for one in slowed.rounds) < 4.4 * slowed.rounds[0].duration_s + 2.0


def test_only_the_adversary_among_others_is_slowed() -> None:
    writers = [Writer(500, 5000, False), Writer(100_000, 50_000), Writer(50, 20, False), Writer(1000, 800)]
    precopy = Precopy(writers, 200_000)
    assert precopy.run() == "switch"
    least = np.min(precopy.history, axis=0)
    assert least[1] < 0.1
    assert least[[0, 2, 3]].tolist() == [1, 1, 1]


def test_a_guest_that_converges_by_itself_is_left_alone() -> None:
    for rate in (100, 2000, 5500):
        precopy = Precopy([Writer(rate, 100_000), Writer(10, 5, False)], 200_000)
        assert precopy.run() == "switch"
        assert all((running == 1).all() for running in precopy.history), rate


def test_what_was_taken_is_given_back_when_the_guest_calms_down() -> None:
    loud = Precopy([Writer(100_000, 400_000)], 500_000)
    running = floats(0.05)
    loud.writers[0].stores_per_s = 4000  # an eighth of what slowed it so far
    for _ in range(40):
        running, readings = loud._during(100_000, 10.0, running)
        loud.rounds.append(Round(1, 1, 0, 1, 1.0, 1, 0, 1.0, 1))
        running = after(loud._course(100_000, readings), running)
        loud.writers[0].written = loud.writers[0].commits = 0.0
    assert running[0] == pytest.approx(1.0)
