"""A sample of a guest's pages: each once, from all over, and no longer than it may last."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.pages import GRANULE_PAGES, PageSet
from pagefire.source_host.sampling import Sample

SETS = st.sets(st.integers(0, 6 * GRANULE_PAGES), max_size=80).map(lambda chosen: PageSet.of_pages(list(chosen)))


@given(SETS, st.integers(1, 3))
def test_with_time_enough_everything_is_given_out_once(pages: PageSet, streams: int) -> None:
    sample = Sample(pages, streams, 60.0)
    chunks = [chunk for _ in range(streams) for chunk in sample.chunks()]
    assert sum(chunk.pages for chunk in chunks) == pages.pages
    assert sample.sent == pages


def test_a_part_of_it_lies_evenly_over_all() -> None:
    sample = Sample(PageSet.span(0, 100 * GRANULE_PAGES), 1, 60.0, 0.1)
    assert len(list(sample.chunks())) >= 1
    granules = sample.sent.steps(GRANULE_PAGES).starts // GRANULE_PAGES
    assert 10 <= granules.size <= 20
    # No two gaps between neighbours differ much: the ends count as well.
    gaps = np.diff(np.concatenate(([0], granules, [100])))
    assert gaps.max() <= 3 * 100 / granules.size


def test_when_its_time_is_over_it_ends() -> None:
    assert list(Sample(PageSet.span(0, 1000), 1, 0.0).chunks()) == []
