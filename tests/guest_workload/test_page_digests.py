"""Digests of pages: equal pages, and only those, have equal ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.guest_workload.linux import memfd
from pagefire.guest_workload.page_digests import PAGE_DIGEST_BYTES, differing_pages, page_digests
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from tests.support.memory import fresh

PAGES = 32


@pytest.fixture
def make_memory() -> Iterator[Callable[[], memfd.Mapping]]:
    made: list[memfd.Mapping] = []

    def make() -> memfd.Mapping:
        made.append(fresh(PAGES))
        made[-1].array[:] = np.random.default_rng(1).integers(0, 256, PAGES * PAGE_BYTES, np.uint8)
        return made[-1]

    yield make
    for memory in made:
        memory.close()


def test_a_digest_is_of_the_whole_page(make_memory: Callable[[], memfd.Mapping]) -> None:
    memory = make_memory()
    pages = PageSet.of_pages([0, 1, 17, PAGES - 1])
    expected = [
        hashlib.blake2b(memory.array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES].tobytes(), digest_size=16).digest()
        for page in (0, 1, 17, PAGES - 1)
    ]
    assert page_digests(memory, pages) == b"".join(expected)
    assert page_digests(memory, PageSet.empty()) == b""
    assert PAGE_DIGEST_BYTES == 16


@given(
    st.sets(st.tuples(st.integers(0, PAGES - 1), st.integers(0, PAGE_BYTES - 1))), st.sets(st.integers(0, PAGES - 1))
)
def test_what_differs_is_found(changed: set[tuple[int, int]], asked: set[int]) -> None:
    here, there = fresh(PAGES), fresh(PAGES)
    for page, byte in changed:
        there.array[page * PAGE_BYTES + byte] = 1
    pages = PageSet.of_pages(list(asked))
    differing = differing_pages(there, pages, page_digests(here, pages))
    assert set(differing.page_numbers().tolist()) == {page for page, _ in changed} & asked
    here.close()
    there.close()


def test_pages_that_changed_places_differ(make_memory: Callable[[], memfd.Mapping]) -> None:
    here, there = make_memory(), make_memory()
    there.array[: 2 * PAGE_BYTES] = np.roll(here.array[: 2 * PAGE_BYTES], PAGE_BYTES)
    everything = PageSet.span(0, PAGES)
    assert differing_pages(there, everything, page_digests(here, everything)) == PageSet.span(0, 2)
