"""Whether it pays to look for pages that the destination holds already: a pure function of what a page connection has measured.

A look is a private copy of a page and its digest, so it takes the sender time, and what is found unchanged takes none of the link.
It pays where a store makes more dirty than it has changed: memory that is tracked by 2 MiB, all of hugetlb, and of transparent huge
pages what was not broken down. Memory that is tracked page by page is dirty where it was written; there auto does not look at all.

While a socket has something to send, the copy and the digest of what comes next cost the link nothing. So up to `MOST_COST` of the
link's own time they are taken for free, which is what lets a first round have digests, when nothing can be unchanged yet. Beyond
that what is left out has to be worth it, and a link so fast is not slowed for what later rounds might gain. Until its speed is
known, within the first megabytes, everything is looked at.

What a page's difference to the version last sent would save beside that (delta compression, XBZRLE), tried offline on pages that
guests had changed (2 vCPUs, 128 MiB of working set, memory compared every 0.3 and 2 s, zstd level 1, 256 pages at a time): much. A
page of oltp leaves 40% by zstd and 46% by lz4, XORed with its last version 3.2-7.5% at 2,000 to 20,000 transactions a second, 5 to
12 times less, and 9.9%, 4.2 times less, at full rate, when every page has changed. A page of random, which does not compress,
leaves 1.7-3.2%, and at full rate, when all of it has been overwritten, 90-95%. It takes a copy of each page last sent instead of 16
bytes, or a bounded cache that misses some, which was not tried; and a first round gains nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MODES = ("off", "on", "auto")
#: Copying and digesting may take this share of the time that the link takes for the same pages, whatever comes of it.
MOST_COST = 0.1
#: Where it takes more, what is left out has to save so many times what it costs.
LEAST_RETURN = 2.0


class Why(enum.Enum):
    """Why pages are looked at, or are not."""

    ASKED_FOR = "asked for"
    PAYS = "it pays"
    NO_ROUNDS = "there were no rounds"
    PAGE_BY_PAGE = "memory is tracked page by page: what is dirty was written"
    LINK_UNKNOWN = "the link's speed is not known yet"
    LINK_IS_FAST = "the link is too fast for it to pay"


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether to look at the pages that are sent next."""

    look: bool
    why: Why


def choose(
    mode: str, *, coarse: bool, link_bps: float | None, look_bps: float | None, unchanged_share: float | None
) -> Choice:
    """Decide about pages that resemble the last ones.

    coarse: memory is tracked by more than a page. link_bps: what the connection carries; look_bps: bytes of pages a second that are
    copied and digested; unchanged_share: of the pages looked at of which anything was known; each None where it is not known.
    """
    if mode != "auto":
        return Choice(mode == "on", Why.ASKED_FOR)
    if not coarse:
        return Choice(False, Why.PAGE_BY_PAGE)
    if link_bps is None or look_bps is None:
        return Choice(True, Why.LINK_UNKNOWN)
    cost = link_bps / look_bps
    if cost <= MOST_COST or (unchanged_share is not None and unchanged_share >= LEAST_RETURN * cost):
        return Choice(True, Why.PAYS)
    return Choice(False, Why.LINK_IS_FAST)
