"""What the summary says of auto-converge."""

from __future__ import annotations

import dataclasses

from pagefire.protocol.report import Throttle, ThrottledRound
from pagefire.scripts.throttle_words import throttle_words


def test_the_slowest_round_is_named() -> None:
    throttle = Throttle(
        "", [1.5, 2.5], [ThrottledRound(1, 0.0, 0.0), ThrottledRound(2, 0.62, 0.85), ThrottledRound(3, 0.5, 0.9)]
    )
    assert throttle_words(dataclasses.asdict(throttle)) == (
        "the vCPUs slept 2 s each, 2.5 s at most: in round 2 62% of the time, one of them 85%"
    )


def test_a_guest_that_was_not_slowed_says_why() -> None:
    assert throttle_words(dataclasses.asdict(Throttle("hybrid needs none"))) == "not used: hybrid needs none"
    untouched = Throttle("", [0.0, 0.0], [ThrottledRound(1, 0.0, 0.0)])
    assert throttle_words(dataclasses.asdict(untouched)) == "not needed: nothing was taken from the guest"


def test_missing_figures_are_left_out() -> None:
    assert throttle_words({"slept_s": [1.0]}) == "the vCPUs slept 1 s each, 1 s at most"
    assert throttle_words({"slept_s": [1.0], "rounds": [{"mean": None}]}) == "the vCPUs slept 1 s each, 1 s at most"
    assert throttle_words({"reason": None, "slept_s": None, "rounds": None})
