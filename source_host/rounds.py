"""The rounds of one migration: what each sends, what the guest writes meanwhile, and hence what the destination still lacks.

A page's way through here: it is written, `look` finds it and it is `unsent`; a round takes it, and it is `sent`; while it waits in
the round it may be written again (outstanding.py), and is unsent again. Nothing leaves `unsent` but into a round.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.pages import PageSet
from pagefire.protocol.report import Round
from pagefire.protocol.transport.tasks import beside, in_thread
from pagefire.source_host.auto_converge import AutoConverge
from pagefire.source_host.guest_tracing import GuestTracing
from pagefire.source_host.link import Link, RoundBegun
from pagefire.source_host.outstanding import LOOK_S, Looks, Outstanding
from pagefire.source_host.swapped_pages import SwappedPages
from pagefire.source_host.trace_install import Rolling
from pagefire.source_host.tracking import NOTHING, Collected

Emit = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Progress:
    """What `pagefire status` shows while a migration goes on."""

    round: int = 0
    remaining_pages: int = 0
    sent_bytes: int = 0
    started_s: float = field(default_factory=time.monotonic)


class Rounds:
    """Sends rounds on a link, and knows what is `unsent` and what has ever been `sent`.

    `leaves_swapped`: what this host has swapped out is left out of them. `watch` raises when the guest has died.
    """

    def __init__(
        self,
        memory: Mapping,
        link: Link,
        tracing: GuestTracing,
        throttling: AutoConverge,
        emit: Emit,
        watch: Callable[[], Coroutine[Any, Any, None]],
        *,
        leaves_swapped: bool,
    ) -> None:
        self.progress = Progress()
        self.sent = PageSet.empty()
        self.unsent = NOTHING
        self.swapped = SwappedPages(memory, enabled=leaves_swapped)
        self._link = link
        self._tracing = tracing
        self._throttling = throttling
        self._emit = emit
        self._watch = watch
        self._looks = Looks()
        self._outstanding = Outstanding(PageSet.empty(), 1)
        self._stopped = False

    def stop(self) -> None:
        """Begin to send nothing more in rounds; what a rolling install sends is sent to its end."""
        self._stopped = True
        self._outstanding.stop()

    # -- a round of pre-copy ---------------------------------------------------------------------------------------------------

    async def send_unsent(self) -> Round:
        """Send what is unsent, and look at the end what is then; raises LinkLost, GuestError.

        The streams share the pages, and what need not be sent any more is left out while they do.
        """
        to_send = await in_thread(self.swapped.leave, self.unsent)
        outstanding = self._outstanding = Outstanding(to_send.written, len(self._link.streams))
        if self._stopped:
            outstanding.stop()
        self.unsent, self._looks = NOTHING, Looks()
        begun = self._link.begin_shared_round(outstanding, to_send.holes, to_send.written)
        self._begun(begun, to_send.written)
        done = await beside(
            self._link.end_round(begun),
            self._watch(),
            self.follow(begun, lambda: outstanding.to_send_pages),
            self._slow_or_look(begun, outstanding),
        )
        self.unsent = Collected(outstanding.given_back, PageSet.empty()) | self.unsent
        done.skipped_pages = outstanding.skipped_pages + outstanding.given_back.pages
        return await self._ended(done)

    async def send_rolling(self, rolling: Rolling, expected: PageSet) -> Round:
        """Send the first round, each chunk protected just before; `expected` are the pages that have contents now."""
        self.progress.round, self.progress.remaining_pages = 1, expected.pages
        rolling.choose = lambda pages: self.swapped.leave(Collected(pages, PageSet.empty())).written
        self.unsent, self._looks = NOTHING, Looks()
        begun = self._link.begin_shared_round(rolling, PageSet.empty())
        done = await beside(
            self._link.end_round(begun),
            self._watch(),
            self.follow(begun, lambda: expected.pages),
            self._throttling.follow(begun, expected.pages, self._link, self._tracing),
        )
        self.sent |= rolling.sent
        return await self._ended(done)

    async def _ended(self, done: Round) -> Round:
        await in_thread(self._look)
        done.dirty_pages_after = self.unsent.written.pages
        done.share_changed = await in_thread(self._link.share_changed, self.unsent.written)
        done.delta_share, done.settled_share = await in_thread(self._link.delta_shares, self.unsent.written)
        done.dirty_pages_per_s = self._looks.dirty_pages_per_s
        return done

    async def _slow_or_look(self, begun: RoundBegun, outstanding: Outstanding) -> None:
        """Watch a round. A guest that may be slowed is judged by all that it writes in it: nothing is collected before its end."""
        if self._throttling.enabled:
            await self._throttling.follow(begun, outstanding.to_send_pages, self._link, self._tracing)
        while True:
            await asyncio.sleep(LOOK_S)
            await in_thread(lambda: outstanding.rewritten(self._look()))

    def _look(self) -> PageSet:
        """Collect what was written since the last look into what is unsent; gives those pages.

        All of it in the thread that collects: a cancellation meanwhile loses nothing.
        """
        assert self._tracing.tracker is not None
        late = self.news_of(self._tracing.tracker.collect_and_clear())
        self.unsent |= late
        self._looks.note(late.written.pages)
        return late.written | late.holes

    # -- any round -------------------------------------------------------------------------------------------------------------

    def begin(self, to_send: Collected) -> RoundBegun:
        """Begin to send pages that nobody writes any more; the caller awaits the round's end."""
        begun = self._link.begin_round(to_send)
        self._begun(begun, to_send.written)
        return begun

    async def follow(self, begun: RoundBegun, pages: Callable[[], int]) -> None:
        """Tell how far a round has come, until cancelled; `pages` gives how many it will have sent or found unchanged."""
        while True:
            sent = self._link.sent_since(begun)
            self.progress.sent_bytes = sent.wire_bytes
            self._emit(
                {
                    "event": "progress", "round": begun.number, "pages": pages(), "sent_pages": sent.done_pages,
                    "wire_bytes": sent.wire_bytes, "round_s": time.monotonic() - begun.began_s, **self._seen(),
                }
            )  # fmt: skip
            await asyncio.sleep(0.1)

    def _seen(self) -> dict[str, Any]:
        """Tell what the looks at this round have found: nothing before the first one."""
        looks, unsent = self._looks, self.unsent
        if (after_s := looks.after_s) is None:
            return {"looked_after_s": None, "unsent_pages": None, "dirty_pages_per_s": None}
        return {
            "looked_after_s": after_s, "unsent_pages": unsent.written.pages, "dirty_pages_per_s": looks.dirty_pages_per_s
        }  # fmt: skip

    @property
    def dirty_pages_per_s(self) -> float:
        """Different pages that the guest writes a second, as it was last seen; 0 before the first look of a round."""
        return self._looks.dirty_pages_per_s

    def _begun(self, begun: RoundBegun, pages: PageSet) -> None:
        self.progress.round, self.progress.remaining_pages = begun.number, pages.pages
        self.sent |= pages

    # -- what the destination lacks --------------------------------------------------------------------------------------------

    def news_of(self, collected: Collected) -> Collected:
        """Leave out holes of which the destination never had contents: they are zero there already."""
        return Collected(collected.written, collected.holes & self.sent if collected.holes else collected.holes)

    def leave_nothing_out(self) -> None:
        """Every page has to go before the resume after all: what is swapped out is sent as well."""
        self.unsent = Collected(self.swapped.give_back(), PageSet.empty()) | self.unsent
