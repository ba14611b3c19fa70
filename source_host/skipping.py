"""Whether it pays to look for pages that the destination holds already: a pure function of what a page connection has measured.

A look is a private copy of a page and its digest, so it takes the sender time, and what is found unchanged takes none of the link.
It pays where a store makes more dirty than it has changed: memory that is tracked by 2 MiB, all of hugetlb, and of transparent huge
pages what was not broken down. Memory that is tracked page by page is dirty where it was written; there auto does not look at all.

While a socket has something to send, the copy and the digest of what comes next cost the link nothing. So up to `MOST_COST` of the
link's own time they are taken for free, which is what lets a first round have digests, when nothing can be unchanged yet. Beyond
that what is left out has to be worth it, and a link so fast is not slowed for what later rounds might gain. Until its speed is
known, within the first megabytes, everything is looked at.
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
