"""hotspot: few pages are written most of the time (Zipf, theta 0.99, as in YCSB), scattered over the working set.

The step draws from a table of the distribution's quantiles, in whole numbers: SLOTS slots of equal probability, each a range of
ranks that is then drawn from evenly. Rank r lies at page r * PRIME modulo the working set, which is one to one because the prime is
larger than any working set has pages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.workload import transaction
from pagefire.guest_workload.workloads.page_store import LINE_WORDS, PAGE_LINES, PAGE_WORDS, PageStore, store_line

THETA = 0.99
SLOTS = 4096
_PRIME = np.uint64(2_654_435_761)
_SLOTS = np.uint64(SLOTS)
_LOW_HALF = np.uint64(0xFFFF_FFFF)
_32 = np.uint64(32)


@transaction
def _step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    random = fill.draw(registers)
    pages = np.uint64(parameters[0])
    slot = fill.below(random, _SLOTS)
    first = np.uint64(parameters[1 + slot])
    ranks = np.uint64(parameters[2 + slot]) - first
    rank = first
    if ranks > np.uint64(1):
        rank += ((random & _LOW_HALF) * ranks) >> _32
    page = rank * _PRIME % pages
    store_line(memory, registers, page * PAGE_WORDS + random % PAGE_LINES * LINE_WORDS, random)


class Hotspot(PageStore):
    name = "hotspot"
    description = "one 64-byte store into a page drawn by Zipf's law (theta 0.99), hot pages scattered"
    step = _step

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        """The number of pages, then SLOTS + 1 ranks: slot s covers those from its own entry up to the next."""
        pages = layout.working_set_pages
        shares = np.cumsum(np.arange(1, pages + 1, dtype=np.float64) ** -THETA)
        quantiles = np.arange(SLOTS + 1) / SLOTS * shares[-1]
        ranks = np.minimum(np.searchsorted(shares, quantiles, "right"), pages - 1)
        ranks[-1] = pages
        return np.concatenate(([pages], ranks)).astype(np.int64)
