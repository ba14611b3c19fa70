"""How many pages a stream takes next from a set that others take from as well: what the link moves in a given time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Between `least_pages` and `most_pages`, and about `time_s` of the link."""

    least_pages: int
    most_pages: int
    time_s: float

    def next(self, sent_pages: int, took_s: float) -> int:
        """Give how many pages to take after so many took so long, at most twice as many.

        Doubling only, because the first batches vanish in the socket's buffer, at no speed of the link.
        """
        in_time = sent_pages * self.time_s / took_s if took_s > 0 else self.most_pages
        return int(min(max(in_time, self.least_pages), max(2 * sent_pages, self.least_pages), self.most_pages))
