"""PAGEMAP_SCAN on /proc/PID/pagemap: which pages were written, and write-protect them again, in one call.

Layout and numbers: include/uapi/linux/fs.h (struct pm_scan_arg, 96 bytes; struct page_region, three u64). Works from another
process than the one that is scanned. What may be concluded from which mask is the tracker's business.
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.linux.calls import Calls, packed
from pagefire.protocol.pages import PAGE_BYTES, PageRanges

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

_ARGUMENT = struct.Struct("=12Q")
assert _ARGUMENT.size == 96
_PAGEMAP_SCAN = 3 << 30 | _ARGUMENT.size << 16 | ord("f") << 8 | 16

#: A buffer of this many regions is 1.5 MiB and is filled by 65,536 scattered pages.
REGIONS_PER_CALL = 65_536
_TEAM_REGIONS_PER_CALL = 16_384
_REGION_BYTES = 24
#: Where its words lie, behind the size and the flags.
_START, _END, _WALK_END, _VECTOR, _ROOM = 2, 3, 4, 5, 6
_INVERTED, _REQUIRE, _ANY_OF, _GIVE = 8, 9, 10, 11

Regions = npt.NDArray[np.uint64]


class Category(enum.IntFlag):
    WPALLOWED = 1
    WRITTEN = 2
    FILE = 4
    PRESENT = 8
    SWAPPED = 16
    PFNZERO = 32
    HUGE = 64
    SOFT_DIRTY = 128


class Flag(enum.IntFlag):
    WP_MATCHING = 1
    CHECK_WPASYNC = 2


#: The mask that takes the kernel's fast path: an empty entry counts as written on every version (no other mask may be added).
WRITTEN_ONLY = Category.WRITTEN
PROTECT = Flag.WP_MATCHING | Flag.CHECK_WPASYNC


def protect_calls(fd: int, address: int, ranges: PageRanges) -> Calls:
    """List the calls that protect ranges of memory that begins at `address` and tell nothing; 2 MiB mappings stay what they are."""
    words = np.zeros((len(ranges.starts), 12), np.uint64)
    words[:, 0], words[:, 1] = _ARGUMENT.size, PROTECT
    words[:, _START] = ranges.starts * PAGE_BYTES + address
    words[:, _END] = words[:, _START] + (ranges.counts * PAGE_BYTES).astype(np.uint64)
    words[:, _REQUIRE] = words[:, _GIVE] = WRITTEN_ONLY
    return Calls(fd, _PAGEMAP_SCAN, packed(words), "PAGEMAP_SCAN")


def open_pagemap(pid: int) -> int:
    """Open the page map of a process of the same user; the caller closes it."""
    return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)


class Masks(TypedDict, total=False):
    """What a scan looks for: pages with all categories of `require` (those of `inverted` absent), and one of `any_of` if given.

    `flags` are of `Flag`; `give` says which categories are told of a region.
    """

    flags: int
    require: int
    any_of: int
    inverted: int
    give: int


class Scanner:
    """One page map and the buffer that its scans fill; not to be used by two threads at once."""

    def __init__(self, pagemap_fd: int, regions_per_call: int = REGIONS_PER_CALL) -> None:
        self._fd = pagemap_fd
        self._buffer: Regions = np.zeros((regions_per_call, 3), np.uint64)

    def scan(self, start: int, end: int, **masks: Unpack[Masks]) -> Regions:
        """Collect the regions of [start, end) that match, as `scan_ranges` does for many ranges."""
        return self.scan_ranges([start], [end], **masks)

    def scan_ranges(self, starts: Sequence[int], ends: Sequence[int], **masks: Unpack[Masks]) -> Regions:
        """Collect the regions of ranges of addresses that match, as rows (start address, end address, categories).

        A call a range, 2-3 us where nothing matches, and more where the buffer demands it. With WP_MATCHING what is reported has
        been protected by then; a region may be cut in two where a call ended. Raises OSError.
        """
        pieces: list[Regions] = []
        capacity, first_slot, used = len(self._buffer), self._buffer.ctypes.data, 0
        # One argument for all calls, of which each changes four words: what is made anew for each call costs more than the call.
        argument = (ctypes.c_uint64 * 12)(_ARGUMENT.size, masks.get("flags", 0))
        argument[_INVERTED], argument[_REQUIRE] = masks.get("inverted", 0), masks.get("require", 0)
        argument[_ANY_OF], argument[_GIVE] = masks.get("any_of", 0), masks.get("give", 0)
        where, fd, ioctl = ctypes.addressof(argument), self._fd, _libc.ioctl
        for start, end in zip(starts, ends, strict=True):
            walked_to = start
            while walked_to < end:
                argument[_START], argument[_END] = walked_to, end
                argument[_VECTOR], argument[_ROOM] = first_slot + used * _REGION_BYTES, capacity - used
                count = ioctl(fd, _PAGEMAP_SCAN, where)
                if count < 0:
                    error = ctypes.get_errno()
                    raise OSError(error, f"PAGEMAP_SCAN: {os.strerror(error)}")
                used += count
                if used == capacity:
                    pieces.append(self._buffer.copy())
                    used = 0
                elif argument[_WALK_END] <= walked_to:
                    raise OSError(5, f"PAGEMAP_SCAN made no progress at {walked_to:#x}")
                walked_to = argument[_WALK_END]
        pieces.append(self._buffer[:used].copy())
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


class ScanTeam:
    """Scanners of one page map, each with a thread: the kernel lets them walk one address space side by side.

    Made for the moment at which nothing else runs, a guest that stands still. Owns its threads until `close`. Each is kept off the
    CPUs of the others: a scheduler may wake a thread where the last one runs, though another CPU is idle, and a scan is not
    interrupted. Two halves of 8 GiB, left to the scheduler: 1.2 ms and 1.2 ms one after the other, on one CPU of two.
    """

    def __init__(self, pagemap_fd: int, members: int) -> None:
        self.members = members
        self._scanners = [Scanner(pagemap_fd, _TEAM_REGIONS_PER_CALL) for _ in range(members)]
        self._helpers: list[int] = []
        self._threads = ThreadPoolExecutor(
            max(members - 1, 1), "scan", lambda: self._helpers.append(threading.get_native_id())
        )
        # The threads are there before they are needed.
        wait([self._threads.submit(time.sleep, 0.001) for _ in range(members - 1)])

    def scan_ranges(self, parts: Sequence[tuple[Sequence[int], Sequence[int]]], **masks: Unpack[Masks]) -> Regions:
        """Scan as `Scanner.scan_ranges` does, each part (starts, ends) by another thread; a part for each member at most."""
        first, *others = zip(self._scanners, parts, strict=False)
        if others:
            scheduling.spread(self._helpers)
        under_way = [self._threads.submit(one.scan_ranges, *part, **masks) for one, part in others]
        scanner, part = first
        regions = scanner.scan_ranges(*part, **masks)
        return np.concatenate([regions, *(one.result() for one in under_way)]) if under_way else regions

    def close(self) -> None:
        """End the threads; more than once does nothing."""
        self._threads.shutdown()
