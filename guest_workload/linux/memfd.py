"""memfd: sealed shared memory, mapped at a 2 MiB aligned address, and which of it holds content.

A guest's memory may be 6 TiB of which a little is used, so everything here costs what is touched, never the size. The seals
(SHRINK, GROW) are what makes the mapping safe to share: nobody can cut the file under another's mapping (SIGBUS).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pagefire.protocol.pages import GRANULE_BYTES, GRANULE_PAGES, PAGE_BYTES, PageSet, pages_of

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
HUGETLB_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")

#: Of so many pages or fewer `data_among` asks one by one.
_FEW_PAGES = 16
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MADV_HUGEPAGE, _MADV_POPULATE_WRITE, _MADV_COLLAPSE = 14, 23, 25
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_MFD_HUGETLB = os.MFD_HUGETLB | os.MFD_HUGE_2MB
_MAP_FAILED = ctypes.c_void_p(-1).value


def create(name: str, size_bytes: int, *, hugetlb: bool = False) -> int:
    """Create shared memory of a fixed size, all holes; the caller closes the descriptor. `name` shows in /proc/PID/maps.

    With `hugetlb` it is whole pages of 2 MiB out of the host's pool, all of them taken at once: a page that the pool lacks would
    kill whoever touches it, a hole of such a file cannot be told from data, and one that is read becomes a page. Raises OSError,
    ENOSPC where the pool has too few.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (_MFD_HUGETLB if hugetlb else 0))
    try:
        os.ftruncate(fd, size_bytes)
        if hugetlb:
            os.posix_fallocate(fd, 0, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def _mmap(address: int | None, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    mapped = _libc.mmap(address, size_bytes, protection, flags, fd, 0)
    if mapped is None or mapped == _MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"mmap of {size_bytes} bytes: {os.strerror(error)}")
    return int(mapped)


def _munmap(address: int, size_bytes: int) -> None:
    if size_bytes and _libc.munmap(address, size_bytes) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"munmap: {os.strerror(error)}")


class Mapping:
    """A whole file, mapped shared at a 2 MiB aligned address, so that the kernel may use 2 MiB entries for it.

    Owns the address range and `fd` (closed by `close`). NORESERVE: size costs nothing until it is touched. An array taken from it
    must not be used after `close`: that is a segmentation fault, not an exception.
    """

    __slots__ = ("address", "array", "fd", "size_bytes", "unit_pages")

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        """Map all of the file behind `fd`, whose size is a multiple of the page. Raises OSError and leaves `fd` open then."""
        size_bytes = os.fstat(fd).st_size
        if size_bytes == 0 or size_bytes % PAGE_BYTES:
            raise OSError(errno.EINVAL, f"a mapping takes whole pages, not {size_bytes} bytes")
        protection = _PROT_READ | _PROT_WRITE if writable else _PROT_READ
        # mmap aligns to 4 KiB. Reserving a granule more and giving back both ends is the only way to choose the alignment without
        # guessing at free addresses; the reservation is never touched, so it costs two calls.
        reserved_bytes = size_bytes + GRANULE_BYTES
        reserved = _mmap(None, reserved_bytes, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        address = -(-reserved // GRANULE_BYTES) * GRANULE_BYTES
        try:
            _mmap(address, size_bytes, protection, _MAP_SHARED | _MAP_NORESERVE | _MAP_FIXED, fd)
        except OSError:
            _munmap(reserved, reserved_bytes)
            raise
        _munmap(reserved, address - reserved)
        _munmap(address + size_bytes, reserved + reserved_bytes - address - size_bytes)
        self.fd = fd
        #: What is mapped, protected, faulted and shown at once, if nothing splits it: 1, or 512 pages on hugetlb. (Not st_blksize:
        #: that is 2 MiB for shared memory too where it may have transparent huge pages.)
        self.unit_pages = os.fstatvfs(fd).f_bsize // PAGE_BYTES
        self.address = address
        self.size_bytes = size_bytes
        #: The bytes, not copied. Reading a hole through it allocates the page (shmem): stay inside `data_extents`.
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        if not writable:
            self.array.flags.writeable = False

    @property
    def pages(self) -> int:
        return self.size_bytes // PAGE_BYTES

    def populate(self, start: int, stop: int) -> None:
        """Take memory for the pages start <= page < stop and map them; what they hold stays. Raises OSError when there is none."""
        self._advise(start, stop, _MADV_POPULATE_WRITE)

    def in_memory(self, pages: PageSet) -> PageSet:
        """Find those of some pages that are in this host's memory, without reading any in: neither holes nor swapped out.

        One mincore(2) a run, 1.1 ms per contiguous GiB.
        """
        starts, stops = [], []
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
            there = np.zeros(stop - start + 2, np.int8)
            address = self.address + start * PAGE_BYTES
            if _libc.mincore(address, (stop - start) * PAGE_BYTES, there[1:].ctypes.data) < 0:
                error = ctypes.get_errno()
                raise OSError(error, f"mincore: {os.strerror(error)}")
            # Only the lowest bit means something; a border of absent pages on either side makes every run have two edges.
            edges = np.flatnonzero(np.diff(there & 1)) + start
            starts.append(edges[::2])
            stops.append(edges[1::2])
        return PageSet.of_runs(np.concatenate(starts), np.concatenate(stops)) if starts else PageSet.empty()

    def prefer_huge(self) -> None:
        """Let what is first touched from now on be 2 MiB pages, where the host allows it (see `huge_pages_allowed`)."""
        self._advise(0, self.pages, _MADV_HUGEPAGE)

    def collapse(self, pages: PageSet) -> int:
        """Map whole granules among `pages` by 2 MiB again, about 120 us each; gives how many could not be.

        What keeps one from it is for the kernel to say: no free 2 MiB page, or a page of it that is in use elsewhere.
        """
        left = 0
        for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
            for granule in range(-(-start // GRANULE_PAGES), stop // GRANULE_PAGES):
                try:
                    self._advise(granule * GRANULE_PAGES, (granule + 1) * GRANULE_PAGES, _MADV_COLLAPSE)
                except OSError:
                    left += 1
        return left

    def _advise(self, start: int, stop: int, advice: int) -> None:
        address, size_bytes = self.address + start * PAGE_BYTES, (stop - start) * PAGE_BYTES
        if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), advice) < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"madvise: {os.strerror(error)}")

    def close(self) -> None:
        """Unmap and close the descriptor; doing it again does nothing."""
        if self.fd >= 0:
            self.array = np.empty(0, np.uint8)
            _munmap(self.address, self.size_bytes)
            os.close(self.fd)
            self.fd = -1


def huge_pages_allowed() -> bool:
    """Ask whether this host gives 2 MiB pages to shared memory that asks for them; only root can change it."""
    try:
        setting = SHMEM_ENABLED.read_text(encoding="ascii")
    except OSError:
        return False
    return "[never]" not in setting and "[deny]" not in setting


def free_hugetlb_bytes() -> int:
    """Tell how much memory this host's pool of 2 MiB pages has left; 0 where it has no pool."""
    try:
        return int((HUGETLB_POOL / "free_hugepages").read_text(encoding="ascii")) * GRANULE_BYTES
    except OSError:
        return 0


def data_extents(fd: int, start_bytes: int = 0, stop_bytes: int | None = None) -> PageSet:
    """Find the pages of a file that are no holes, within [start, stop); swapped-out pages count.

    Two system calls an extent (SEEK_DATA, SEEK_HOLE), 6.5 ms per contiguous GiB. hugetlb files call everything data, which is
    right here: `create` leaves no hole in them.
    Moves no other holder's file position that matters: nobody reads a memfd by position here.
    """
    stop = os.fstat(fd).st_size if stop_bytes is None else stop_bytes
    return data_among(fd, PageSet.span(start_bytes // PAGE_BYTES, pages_of(stop)))


def data_among(fd: int, ranges: PageSet) -> PageSet:
    """Find those pages of `ranges` that are no holes; what lies in a hole or an extent that was found is not asked about again.

    SEEK_HOLE walks to the end of its extent, however little was asked about: for each of thousands of dirty pages of a database
    that still grows, that was 20 to 290 ms of the stun of a 512 MiB guest (1 to 6 now). So a few pages are asked about one by one,
    by SEEK_DATA, and more of them by SEEK_HOLE, once an extent.
    """
    starts: list[int] = []
    stops: list[int] = []
    first, end = -1, 0  # what was found last: data from the first of these bytes to the other, and before it nothing
    for start, stop in zip((ranges.starts * PAGE_BYTES).tolist(), (ranges.stops * PAGE_BYTES).tolist(), strict=True):
        at = start
        while at < stop:
            if at >= end:
                first = _data_from(fd, at)
                few = stop - first <= _FEW_PAGES * PAGE_BYTES
                end = first + PAGE_BYTES if few else os.lseek(fd, first, os.SEEK_HOLE)
            at = max(at, first)
            if at < stop:
                starts.append(at // PAGE_BYTES)
                at = min(end, stop)
                stops.append(pages_of(at))
    return PageSet.of_runs(starts, stops)


def _data_from(fd: int, at: int) -> int:
    """Find the first byte of data from here on; with none left, one behind every file."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return sys.maxsize
        raise
