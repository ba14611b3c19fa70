"""The shell around the policy: what it reads of guest and tracker, what it writes into the control block, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pagefire.guest_workload.control_block import THROTTLE_PERIOD_NS, ControlBlock, now_ns
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.pages import PageSet
from pagefire.protocol.report import MigrationReport, Round
from pagefire.source_host import auto_converge
from pagefire.source_host.auto_converge import LEASE_S, AutoConverge
from pagefire.source_host.link import SentTotals
from pagefire.source_host.options import MigrationOptions

VCPUS, PARTITION_PAGES = 2, 8192
CONFIG = GuestConfig("g0", 64 << 20, 64 << 20, 64 << 20, VCPUS, "random")


@pytest.fixture
def control() -> Iterator[ControlBlock]:
    block = ControlBlock.create(VCPUS)
    yield block
    block.close()


def slowing(
    control: ControlBlock, mode: str = "precopy", *, asked: bool = True
) -> tuple[AutoConverge, MigrationReport]:
    report = MigrationReport()
    guest: Any = SimpleNamespace(control=control, config=CONFIG)
    return AutoConverge(guest, MigrationOptions("", mode=mode, auto_converge=asked), report), report


def throttles(control: ControlBlock) -> list[int]:
    return list(control._throttles.tolist())


def a_round(number: int, pages: int, left: int) -> Round:
    return Round(number, pages, 0, pages * 4096, 1.0, left, 0, float(left), pages * 4096)


@pytest.mark.parametrize("mode", ["hybrid", "postcopy", "stop-and-copy"])
def test_a_mode_that_needs_none_says_so_and_does_nothing(control: ControlBlock, mode: str) -> None:
    one, report = slowing(control, mode)
    report.rounds.append(a_round(1, 1000, 1000))
    one.round_ended(PageSet.span(0, 1000))
    one.lift()
    assert report.throttle is not None
    assert report.throttle.reason.startswith(mode)
    assert (report.throttle.rounds, report.throttle.slept_s, one.words()) == ([], [], "")
    assert control.throttled_until_ns == 0


def test_where_it_was_not_asked_for_nothing_is_reported(control: ControlBlock) -> None:
    one, report = slowing(control, asked=False)
    report.rounds.append(a_round(1, 1000, 1000))
    one.round_ended(PageSet.span(0, 1000))
    assert report.throttle is None
    assert not one.asked.any()
    assert control.throttled_until_ns == 0


def test_the_vcpu_that_wrote_most_is_slowed_for_a_while(control: ControlBlock) -> None:
    one, report = slowing(control)
    report.rounds.append(a_round(1, 1000, 1000))
    # 10 pages of the first vCPU's partition, 1,990 of the second's.
    one.round_ended(PageSet.span(0, 10) | PageSet.span(PARTITION_PAGES, PARTITION_PAGES + 1990))
    first, second = throttles(control)
    assert first == 0
    assert 0 < second < THROTTLE_PERIOD_NS
    assert one.asked.tolist() == pytest.approx([0, second / THROTTLE_PERIOD_NS], abs=1e-6)
    assert 0 < control.throttled_until_ns - now_ns() <= LEASE_S * 1e9
    one.lift()
    assert control.throttled_until_ns == 0
    assert not one.asked.any()


def test_what_the_vcpus_slept_is_reported(control: ControlBlock) -> None:
    control._slept[:] = 5_000_000_000  # an earlier migration's
    one, report = slowing(control)
    one._began_s -= 2.0
    control._slept[:] += np.array([500_000_000, 1_500_000_000], np.uint64)
    report.rounds.append(a_round(1, 1000, 100))
    one.round_ended(PageSet.span(0, 100))
    one.lift()
    assert report.throttle is not None
    assert report.throttle.slept_s == [0.5, 1.5]
    (first,) = report.throttle.rounds
    assert (first.round, first.mean, first.max) == (1, pytest.approx(0.5, abs=0.05), pytest.approx(0.75, abs=0.05))
    assert one.words().startswith("; slowed by auto-converge: the vCPUs slept ")


async def test_a_long_round_is_looked_at_and_the_throttles_are_renewed(
    control: ControlBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_converge, "TICK_S", 0.01)
    one, report = slowing(control)
    report.rounds.append(a_round(1, 10_000, 9000))
    asked = 0

    def written_so_far() -> PageSet:
        nonlocal asked
        asked += 1
        control._commits[:] = 1000 * asked
        return PageSet.span(0, min(2000 * asked, PARTITION_PAGES))

    tracing: Any = SimpleNamespace(tracker=SimpleNamespace(written_so_far=written_so_far), rolling=None)
    begun: Any = SimpleNamespace(number=2, before=(0, 0, 0))
    link: Any = SimpleNamespace(sent_since=lambda begun: SentTotals(*[0] * 8))
    following = asyncio.create_task(one.follow(begun, 9000, link, tracing))
    untils = []
    while asked < 6:
        await asyncio.sleep(0.01)
        untils.append(control.throttled_until_ns)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert untils == sorted(untils)
    assert len(set(untils)) > 3
    first, second = throttles(control)
    assert first > 0
    assert second == 0


@pytest.mark.parametrize("mode", ["precopy", "hybrid"])
async def test_a_rolling_install_has_the_tracker_for_itself(control: ControlBlock, mode: str) -> None:
    one, _ = slowing(control, mode)
    begun: Any = SimpleNamespace(number=1, before=(0, 0, 0))
    nobody: Any = SimpleNamespace(tracker=object(), rolling=object())
    await asyncio.wait_for(one.follow(begun, 1000, nobody, nobody), 10)
