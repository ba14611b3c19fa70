"""What the destination lacks when the guest stops: which pages go while it stands, which follow, and what is told of them when.

Shortly before the stun memory is collected some more times, so that the last scan finds little; what every window wrote is hot
(hot_pages.py). The bitmap of all that is unsent then is foretold while the guest still runs; in the stun only what has changed
since is coded. Until the foretelling late pages join what is unsent; from there on they are kept apart: nobody was told of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.bitmap import encode_bitmap
from pagefire.protocol.bitmap_runs import form_of
from pagefire.protocol.messages import Foretold
from pagefire.protocol.pages import PageSet, pages_of
from pagefire.protocol.transport.tasks import in_thread
from pagefire.source_host import hot_pages
from pagefire.source_host.hot_pages import HotPages
from pagefire.source_host.link import Link
from pagefire.source_host.rounds import Rounds
from pagefire.source_host.tracking import NOTHING, Collected, DirtyTracker

#: Which of the windows before the stun begins with the foretelling: the destination has the last two to note it.
_FORETELL_AT = hot_pages.WINDOWS - 2


@dataclass(frozen=True, slots=True)
class Bitmaps:
    """What the switchover says of the pages that follow: `named` beside those foretold, and `swapped`, which this host swapped out.

    `coded` has the form `form`; `swap_coded` is compacted, and empty where nothing is swapped out.
    """

    form: str
    named: PageSet
    coded: bytes
    swapped: PageSet
    swap_coded: bytes


class LastPages:
    """Follows what one guest's destination lacks from the last round to the stop; `bitmap` is the form that was asked for."""

    def __init__(self, memory: Mapping, link: Link, rounds: Rounds, bitmap: str) -> None:
        self._total_pages = pages_of(memory.size_bytes)
        self._link = link
        self._rounds = rounds
        self._bitmap = bitmap
        # Huge pages that cannot be divided tell too little.
        self._hot = HotPages(enabled=memory.unit_pages == 1)
        self._last_written = PageSet.empty()
        #: What the destination was told ahead of the stun that it will lack, and what was collected since; all unsent besides.
        self._foretold: Collected | None = None
        self._since = NOTHING
        #: Bytes of the bitmap that was foretold.
        self.foretold_bytes = 0

    @property
    def foretold(self) -> bool:
        """Whether the destination has been told ahead."""
        return self._foretold is not None

    @property
    def foretold_pages(self) -> int:
        """How many pages the destination was told of ahead."""
        return self._foretold.written.pages if self._foretold is not None else 0

    # -- while the guest runs ------------------------------------------------------------------------------------------------

    async def approach(self, tracker: DirtyTracker, *, foretell: bool) -> Collected:
        """Collect some more, shortly before the stun: the last scan then finds little, and what is found each time is hot.

        Gives the last collection as it is, for `take_in`: what time it takes to look at it, the guest goes on writing. Only where
        pages move after the resume; elsewhere all of them go during the stun anyway.
        """
        late = NOTHING
        for window in range(hot_pages.WINDOWS):
            if window == _FORETELL_AT and foretell and self._link.foretells:
                await in_thread(self.take_in, late)
                await self._foretell()
                late = NOTHING
            late = await in_thread(self._window, late, tracker)
        return late

    def _window(self, late: Collected, tracker: DirtyTracker) -> Collected:
        """Let one window pass; gives what was written in it. One change of thread each: three made more waits afterwards."""
        self.take_in(late)
        self._rehearse()
        time.sleep(hot_pages.WINDOW_S)
        return tracker.collect_and_clear()

    def take_in(self, late: Collected) -> None:
        """Add a late collection to what is unsent; a window in which nothing was written tells nothing."""
        if late:
            late = self._rounds.news_of(late)
            if self._foretold is None:
                self._rounds.unsent |= late
            else:
                self._since |= late
            self._hot.note(late.written)

    async def _foretell(self) -> None:
        """Tell the destination what it lacks as it stands: to code and to note all that would take a third of the stun."""
        left = self._rounds.unsent
        named = left.written | left.holes
        coded = await in_thread(encode_bitmap, self._bitmap, named, self._total_pages)
        await self._link.say(Foretold(self._bitmap, named.pages), coded)
        self._foretold, self.foretold_bytes = Collected(named, left.holes), len(coded)

    def _rehearse(self) -> None:
        """Compute once for nothing what the stun computes: it costs more where code and memory are cold."""
        news = self._untold
        self.divided(news)
        encode_bitmap(self._form_of(news.written), news.written, self._total_pages)

    # -- while it stands -----------------------------------------------------------------------------------------------------

    def found_last(self, last: Collected) -> Collected:
        """Take in the last collection, of a guest that stands; gives what the destination lacks and was not told of."""
        last = self._rounds.news_of(last)
        self._last_written = last.written
        return self._untold | last

    def divided(self, left: Collected) -> tuple[Collected, Collected]:
        """Divide what the destination lacks into what goes during the stun and what may follow after the resume."""
        hot = self._hot.choose(self._last_written) - left.holes
        if self._foretold is not None and self._foretold.holes:
            hot -= self._foretold.holes - left.written
        return Collected(hot, PageSet.empty()), Collected(left.written - hot, left.holes)

    def coded(self, later: Collected) -> Bitmaps:
        """Code what the destination is told of in the stun, `later` being what follows of what it was not told of."""
        named, swapped, swap_coded = later.written | later.holes, PageSet.empty(), b""
        if self._rounds.swapped.pages:
            written = self._rounds.unsent.written | self._since.written | self._last_written
            swapped = self._rounds.swapped.pages - written - later.holes
            named -= swapped
        form = self._form_of(named)
        coded = encode_bitmap(form, named, self._total_pages)
        if swapped:
            swap_coded = encode_bitmap("compacted", swapped, self._total_pages)
        return Bitmaps(form, named, coded, swapped, swap_coded)

    def remaining(self, bitmaps: Bitmaps, at_once: PageSet) -> PageSet:
        """Give all that follows after the resume, `at_once` having gone before it."""
        named = bitmaps.named
        if self._foretold is not None:
            named |= self._foretold.written - at_once
        return named | bitmaps.swapped

    @property
    def _untold(self) -> Collected:
        return self._rounds.unsent if self._foretold is None else self._since

    def _form_of(self, pages: PageSet) -> str:
        return form_of(pages, foretold=self.foretold, chosen=self._bitmap)
