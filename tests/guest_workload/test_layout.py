"""Partitions, and layouts that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.layout import Layout
from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import GRANULE_BYTES, PAGE_BYTES

MIB = 1 << 20
TIB = 1 << 40


@pytest.mark.parametrize("vcpus", [1, 2, 3, 7, 100, 256])
@pytest.mark.parametrize("memory_bytes", [64 * MIB, 1000 * MIB, 6 * TIB])
def test_partitions_are_aligned_and_apart(memory_bytes: int, vcpus: int) -> None:
    layout = Layout(memory_bytes, 64 * MIB, 32 * MIB, vcpus, 1)
    unit = GRANULE_BYTES if memory_bytes // vcpus >= GRANULE_BYTES else PAGE_BYTES
    assert layout.partition_bytes % unit == 0
    assert layout.partition_bytes * vcpus <= memory_bytes
    assert 1 <= layout.working_set_pages <= layout.resident_pages <= layout.partition_bytes // PAGE_BYTES


def test_views_are_of_the_memory_itself() -> None:
    layout = Layout(64 * MIB, 64 * MIB, 8 * MIB, 2, 1)
    memory = np.zeros(64 * MIB, np.uint8)
    layout.working_set(memory, 1)[-1] = 0xFF
    assert memory[32 * MIB + 4 * MIB - 8] == 0xFF
    assert layout.partition(memory, 1).size * 8 == layout.partition_bytes


@pytest.mark.parametrize(
    ("memory_bytes", "resident_bytes", "working_set_bytes", "vcpus", "seed", "do"),
    [
        (64 * MIB, 64 * MIB, MIB, 0, 1, "--vcpus"),
        (64 * MIB, 64 * MIB, MIB, 257, 1, "--vcpus"),
        (32 * MIB, MIB, MIB, 1, 1, "--memory"),
        (64 * MIB + 1, MIB, MIB, 1, 1, "--memory"),
        (64 * MIB, 65 * MIB, MIB, 1, 1, "--resident"),
        (64 * MIB, MIB, 2 * MIB, 1, 1, "--working-set"),
        (64 * MIB, MIB, 64 * 1024, 17, 1, "--working-set"),
        (64 * MIB, MIB, 0, 1, 1, "--working-set"),
        (64 * MIB, MIB, MIB, 1, -1, "--seed"),
        (64 * MIB, MIB, MIB, 1, 1 << 64, "--seed"),
    ],
)
def test_the_impossible_is_refused_with_advice(
    memory_bytes: int, resident_bytes: int, working_set_bytes: int, vcpus: int, seed: int, do: str
) -> None:
    with pytest.raises(UsageError, match=do):
        Layout(memory_bytes, resident_bytes, working_set_bytes, vcpus, seed)


def test_a_config_survives_its_journey() -> None:
    config = GuestConfig("g", 64 * MIB, MIB, MIB, 4, "random", rate=1000.0, cpus=(0, 1), user_workloads=("a:B",))
    assert GuestConfig.of_message(config.as_message() | {"cpus": [0, 1], "user_workloads": ["a:B"]}) == config
    with pytest.raises(TypeError, match="colour"):
        GuestConfig.of_message(config.as_message() | {"colour": "red"})
    assert config.interval_ns(10) == 4_000_000


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--rate"):
        GuestConfig("g", 64 * MIB, MIB, MIB, 4, "random", rate=0.0)


@pytest.mark.parametrize(("memory_bytes", "count"), [(64 * MIB, 3000), (6 * TIB, 20_000), (64 * MIB, 0)])
def test_scattered_pages_are_distinct_beside_the_resident_ones_and_everywhere(memory_bytes: int, count: int) -> None:
    layout = Layout(memory_bytes, 32 * MIB, 16 * MIB, 3, 7)
    pages = layout.scattered_pages(count)
    assert pages.size == np.unique(pages).size == count
    assert pages.tolist() == sorted(pages.tolist()) == layout.scattered_pages(count).tolist()
    total, partition = memory_bytes // PAGE_BYTES, layout.partition_bytes // PAGE_BYTES
    resident = {vcpu * partition + page for vcpu in range(3) for page in range(layout.resident_pages)}
    assert resident.isdisjoint(pages.tolist())
    assert not count or (0 <= pages[0] < total // 2 < pages[-1] < total)


def test_fewer_scattered_pages_than_none_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 scattered pages"):
        Layout(64 * MIB, 32 * MIB, 16 * MIB, 1, 1).scattered_pages(-1)


def test_more_scattered_pages_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(UsageError, match=r"5000 scattered pages.*8192 of its pages are not resident.*--scattered"):
        Layout(64 * MIB, 32 * MIB, 16 * MIB, 1, 1).scattered_pages(5000)
