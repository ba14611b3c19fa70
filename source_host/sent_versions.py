"""The pages as they were last sent, as many as a person gives room for (`--delta-cache`): what differences are taken to.

The rule that keeps it true is that of digests (sent_digests.py): a version is a private copy, and that copy, or its difference to
the version before, is what is sent. The destination takes the difference to what its memory holds, so a page that goes any other
way leaves no version here. Between rounds no byte is under way, and within one a page is sent once: so both have the same version
when a difference is taken. Versions hold until the commit point, and a new attempt begins without any.

All page connections of an attempt share one, since a page may go by another connection in each round; a lock, because one that
looks for room may give away the room of a page that another one sends.

Room that is full is made by pages that the round under way does not send: those that were not sent for the longest time go first,
and there are no others, so that what a round sends never pushes out what it will send next. A working set that is larger than the
room keeps what it has: as large a share of it goes as differences as there is room for.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux.sparse import sparse_zeros
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.source_host.sent_digests import Contents, Mask

Slots = npt.NDArray[np.int64]


class SentVersions:
    """The last versions of one attempt to migrate one guest, for all of its page connections. Any thread.

    Takes memory as pages are sent, `most_bytes` of contents at most and 16 bytes a page beside.
    """

    def __init__(self, total_pages: int, most_bytes: int) -> None:
        """Raises PagefireError where the host does not give the room (vm.overcommit_memory 2)."""
        self.slots = min(most_bytes // PAGE_BYTES, total_pages)
        try:
            self._versions: Contents = sparse_zeros(self.slots * PAGE_BYTES).reshape(-1, PAGE_BYTES)
            # Where each page's version is, counted from 1; 0: nowhere.
            self._slot_of = sparse_zeros(total_pages * 4).view(np.int32)
            self._page_of = sparse_zeros(self.slots * 8).view(np.int64)
            self._sent_in = sparse_zeros(self.slots * 4).view(np.int32)
        except OSError as error:
            raise PagefireError(
                "there is no room for the last versions of sent pages",
                error.strerror or str(error),
                "use a smaller --delta-cache",
            ) from error
        self._lock = threading.Lock()
        self._round = 0
        self._due: PageSet | None = None
        #: Slots from here on were never used; `_free` were given back; `_old` may be given away in this round (None: not known).
        self._unused = 0
        self._free = np.empty(0, np.int64)
        self._old: Slots | None = None
        #: Pages of which no version could be kept.
        self.turned_away_pages = 0

    @property
    def used_bytes(self) -> int:
        """How much of the room has been used."""
        return self._unused * PAGE_BYTES

    def begin_round(self, due: PageSet | None = None) -> None:
        """A round begins that sends pages of `due` only; None: nobody knows which, and no page loses its room to another one."""
        with self._lock:
            self._round += 1
            self._due, self._old = due, None

    def exchange(self, pages: PageSet, copies: Contents, differences: Contents) -> Mask:
        """Private `copies` of `pages` are about to be sent: hold them, and tell of which pages there was a version.

        `differences`, [pages or more, 4096], begins afterwards with these pages' copies XOR what was held.
        """
        index = pages.index()
        with self._lock:
            slots = self._slot_of[index].astype(np.int64) - 1
            known: Mask = slots >= 0
            count = int(np.count_nonzero(known))
            if count:
                held, now = slots[known], copies if count == slots.size else copies[known]
                found = differences[:count]
                np.take(self._versions, held, axis=0, out=found, mode="clip")
                np.bitwise_xor(found.view(np.uint64), now.view(np.uint64), out=found.view(np.uint64))
                self._versions[held] = now
                self._sent_in[held] = self._round
            if count < slots.size:
                self._hold_new(pages.page_numbers()[~known], copies if not count else copies[~known])
        return known

    def forget(self, pages: PageSet) -> None:
        """These pages go otherwise: what of them arrives is not known here."""
        index = pages.index()
        with self._lock:
            slots = self._slot_of[index].astype(np.int64) - 1
            held = slots[slots >= 0]
            if held.size:
                self._slot_of[index] = 0
                self._free = np.append(self._free, held)

    def free(self) -> None:
        """Give the memory back (0.06 s a GiB); only what was counted is asked for afterwards. More than once does nothing."""
        with self._lock:
            nothing = np.empty(0, np.uint8)
            self._versions = nothing.reshape(0, PAGE_BYTES)
            self._slot_of = self._sent_in = nothing.view(np.int32)
            self._page_of = nothing.view(np.int64)

    def held_among(self, pages: PageSet) -> PageSet:
        """Choose those of `pages` of which there is a version."""
        held = self._slot_of[pages.index()] > 0
        return PageSet.of_pages(pages.page_numbers()[held])

    def compared(self, pages: PageSet, copies: Contents) -> Contents:
        """Give `copies` of pages that are held XOR their versions, which stay what they are."""
        return self._versions[self._slot_of[pages.index()] - 1] ^ copies

    def _hold_new(self, numbers: Slots, copies: Contents) -> None:
        slots = self._room_for(numbers.size)
        self.turned_away_pages += numbers.size - slots.size
        numbers = numbers[: slots.size]
        if not slots.size:
            return
        self._versions[slots] = copies[: slots.size]
        self._slot_of[numbers] = slots + 1
        self._page_of[slots] = numbers
        self._sent_in[slots] = self._round

    def _room_for(self, count: int) -> Slots:
        """Take so many slots, or as many as there are."""
        fresh = np.arange(self._unused, min(self._unused + count, self.slots))
        self._unused += fresh.size
        if fresh.size == count:
            return fresh
        freed, self._free = np.split(self._free, [min(count - fresh.size, self._free.size)])
        taken = np.append(fresh, freed)
        if taken.size < count and self._due is not None:
            if self._old is None:
                self._old = self._not_due(self._due)
            old, self._old = np.split(self._old, [min(count - taken.size, self._old.size)])
            # A version that was forgotten since has given its slot back, and it may be another page's already.
            old = old[(self._slot_of[self._page_of[old]] == old + 1) & (self._sent_in[old] < self._round)]
            self._slot_of[self._page_of[old]] = 0
            taken = np.append(taken, old)
        return taken

    def _not_due(self, due: PageSet) -> Slots:
        """Give slots of pages that this round does not send, those that were sent last at the end; as many as it may need."""
        may_go = self._sent_in[: self._unused] < self._round
        held = self._slot_of[due.index()]
        may_go[held[held > 0] - 1] = False
        others = np.flatnonzero(may_go)
        # No more than there are pages to hold: to sort all of them takes a long round's time for a short one.
        if due.pages < others.size:
            others = others[np.argpartition(self._sent_in[others], due.pages)[: due.pages]]
        return others[np.argsort(self._sent_in[others], kind="stable")]
