"""What the destination holds of each page: a digest of the very bytes that were sent. A page found the same need not go again.

The rule that keeps it true: a digest is computed from a private copy only, and that copy is what is sent. From live memory A would
be digested and B sent; when A is back, the destination keeps B for ever. A page that goes any other way leaves no digest here, but
for a zero page: it is sent as a name, and what arrives is zeros whatever memory holds by then.

A page that was stored to while it was copied is torn; equal or not, it is dirty again. Between rounds no byte is under way (the
destination has acknowledged the round, on every connection), within one a page is one connection's: so entries are written in the
order in which the destination fills pages, by one thread each, and need no lock. They hold until the commit point. From there on a
page of the bitmap is missing at the destination whatever it had been sent; nobody asks here any more. A new attempt begins anew.

A collision, two pages that differ and have one digest, would leave a stale page there. For pages that nobody chose for it the
chance is 2^-128 a comparison, 3e-27 for 10^12 of them, 4 PB of pages. The hash is seeded by 64 bits of this migration's own, which
never leave this host, nor do digests: whoever aims at a collision aims blindly, and at the guest in which he can write.

xxh3_128, because of what it takes: copied and digested 256 at a time pages go at 8.5-9.4 GB/s, the copy alone at 21 (one thread,
three runs, memory of 256 MiB); with blake2b at 0.7. Two threads together come to 6.8: it holds the GIL, 0.3 us a page.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from pagefire.guest_workload.linux.sparse import sparse_zeros
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES, PageSet

#: What the digest of one page takes: a 256th of the page.
DIGEST_BYTES = 16
Contents = npt.NDArray[np.uint8]
Digests = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class SentDigests:
    """The digests of one attempt to migrate one guest, for all of its page connections.

    Memory is taken where pages have been sent, a 4 KiB piece for each 256 of them that lie together. An entry of zeros means that
    nothing is known of the page; no digest counts as equal to it.
    """

    def __init__(self, total_pages: int) -> None:
        """Raises PagefireError where the host does not give the room (vm.overcommit_memory 2)."""
        self._seed = secrets.randbits(64)
        try:
            self._held = sparse_zeros(total_pages * DIGEST_BYTES).view(np.uint64).reshape(-1, 2)
        except OSError as error:
            raise PagefireError(
                "there is no room for digests of sent pages", error.strerror or str(error), "use --skip-unchanged off"
            ) from error
        self._of_zeros = self.of(np.zeros((1, PAGE_BYTES), np.uint8))

    def of(self, copies: Contents) -> Digests:
        """Digest pages, [n, 4096], to which nobody stores; gives [n, 2]."""
        seed = self._seed
        return np.frombuffer(b"".join([xxh3_128_digest(page, seed) for page in copies]), np.uint64).reshape(-1, 2)

    def look(self, pages: PageSet, digests: Digests) -> tuple[Mask, int]:
        """Tell which of `pages` the destination holds with just these digests, and of how many anything is known."""
        held = self._held[pages.index()]
        known = held.any(axis=1)
        same: Mask = (held == digests).all(axis=1) & known
        return same, int(np.count_nonzero(known))

    def zero_there(self, pages: PageSet) -> PageSet:
        """Choose those of `pages` that the destination holds as zeros."""
        same, _ = self.look(pages, self._of_zeros)
        return PageSet.of_pages(pages.page_numbers()[same]) if same.any() else PageSet.empty()

    def hold(self, numbers: Numbers, digests: Digests) -> None:
        """Private copies of these pages have been sent, of which these are the digests."""
        self._held[numbers] = digests

    def hold_zeros(self, pages: PageSet) -> None:
        """These pages have been sent as zero pages."""
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
            self._held[start:stop] = self._of_zeros

    def forget(self, pages: PageSet) -> None:
        """These pages go otherwise: what of them arrives is not known here. Takes no memory where nothing was known."""
        index = pages.index()
        known = self._held[index].any(axis=1)
        if known.any():
            self._held[index] = 0
