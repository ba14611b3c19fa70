"""A link against what was asked of it: Wilson's interval, and complaints with both figures."""

from __future__ import annotations

import pytest

from pagefire.protocol.link_report import LinkMeasured
from pagefire.scripts.lab.judging import complaints, expected_loss, wilson
from pagefire.scripts.lab.line import VirtualLine
from pagefire.scripts.lab.measurement import loss_plan
from pagefire.scripts.lab.shape import LinkShape, parse_netem


@pytest.mark.parametrize(
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29; and all of 20, 0 of 20's mirror.
    ("found", "of", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilsons_interval_is_the_published_one(found: int, of: int, low: float, high: float) -> None:
    assert wilson(found, of) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


ASKED = LinkShape(delay_s=0.025, loss=0.001, rate_bps=200_000_000)


def measured(rtt_s: float = 0.0502, rate_bps: float = 199e6, lost: int = 31, of: int = 30_000) -> LinkMeasured:
    return LinkMeasured(rtt_s, rate_bps, lost / of, list(wilson(lost, of)), of, 3, 150e6)


def test_a_link_that_is_as_asked_has_no_complaints() -> None:
    assert complaints(ASKED, measured()) == []
    assert complaints(LinkShape(), measured(lost=0)) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (measured(rtt_s=0.0556), "a round trip of 50 ms was asked for, 55.6 ms was measured"),
        (measured(rtt_s=0.044), "44 ms was measured"),
        (measured(rate_bps=178e6), "a rate of 200 mbit/s was asked for, 178 mbit/s was measured by UDP"),
        (measured(rate_bps=222e6), "222 mbit/s was measured"),
        (measured(lost=60), "a loss of 0.1000% was asked for, 0.2000% was measured of 30,000 packets (95%: 0.15"),
        (measured(lost=0), "0.0000% was measured"),
    ],
)
def test_a_link_that_is_not_is_told_by_both_figures(found: LinkMeasured, words: str) -> None:
    (complaint,) = complaints(ASKED, found)
    assert words in complaint


def test_a_loss_that_nobody_asked_for_is_a_complaint() -> None:
    (complaint,) = complaints(LinkShape(delay_s=0.025), measured(lost=5))
    assert "a loss of 0.0000% was asked for" in complaint


def test_a_silent_link_is_a_complaint() -> None:
    silent = LinkMeasured(loss=1.0, loss_interval=[0.99, 1.0], loss_packets=4000, loss_tries=3, rate_tries=3)
    assert len(complaints(ASKED, silent)) == 3
    assert "nothing came through, 3 times in turn" in complaints(ASKED, silent)[1]


@pytest.mark.parametrize(
    "line", ["loss 3%", "corrupt 5%", "loss 4% duplicate 50%", "loss 10% duplicate 30% corrupt 20%"]
)
def test_the_expected_loss_is_what_a_line_does(line: str) -> None:
    """A packet that comes once more or less whole is not lost."""
    shape, sent = parse_netem(line), 8_000
    virtual = VirtualLine(shape)
    whole = set()
    for number in range(sent):
        virtual.arrive(0, packet := number.to_bytes(4, "big") * 10)
        if packet in virtual.leave(0):
            whole.add(number)
    expected = expected_loss(shape)
    assert expected is not None
    low, high = wilson(sent - len(whole), sent)
    # Four times as wide: a seed is one draw of many.
    middle, half = (low + high) / 2, 2 * (high - low)
    assert middle - half <= expected <= middle + half


def test_correlated_losses_are_not_judged() -> None:
    assert expected_loss(parse_netem("loss 1% 25%")) is None
    assert complaints(parse_netem("loss 1% 25%"), measured(lost=0)) == []


def test_a_small_loss_takes_many_packets_and_a_slow_link_few() -> None:
    packets, per_s = loss_plan(ASKED)
    assert packets == 30_000
    assert packets / per_s <= 4
    assert loss_plan(LinkShape(loss=0.1))[0] == 4000
    packets, per_s = loss_plan(LinkShape(loss=0.0001, rate_bps=1_000_000))
    assert packets / per_s <= 8.1
    # Packets on their way fit into the limit.
    assert loss_plan(LinkShape(delay_s=0.1, limit_packets=100))[1] * 0.1 <= 50
