"""How many different pages a guest writes in a given time: a curve through what was seen, and a guess beyond it. Pure.

The curve rises ever more slowly, because a page that is written again is no other page. From its first seconds the rest is guessed
by the family that ecologists use for the same question, how many species a longer look would find: every page has a rate of its
own at which it is written, and these rates are spread as a gamma distribution,

    W(t) = S (1 - (1 + t / theta) ** -k)

S pages are ever written, and k says how equal their rates are: with a large one all are alike (the curve of pages drawn at random
from a working set), with a small one few are hot and many rare (Zipf: it never quite ends), and where S is out of sight the curve
is a straight line (a sequential writer). It goes through the last point seen; of S and k those are taken whose curve lies nearest
to the others. And it never exceeds what the guest's memory holds. What it cannot know: that a sequential writer will come to the
end of its working set, or that the guest will do something else in a minute.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: The candidates: how many times what was seen there is beyond it, and how equal the rates are.
_BEYOND = np.logspace(-4, 3, 141)
_EQUALITY = np.logspace(-1.5, 3, 46)
#: Less than this share of what was expected shows that a guest was slower; above it, it may be chance.
_NOTICEABLE = 0.95
_MOST_SLOWDOWN = 20.0


class DirtyCurve:
    """Different pages written by time. Begins at (0, 0); never falls, and never exceeds `most_pages`."""

    def __init__(self, after_s: Sequence[float], pages: Sequence[float], most_pages: float) -> None:
        """Take what was seen: `pages` within `after_s`, which ascend and are above 0; none: nothing is ever written."""
        times = np.concatenate(([0.0], np.asarray(after_s, np.float64)))
        if (np.diff(times) <= 0).any() or len(pages) != len(after_s):
            raise ValueError("a dirty curve needs ascending times, and a number of pages for each")
        self._times = times
        seen = np.concatenate(([0.0], np.asarray(pages, np.float64)))
        self._pages = np.minimum(np.maximum.accumulate(seen), most_pages)
        self._most_pages = most_pages
        self._beyond, self._equality = _fit(self._times, self._pages)

    @property
    def seen_s(self) -> float:
        """The longest time that was seen; what lies beyond is extrapolated."""
        return float(self._times[-1])

    @property
    def most_pages(self) -> float:
        return self._most_pages

    def pages(self, within_s: float) -> float:
        """Give how many different pages are written in so long a time; for ever: all that there are, to be on the safe side."""
        if within_s == float("inf"):
            return self._most_pages
        if within_s <= self.seen_s:
            return float(np.interp(within_s, self._times, self._pages))
        last = float(self._pages[-1])
        if last <= 0:
            return 0.0
        grown = _grown(np.array([within_s / self.seen_s]), np.array([self._beyond]), np.array([self._equality]))
        return min(max(last * float(grown[0, 0]), last), self._most_pages)

    def again(self, earlier_s: float, later_s: float) -> float:
        """Give how many pages are written in both of two times that follow each other; `earlier_s` may be infinite.

        What both together write and each alone writes are known, as long as the guest goes on as it did.
        """
        later = self.pages(later_s)
        if earlier_s == float("inf"):
            return later
        earlier = self.pages(earlier_s)
        return min(max(earlier + later - self.pages(earlier_s + later_s), 0.0), earlier, later)

    def slowdown(self, within_s: float, pages: float) -> float:
        """Give by which factor a guest was slower that wrote only so many pages in that time; 1 where that cannot be told."""
        expected = self.pages(within_s)
        if pages <= 0 or expected <= 0 or pages >= _NOTICEABLE * expected:
            return 1.0
        # The curve rises: halve the time until it gives what was seen.
        low_s, high_s = 0.0, within_s
        for _ in range(40):
            middle_s = (low_s + high_s) / 2
            low_s, high_s = (middle_s, high_s) if self.pages(middle_s) < pages else (low_s, middle_s)
        return min(within_s / max(high_s, 1e-9), _MOST_SLOWDOWN)


def _fit(times: npt.NDArray[np.float64], pages: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Choose the member of the family whose curve lies nearest to what was seen; gives (S / W(T) - 1, k)."""
    if pages.size < 3 or pages[-1] <= 0:
        return float(_BEYOND[-1]), 1.0
    shares, seen = times[1:] / times[-1], pages[1:] / pages[-1]
    beyond, equality = np.repeat(_BEYOND, _EQUALITY.size), np.tile(_EQUALITY, _BEYOND.size)
    misses = ((_grown(shares, beyond, equality) - seen) ** 2).sum(axis=1)
    best = int(np.argmin(misses))
    return float(beyond[best]), float(equality[best])


def _grown(
    shares: npt.NDArray[np.float64], beyond: npt.NDArray[np.float64], equality: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Give W(t) / W(T) for times as shares of T, a row for each candidate."""
    # (1 + T / theta) ** -k is the share of S that was not written until T.
    log_unwritten = np.log(beyond / (1 + beyond))
    per_time = np.expm1(np.minimum(-log_unwritten / equality, 600.0))
    written = -np.expm1(-equality[:, np.newaxis] * np.log1p(per_time[:, np.newaxis] * shares))
    grown: npt.NDArray[np.float64] = written * (1 + beyond)[:, np.newaxis]
    return grown
