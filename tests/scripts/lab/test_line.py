"""The emulator's line in virtual time: when packets leave, which do, and in which order."""

from __future__ import annotations

import statistics

import pytest

from pagefire.scripts.lab.line import HEADER_BYTES, VirtualLine
from pagefire.scripts.lab.shape import LinkShape, parse_netem

MS, US = 1_000_000, 1_000


def packet(number: int, size_bytes: int = 100) -> bytes:
    return number.to_bytes(4, "big").ljust(size_bytes, b"\0")


def number_of(came: bytes) -> int:
    return int.from_bytes(came[:4], "big")


def sent_through(line: VirtualLine, count: int, gap_ns: int, size_bytes: int = 100) -> list[tuple[int, int]]:
    """Send packets so far apart; gives when each left, and its number, in the order in which they did."""
    left, now_ns = [], 0
    for number in range(count + 1):
        until_ns = number * gap_ns if number < count else 1 << 61
        while (next_ns := line.next_ns()) is not None and next_ns <= until_ns:
            left += [(next_ns, number_of(one)) for one in line.leave(next_ns)]
        if number < count:
            now_ns = number * gap_ns
            line.arrive(now_ns, packet(number, size_bytes))
    return left


def test_a_delay_moves_every_packet_by_the_same_time() -> None:
    line = VirtualLine(LinkShape(delay_s=0.025))
    assert sent_through(line, 100, 10 * US) == [(25 * MS + number * 10 * US, number) for number in range(100)]
    assert line.counters["late_ns"] == 0
    assert line.next_ns() is None


def test_packets_of_one_time_leave_in_the_order_in_which_they_came() -> None:
    line = VirtualLine(LinkShape(delay_s=0.001))
    for number in range(500):
        line.arrive(7, packet(number))
    assert [number_of(one) for one in line.leave(7 + MS)] == list(range(500))


def test_a_rate_spaces_packets_by_their_frames() -> None:
    rate_bps, size_bytes = 100_000_000, 1500
    line = VirtualLine(LinkShape(rate_bps=rate_bps, delay_s=0.01))
    left = [when for when, _ in sent_through(line, 100, 0, size_bytes)]
    spacing_ns = (size_bytes + HEADER_BYTES) * 8 * 1_000_000_000 // rate_bps
    assert left == [10 * MS + spacing_ns * (number + 1) for number in range(len(left))]
    # Twice bandwidth x delay wait, and one is being sent.
    assert len(left) == int(250_000 // (size_bytes + HEADER_BYTES)) + 2 or line.counters["queue_full"] == 0
    # A link that was idle has nothing saved up.
    line.arrive(1000 * MS, packet(1, size_bytes))
    assert line.next_ns() == 1010 * MS + spacing_ns


def test_a_full_queue_drops_the_last_that_came() -> None:
    shape = LinkShape(rate_bps=10_000_000)
    line = VirtualLine(shape)
    frame_bytes = 1000 + HEADER_BYTES
    left = sent_through(line, 500, 0, 1000)
    assert [number for _, number in left] == list(range(len(left)))
    assert line.counters["queue_full"] == 500 - len(left)
    assert shape.queue_bytes is not None
    assert abs(len(left) * frame_bytes - shape.queue_bytes) <= 2 * frame_bytes


def test_a_limit_counts_what_is_on_its_way() -> None:
    line = VirtualLine(LinkShape(delay_s=1, limit_packets=10))
    assert [number for _, number in sent_through(line, 25, 1 * MS)] == list(range(10))
    assert line.counters["queue_full"] == 15
    # There is room again.
    line.arrive(5000 * MS, packet(99))
    assert [number_of(one) for one in line.leave(6000 * MS)] == [99]


def test_loss_is_the_share_that_was_asked_and_the_same_each_time() -> None:
    lost = []
    for seed in (1, 1, 2):
        line = VirtualLine(LinkShape(loss=0.01, seed=seed))
        came = {number for _, number in sent_through(line, 20_000, 1 * US)}
        lost.append(set(range(20_000)) - came)
        assert line.counters["lost"] == len(lost[-1])
        assert 150 < len(lost[-1]) < 250
    assert lost[0] == lost[1]
    assert lost[0] != lost[2]


def test_losses_that_are_correlated_come_together() -> None:
    def pairs(line: VirtualLine) -> tuple[int, int]:
        came = {number for _, number in sent_through(line, 20_000, 1 * US)}
        lost = set(range(20_000)) - came
        return len(lost), len({number + 1 for number in lost} & lost)

    # By themselves, a packet is as likely to be lost behind a lost one as behind any other.
    lost, together = pairs(VirtualLine(parse_netem("loss 30%")))
    assert together / lost == pytest.approx(lost / 20_000, rel=0.1)
    lost, together = pairs(VirtualLine(parse_netem("loss 30% 50%")))
    assert together / lost > 2 * lost / 20_000


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_jitter_varies_the_delay_and_lets_packets_overtake(distribution: str) -> None:
    line = VirtualLine(LinkShape(delay_s=0.05, jitter_s=0.01, distribution=distribution))
    left = sent_through(line, 20_000, 100 * US)
    delays_ms = [(when - number * 100 * US) / MS for when, number in left]
    assert statistics.mean(delays_ms) == pytest.approx(50, rel=0.01)
    expected = 10 if distribution == "normal" else 10 / 3**0.5
    assert statistics.pstdev(delays_ms) == pytest.approx(expected, rel=0.03)
    assert [when for when, _ in left] == sorted(when for when, _ in left)
    assert [number for _, number in left] != sorted(number for _, number in left)
    if distribution == "uniform":
        assert max(delays_ms) <= 60
        assert min(delays_ms) >= 40


def test_who_is_reordered_is_not_delayed() -> None:
    line = VirtualLine(parse_netem("delay 10ms reorder 25%"))
    left = sent_through(line, 20_000, 1 * MS)
    early = [number for when, number in left if when == number * MS]
    assert len(early) == line.counters["reordered"]
    assert len(early) / 20_000 == pytest.approx(0.25, rel=0.05)
    assert {when - number * MS for when, number in left} == {0, 10 * MS}


def test_a_gap_keeps_some_from_overtaking() -> None:
    line = VirtualLine(parse_netem("delay 10ms reorder 100% gap 5"))
    left = sent_through(line, 100, 1 * MS)
    assert sorted(number for when, number in left if when == number * MS) == list(range(4, 100, 5))


def test_duplicates_come_twice() -> None:
    line = VirtualLine(parse_netem("duplicate 10%"))
    numbers = [number for _, number in sent_through(line, 10_000, 1 * US)]
    twice = len(numbers) - 10_000
    assert len(set(numbers)) == 10_000
    assert twice == line.counters["duplicated"]
    assert twice == pytest.approx(1000, rel=0.15)


def test_corruption_changes_one_bit_behind_the_header() -> None:
    line = VirtualLine(parse_netem("corrupt 100%"))
    whole = bytes(range(200))
    for _ in range(100):
        line.arrive(0, whole)
    for came in line.leave(0):
        changed = [index for index in range(200) if came[index] != whole[index]]
        assert len(changed) == 1
        assert changed[0] >= 20
        assert (came[changed[0]] ^ whole[changed[0]]).bit_count() == 1


def test_memory_is_used_again() -> None:
    """What was held and has left makes room: a hundred times what may be held goes through."""
    line = VirtualLine(LinkShape(delay_s=0.001, limit_packets=50))
    for round_ in range(100):
        for number in range(50):
            line.arrive(round_ * 10 * MS, packet(number))
        assert [number_of(one) for one in line.leave(round_ * 10 * MS + 1 * MS)] == list(range(50))
    assert line.counters["queue_full"] == 0
    assert line.counters["left"] == 5000


def test_being_late_is_counted() -> None:
    line = VirtualLine(LinkShape(delay_s=0.001))
    line.arrive(0, packet(1))
    line.arrive(0, packet(2))
    line.leave(1 * MS + 300)
    assert (line.counters["late_ns"], line.counters["latest_ns"]) == (600, 300)
