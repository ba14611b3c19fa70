"""The cases that `pagefire bitmap` measures: a guest, a number of pages left, and how they lie in it.

The set of a case is drawn from a seed and the case alone, so it is the same in a table and by itself, and holds exactly the pages
asked for. Nothing here is timed: drawing ten million pages takes longer than coding them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pagefire.guest_workload.layout import MAX_MEMORY_BYTES
from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from pagefire.protocol.units import format_count, format_size, parse_size

#: Pages in a cluster's granule, on average.
CLUSTER_PAGES = 64
#: 38 GiB of pages: no stun leaves more, and the arrays of one case have to fit into memory side by side.
MAX_PAGES = 10_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """A guest of whole pages, of which `pages` are left, scattered in one of the ways of `SCATTERS`."""

    guest_bytes: int
    pages: int
    scatter: str

    @property
    def total_pages(self) -> int:
        return self.guest_bytes // PAGE_BYTES

    def __str__(self) -> str:
        return f"{format_count(self.pages)} pages of {format_size(self.guest_bytes)}, {self.scatter}"


def parse_cases(guests: str, pages: str, scatters: str) -> list[Case]:
    """Combine three lists, separated by commas: sizes of guests, numbers of pages, names of scatters; each case once.

    Combinations with more pages than the guest has are left out. Raises UsageError when none is left, and for what cannot be.
    """
    sizes = [_guest_bytes(given) for given in guests.split(",")]
    counts = [_page_count(given) for given in pages.split(",")]
    names = [_scatter(given) for given in scatters.split(",")]
    cases = dict.fromkeys(Case(size, count, name) for size in sizes for name in names for count in counts)
    possible = [case for case in cases if case.pages <= case.total_pages]
    if not possible:
        raise UsageError(
            f"{format_count(min(counts))} pages cannot be left of {format_size(max(sizes))}",
            f"a guest of that size has {format_count(max(sizes) // PAGE_BYTES)}",
            "give fewer --pages or a larger --guest",
        )
    return possible


def draw_set(case: Case, seed: int) -> PageSet:
    """Draw the pages that are left; `seed` is 0 or above."""
    rng = np.random.default_rng((seed, case.guest_bytes, case.pages, tuple(SCATTERS).index(case.scatter)))
    return SCATTERS[case.scatter](rng, case.pages, case.total_pages)


def _one_run(rng: np.random.Generator, pages: int, total_pages: int) -> PageSet:
    """Take pages in one run, which begins anywhere that leaves room for it."""
    start = int(rng.integers(total_pages - pages + 1))
    return PageSet.span(start, start + pages)


def _clustered(rng: np.random.Generator, pages: int, total_pages: int) -> PageSet:
    """Choose a granule (2 MiB) for every 64 pages, and the pages among the 512 of each of these granules, all at random.

    So 64 are in a granule on average, mostly apart from one another. Where the guest has too few whole granules for that, the pages
    lie anywhere in it.
    """
    granules = -(-pages // CLUSTER_PAGES)
    if granules > total_pages // GRANULE_PAGES:
        return _uniform(rng, pages, total_pages)
    chosen = _uniform(rng, granules, total_pages // GRANULE_PAGES).page_numbers()
    within = _uniform(rng, pages, granules * GRANULE_PAGES).page_numbers()
    return PageSet.of_pages(chosen[within // GRANULE_PAGES] * GRANULE_PAGES + within % GRANULE_PAGES)


def _uniform(rng: np.random.Generator, pages: int, total_pages: int) -> PageSet:
    """Take any set of so many pages, each as likely as every other: the worst case."""
    if 2 * pages > total_pages:
        return PageSet.span(0, total_pages) - _uniform(rng, total_pages - pages, total_pages)
    drawn = np.zeros(0, np.int64)
    # To draw as many as are missing, again and again, is to draw one by one and leave out what was drawn before. Not
    # np.unique: it hashes, which takes 3 s of three million numbers that are sorted in 0.03 s.
    while drawn.size < pages:
        drawn = np.sort(np.concatenate((drawn, rng.integers(total_pages, size=pages - drawn.size))))
        drawn = drawn[np.append(True, drawn[1:] != drawn[:-1])]
    return PageSet.of_pages(drawn)


#: How the pages lie, by the name of it; each draws exactly so many pages of a guest of so many.
SCATTERS: dict[str, Callable[[np.random.Generator, int, int], PageSet]] = {
    "one-run": _one_run,
    "clustered": _clustered,
    "uniform": _uniform,
}


def _guest_bytes(given: str) -> int:
    size_bytes = parse_size(given)
    if not 0 < size_bytes <= MAX_MEMORY_BYTES or size_bytes % PAGE_BYTES:
        raise UsageError(
            f"--guest {given.strip()} is no size of a guest",
            f"{format_count(size_bytes)} bytes are not 4 KiB to 16 TiB in whole pages of 4 KiB",
            "give one such as 1GiB or 6TiB",
        )
    return size_bytes


def _page_count(given: str) -> int:
    digits = given.strip()
    if not (digits.isascii() and digits.isdigit()) or int(digits) > MAX_PAGES:
        raise UsageError(
            f"--pages {digits!r} is no number of pages left",
            f"0 to {format_count(MAX_PAGES)} can be, in digits alone, and commas separate several of them",
            "write --pages 1000,200000",
        )
    return int(digits)


def _scatter(given: str) -> str:
    name = given.strip()
    if name not in SCATTERS:
        raise UsageError(
            f"--scatter {name!r} is unknown", f"known are {', '.join(SCATTERS)}", "name one, or several with commas"
        )
    return name
