"""A digest of all guest memory that does not care how zeros are stored: holes and zero pages are the same.

Two guests with one digest have the same content on every page. Only the file's data extents are read (reading a hole through
a mapping allocates it). The hash is a tree over blocks of 16 MiB, fixed by page number, so that it can use every core and so that
extents, which may be cut anywhere, leave no trace in it.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.pages import PAGE_BYTES, PageSet

_BLOCK_PAGES = 4096


def memory_digest(mapping: memfd.Mapping) -> str:
    """Hash the content of a guest that is parked and whole; hex, 32 bytes. Takes about a second per GiB and core."""
    blocks: dict[int, list[tuple[int, int]]] = {}
    extents = memfd.data_extents(mapping.fd)
    for start, stop in zip(extents.starts.tolist(), extents.stops.tolist(), strict=True):
        for block in range(start // _BLOCK_PAGES, -(-stop // _BLOCK_PAGES)):
            cut = max(start, block * _BLOCK_PAGES), min(stop, (block + 1) * _BLOCK_PAGES)
            blocks.setdefault(block, []).append(cut)
    root = hashlib.blake2b(digest_size=32)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for block, leaf in zip(
            blocks, pool.map(lambda runs: _block_digest(mapping, runs), blocks.values()), strict=True
        ):
            if leaf:
                root.update(block.to_bytes(8, "little") + leaf)
    return root.hexdigest()


def _block_digest(mapping: memfd.Mapping, runs: list[tuple[int, int]]) -> bytes:
    """Hash the places and contents of a block's runs of pages that are not zero; empty when all are."""
    digest, found = hashlib.blake2b(digest_size=32), False
    for start, stop in runs:
        pages = mapping.array[start * PAGE_BYTES : stop * PAGE_BYTES].reshape(-1, PAGE_BYTES)
        used = PageSet.of_pages(np.flatnonzero(np.bitwise_or.reduce(pages.view(np.uint64), axis=1)))
        # Extents are apart from each other, so these runs are as long as can be in this block, whatever lies around them: equal
        # content gives equal runs.
        for first, last in zip(used.starts.tolist(), used.stops.tolist(), strict=True):
            digest.update((start + first).to_bytes(8, "little") + (start + last).to_bytes(8, "little"))
            digest.update(pages[first:last].data)
            found = True
    return digest.digest() if found else b""
