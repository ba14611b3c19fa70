"""What is read as a link: options, and tc's grammar; what follows from it, and what is refused by name."""

from __future__ import annotations

import pytest

from pagefire.protocol.errors import UsageError
from pagefire.scripts.lab.shape import FRAME_BYTES, LinkShape, format_rate, parse_netem, parse_rate, shape_of


def test_options_and_grammar_say_the_same() -> None:
    by_options = shape_of(delay="25ms", jitter="2ms", loss="0.1%", reorder="1%", link_rate="200mbit")
    by_grammar = shape_of(netem="delay 25ms 2ms loss 0.1% reorder 1%", link_rate="200mbit")
    assert by_options == by_grammar
    assert by_options == shape_of(netem="rate 200mbit reorder 1% gap 1 latency 25000 2000us drop random .1")
    assert (by_options.delay_s, by_options.rtt_s, by_options.rate_bps) == (0.025, 0.05, 200_000_000)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ("", LinkShape()),
        ("delay 100ms 10ms 25%", LinkShape(delay_s=0.1, jitter_s=0.01, delay_correlation=0.25)),
        ("delay 100ms 20ms distribution normal", LinkShape(delay_s=0.1, jitter_s=0.02, distribution="normal")),
        ("loss 0.3% 25%", LinkShape(loss=0.003, loss_correlation=0.25)),
        ("loss random 1%", LinkShape(loss=0.01)),
        ("duplicate 1% corrupt 0.1%", LinkShape(duplicate=0.01, corrupt=0.001)),
        (
            "delay 10ms reorder 25% 50% gap 5",
            LinkShape(delay_s=0.01, reorder=0.25, reorder_correlation=0.5, gap=5),
        ),
        ("delay 25ms loss 0.1% limit 100000", LinkShape(delay_s=0.025, loss=0.001, limit_packets=100_000)),
        ("DELAY 1s RATE 1.5GBIT", LinkShape(delay_s=1.0, rate_bps=1_500_000_000)),
    ],
)
def test_tcs_grammar(given: str, shape: LinkShape) -> None:
    assert parse_netem(given) == shape


@pytest.mark.parametrize(
    ("given", "rate_bps"), [("200mbit", 2e8), ("25mbps", 2e8), ("1Gbit", 1e9), ("64kibit", 65_536), ("100000", 1e5)]
)
def test_rates_are_tcs(given: str, rate_bps: float) -> None:
    assert parse_rate(given) == rate_bps


def test_rates_in_words() -> None:
    assert [format_rate(rate) for rate in (1e9, 2e8, 999_999_999.9, 64_000, 10)] == [
        "1 gbit/s", "200 mbit/s", "1 gbit/s", "64 kbit/s", "10 bit/s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("dely 5ms", "'dely' cannot be asked of a link: netem does not know it"),
        ("delay 5ms slot 1ms", "'slot' cannot be asked of a link: netem has it, but it is not offered here"),
        ("loss gemodel 1%", "loss gemodel is not offered here"),
        ("delay 5ms 1ms distribution pareto", "no delay is distributed as 'pareto' here"),
        ("delay", "delay says nothing"),
        ("delay 5min", "'5min' is no time"),
        ("loss 101%", "is more than all"),
        ("limit 5.5", "'5.5' is no limit"),
        ("limit 0", "a limit of 0 packets cannot be had"),
        ("reorder 5%", "reordering without a delay"),
        ("delay 1ms gap 5", "a gap without reordering"),
        ("delay 2m", "'2m' is no time"),
        ("delay 90s", "a delay of 90 s cannot be had"),
        ("rate 5", "a rate of 5 bit/s cannot be had"),
        ("delay 1ms distribution normal", "a distribution without jitter"),
    ],
)
def test_what_is_refused_is_named(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        parse_netem(given)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="--netem says all of a link but its rate"):
        shape_of(netem="delay 5ms", loss="1%")
    with pytest.raises(UsageError, match="two rates are given"):
        shape_of(netem="rate 1mbit", link_rate="1mbit")
    with pytest.raises(UsageError, match="jitter without a delay"):
        shape_of(jitter="5ms")


def test_a_queue_is_twice_bandwidth_times_delay() -> None:
    shape = LinkShape(delay_s=0.025, rate_bps=200_000_000)
    assert shape.queue_bytes == 2 * 25_000_000 * 0.025
    # What is on its way is held as well, and small packets are more of them.
    assert shape.held_packets >= 1.5 * shape.queue_bytes / FRAME_BYTES
    assert LinkShape(rate_bps=10_000_000).queue_bytes == 64 << 10
    assert LinkShape(rate_bps=1_000_000_000).queue_bytes == 1_250_000
    assert LinkShape(delay_s=1).queue_bytes is None
    assert LinkShape(limit_packets=7, rate_bps=10**9).held_packets == 7


def test_what_a_shape_asks_for() -> None:
    assert not LinkShape(seed=5).shapes
    assert LinkShape(rate_bps=10**6).shapes
    assert not LinkShape(rate_bps=10**6, seed=5).impairs
    assert LinkShape(loss=0.1).impairs
    assert LinkShape(seed=9).words() == "nothing is shaped"
    words = LinkShape(delay_s=0.025, loss=0.001, rate_bps=200_000_000).words()
    assert words == "25 ms each way (50 ms RTT), 0.1% loss, 200 mbit/s, a queue of 1.19 MiB"


def test_no_loss_can_be_asked_for() -> None:
    assert shape_of(loss="0%", reorder="0").shapes is False
