"""The digest sees content and place, and nothing of how zeros are stored."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from pagefire.guest_workload.digest import memory_digest
from pagefire.guest_workload.linux import memfd
from pagefire.protocol.pages import PAGE_BYTES

SIZE_BYTES = 64 << 20


@pytest.fixture
def pair() -> Iterator[tuple[memfd.Mapping, memfd.Mapping]]:
    mappings = [memfd.Mapping(memfd.create("digest", SIZE_BYTES)) for _ in range(2)]
    yield mappings[0], mappings[1]
    for mapping in mappings:
        mapping.close()


def test_zero_pages_and_holes_are_equal(pair: tuple[memfd.Mapping, memfd.Mapping]) -> None:
    one, other = pair
    assert memory_digest(one) == memory_digest(other)
    for page in (3, 4, 5000, 9000):
        one.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = page % 251
        other.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = page % 251
    one.array[: 3 * PAGE_BYTES] = 0  # allocates what the other has as holes
    one.array[4095 * PAGE_BYTES : 4100 * PAGE_BYTES] = 0
    assert memfd.data_extents(one.fd) != memfd.data_extents(other.fd)
    assert memory_digest(one) == memory_digest(other)


def test_content_and_place_matter(pair: tuple[memfd.Mapping, memfd.Mapping]) -> None:
    one, other = pair
    seen = {memory_digest(one)}
    for page in (0, 1, 4095, 4096, 16383):
        one.array[page * PAGE_BYTES] = 1
        seen.add(memory_digest(one))
        other.array[page * PAGE_BYTES + 1] = 1
        seen.add(memory_digest(other))
    assert len(seen) == 11


def test_a_digest_allocates_nothing(pair: tuple[memfd.Mapping, memfd.Mapping]) -> None:
    one, _ = pair
    one.array[np.arange(0, SIZE_BYTES, 37 * PAGE_BYTES)] = 7
    blocks = os.fstat(one.fd).st_blocks
    memory_digest(one)
    assert os.fstat(one.fd).st_blocks == blocks
