"""userfaultfd: one function per request, errors as OSError, no policy.

Layouts and numbers: include/uapi/linux/userfaultfd.h. Every function takes the descriptor and addresses of the process that
opened it, whichever process calls. `continue_range` and `zeropage` report how far they came beside the error number, because
both may stop half-way (EAGAIN); what to do then is the caller's decision.

A descriptor is opened with UFFD_USER_MODE_ONLY, so that no privilege is needed. Consequence: a page that is missing is not
waited for inside a system call (EFAULT); a guest touches its memory from user code.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import struct

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux.calls import Calls, packed
from pagefire.protocol.pages import PAGE_BYTES, PageRanges

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

_SYSCALL = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API_VERSION = 0xAA


class Feature(enum.IntFlag):
    """What UFFDIO_API may be asked for."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_HUGETLBFS = 1 << 4
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    MINOR_HUGETLBFS = 1 << 9
    MINOR_SHMEM = 1 << 10
    EXACT_ADDRESS = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16


class Mode(enum.IntFlag):
    """What a registered range reports. Registering again adds modes (checked by probe)."""

    MISSING = 1
    WP = 2
    MINOR = 4


#: What the source asks for: the kernel notes writes by itself and lets them pass.
TRACK_ASYNC = Feature.WP_ASYNC | Feature.WP_UNPOPULATED | Feature.WP_HUGETLBFS_SHMEM | Feature.PAGEFAULT_FLAG_WP
#: What the source asks for where WP_ASYNC is missing: every first write is reported and waits for its handler.
TRACK_SYNC = Feature.WP_UNPOPULATED | Feature.WP_HUGETLBFS_SHMEM | Feature.PAGEFAULT_FLAG_WP
#: What the destination asks for: absent and unpublished pages are reported and wait. The other for memory on hugetlb.
DEMAND_PAGING = Feature.MISSING_SHMEM | Feature.MINOR_SHMEM
DEMAND_PAGING_HUGETLB = Feature.MISSING_HUGETLBFS | Feature.MINOR_HUGETLBFS


def _request(number: int, size: int, *, read_only: bool = False) -> int:
    direction = 2 if read_only else 3
    return direction << 30 | size << 16 | 0xAA << 8 | number


_API = struct.Struct("=QQQ")
_RANGE = struct.Struct("=QQ")
_REGISTER = struct.Struct("=QQQQ")
_WRITEPROTECT = struct.Struct("=QQQ")
_FILL = struct.Struct("=QQQq")
assert (_API.size, _RANGE.size, _REGISTER.size, _WRITEPROTECT.size, _FILL.size) == (24, 16, 32, 24, 32)

_UFFDIO_API = _request(0x3F, _API.size)
_UFFDIO_REGISTER = _request(0x00, _REGISTER.size)
_UFFDIO_UNREGISTER = _request(0x01, _RANGE.size, read_only=True)
_UFFDIO_WAKE = _request(0x02, _RANGE.size, read_only=True)
_UFFDIO_ZEROPAGE = _request(0x04, _FILL.size)
_UFFDIO_WRITEPROTECT = _request(0x06, _WRITEPROTECT.size)
_UFFDIO_CONTINUE = _request(0x07, _FILL.size)

#: One event as read from the descriptor (struct uffd_msg): kind, fault flags, faulting address.
FAULT = np.dtype(
    {
        "names": ["event", "flags", "address"],
        "formats": ["u1", "<u8", "<u8"],
        "offsets": [0, 8, 16],
        "itemsize": 32,
    }
)
EVENT_PAGEFAULT = 0x12
FAULT_WRITE = 1
FAULT_WP = 2
FAULT_MINOR = 4


def _ioctl(fd: int, request: int, argument: ctypes.Array[ctypes.c_char]) -> int:
    """Issue one request; give the error number, 0 when it succeeded."""
    return 0 if _libc.ioctl(fd, request, argument) >= 0 else ctypes.get_errno()


def _ioctl_or_raise(fd: int, request: int, packed: bytes, name: str) -> bytes:
    argument = ctypes.create_string_buffer(packed, len(packed))
    error = _ioctl(fd, request, argument)
    if error:
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return argument.raw


def _open() -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(38, f"userfaultfd: its number on {platform.machine()} is not known here")
    fd = int(_libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY))
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    return fd


def supported_features() -> Feature:
    """Ask the kernel what UFFDIO_API offers; raises OSError where there is no userfaultfd at all."""
    fd = _open()
    try:
        reply = _ioctl_or_raise(fd, _UFFDIO_API, _API.pack(_API_VERSION, 0, 0), "UFFDIO_API")
    finally:
        os.close(fd)
    return Feature(_API.unpack(reply)[1] & (max(Feature) * 2 - 1))


def open_uffd(features: int) -> int:
    """Open a descriptor for this process's memory with just these features; the caller closes it. OSError EINVAL: not offered."""
    fd = _open()
    try:
        _ioctl_or_raise(fd, _UFFDIO_API, _API.pack(_API_VERSION, features, 0), "UFFDIO_API")
    except OSError:
        os.close(fd)
        raise
    return fd


def register(fd: int, address: int, size_bytes: int, modes: Mode) -> None:
    """Report `modes` for a range; adds to the modes that it has. EBUSY: another descriptor has it."""
    _ioctl_or_raise(fd, _UFFDIO_REGISTER, _REGISTER.pack(address, size_bytes, modes, 0), "UFFDIO_REGISTER")


def unregister(fd: int, address: int, size_bytes: int) -> None:
    """Report nothing more for a range; removes write protection and wakes whoever waits in it."""
    _ioctl_or_raise(fd, _UFFDIO_UNREGISTER, _RANGE.pack(address, size_bytes), "UFFDIO_UNREGISTER")


def wake(fd: int, address: int, size_bytes: int) -> None:
    """Let every thread that waits in the range fault again."""
    _ioctl_or_raise(fd, _UFFDIO_WAKE, _RANGE.pack(address, size_bytes), "UFFDIO_WAKE")


def write_protect(fd: int, address: int, size_bytes: int, *, protect: bool) -> None:
    """Protect a range, or unprotect it and wake whoever waits to write there."""
    _ioctl_or_raise(
        fd, _UFFDIO_WRITEPROTECT, _WRITEPROTECT.pack(address, size_bytes, int(protect)), "UFFDIO_WRITEPROTECT"
    )


def protect_calls(fd: int, address: int, ranges: PageRanges) -> Calls:
    """List the calls that protect ranges of memory that begins at `address`, page by page: 2 MiB mappings in it are split."""
    words = np.empty((len(ranges.starts), 3), np.uint64)
    words[:, 0] = ranges.starts * PAGE_BYTES + address
    words[:, 1] = ranges.counts * PAGE_BYTES
    words[:, 2] = 1
    return Calls(fd, _UFFDIO_WRITEPROTECT, packed(words), "UFFDIO_WRITEPROTECT")


def continue_range(fd: int, address: int, size_bytes: int) -> tuple[int, int]:
    """Map pages that the file already has; gives (bytes mapped, error number), of which both may be set."""
    return _fill(fd, _UFFDIO_CONTINUE, address, size_bytes)


def continue_runs(
    fd: int, address: int, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> tuple[int, int, int]:
    """Map runs of pages, start <= page < stop, of memory at `address`, one call each, until one is not mapped whole.

    Gives how many runs were, and of the next one the bytes that were mapped and the error number; zeros when all were. 1.2 us a run
    less than `continue_range` takes: the arguments of all are packed at once.
    """
    words = np.zeros((starts.size, 4), np.int64)
    np.multiply(starts, PAGE_BYTES, out=words[:, 0])
    words[:, 0] += address
    np.multiply(stops - starts, PAGE_BYTES, out=words[:, 1])
    at = words.ctypes.data
    for run in range(starts.size):
        if _libc.ioctl(fd, _UFFDIO_CONTINUE, at) < 0:
            return run, max(int(words[run, 3]), 0), ctypes.get_errno()
        at += _FILL.size
    return starts.size, 0, 0


def zeropage(fd: int, address: int, size_bytes: int) -> tuple[int, int]:
    """Fill holes of the file with zero pages and map them; gives (bytes filled, error number), of which both may be set."""
    return _fill(fd, _UFFDIO_ZEROPAGE, address, size_bytes)


def _fill(fd: int, request: int, address: int, size_bytes: int) -> tuple[int, int]:
    argument = ctypes.create_string_buffer(_FILL.pack(address, size_bytes, 0, 0), _FILL.size)
    error = _ioctl(fd, request, argument)
    return max(_FILL.unpack(argument.raw)[3], 0), error


def read_faults(fd: int, limit: int = 64) -> npt.NDArray[np.void]:
    """Read waiting events as an array of `FAULT`; empty when there is none."""
    try:
        return np.frombuffer(os.read(fd, limit * FAULT.itemsize), FAULT)
    except BlockingIOError:
        return np.empty(0, FAULT)
