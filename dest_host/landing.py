"""Where page contents land: straight from the wire into the guest's memory file.

Two ways in. Pages that are not there yet go into the file (spliced: socket, pipe, memfd; written where the wire is encrypted): the
kernel takes fresh pages and fills them without zeroing them first or faulting them into a mapping. Spliced that is 2.1-2.7 GB/s
against 0.6-0.7 for recv into cold memory and 0.5-1.8 for recv behind a populating thread (bare sockets, 1 GiB over loopback with
bbr, three alternating rounds; 1.0-2.1 spliced with cubic on a busier machine). Pages that are there are received through the
mapping, which copies once and needs no pipe: 4.5-7.6 GB/s against 3.0-4.8 (cubic). So nothing is populated ahead.

Both make a page present before it is full. Before the resume nobody looks; after it the guest's own mapping shows a page only once
it was published, see publishing.py.
"""

from __future__ import annotations

import numpy as np

from pagefire.dest_host.ledger import Ledger
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.transport.wire import Wire

#: Runs of at least this many pages are worth a pipe.
SPLICE_PAGES = 16


class Landing:
    """Fills pages of one guest from one wire; used by one thread. The connection is somebody else's to close."""

    def __init__(self, wire: Wire, memory: Mapping, ledger: Ledger) -> None:
        self._wire = wire
        self._memory_fd = memory.fd
        self._bytes = memory.array.data
        self._pages = memory.array.reshape(-1, PAGE_BYTES)
        self._ledger = ledger
        self._nowhere = memoryview(bytearray(PAGE_BYTES))

    def fill(self, pages: PageSet, unwanted: PageSet | None = None) -> None:
        """Read the contents of `pages` from the wire into memory, those of `unwanted`, a part of them, to nowhere.

        Raises LinkLost, and pages may then be half-filled.
        """
        if unwanted:
            self._fill_some(pages - unwanted, unwanted)
            return
        starts, stops, filled = pages.starts * PAGE_BYTES, pages.stops * PAGE_BYTES, 0
        for run in np.flatnonzero(pages.counts >= SPLICE_PAGES).tolist():
            if self._ledger.filled(int(pages.starts[run]), int(pages.stops[run])):
                continue
            self._wire.fill_runs(self._bytes, starts[filled:run], stops[filled:run])
            self._wire.fill_range(self._memory_fd, int(starts[run]), int(stops[run] - starts[run]))
            filled = run + 1
        self._wire.fill_runs(self._bytes, starts[filled:], stops[filled:])
        self._ledger.mark_filled(pages)

    def _fill_some(self, wanted: PageSet, unwanted: PageSet) -> None:
        buffers: list[memoryview] = []
        for start, stop, keep in _in_order(wanted, unwanted):
            if keep:
                buffers.append(self._bytes[start * PAGE_BYTES : stop * PAGE_BYTES])
            else:
                buffers += [self._nowhere] * (stop - start)
        self._wire.fill(buffers)
        self._ledger.mark_filled(wanted)

    def changed(self, pages: PageSet, differences: bytes) -> memoryview:
        """Give what `pages` become where they differ so from what memory holds (XOR); changes nothing."""
        held = self._pages[pages.index()]
        return (held ^ np.frombuffer(differences, np.uint8).reshape(held.shape)).data.cast("B")

    def zero(self, pages: PageSet) -> None:
        """Make `pages` read as zero. Only pages that have contents are written: a hole is zero already."""
        stale = self._ledger.filled_among(pages)
        for start, stop in zip(stale.starts.tolist(), stale.stops.tolist(), strict=True):
            self._pages[start:stop] = 0

    def place_page(self, page: int, contents: bytes | bytearray) -> None:
        """Copy the contents of one page into memory; the ledger is the caller's to tell."""
        self._bytes[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = contents

    def place(self, pages: PageSet, among: PageSet, contents: bytes | bytearray) -> None:
        """Copy some of the pages `among`, whose `contents` these are, into memory; the ledger is the caller's to tell."""
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
            at = among.rank(start) * PAGE_BYTES
            self._bytes[start * PAGE_BYTES : stop * PAGE_BYTES] = contents[at : at + (stop - start) * PAGE_BYTES]


def _in_order(wanted: PageSet, unwanted: PageSet) -> list[tuple[int, int, bool]]:
    """Give the runs of two sets that share no page as (start, stop, wanted), in ascending order."""
    runs = [
        (start, stop, keep)
        for pages, keep in ((wanted, True), (unwanted, False))
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True)
    ]
    return sorted(runs)
