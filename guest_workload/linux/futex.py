"""futex: sleep until a 32-bit word of shared memory changes, and wake who sleeps on it.

Number and operations: include/uapi/linux/futex.h. The words are SHARED, not private: guest and host map them at different
addresses, and the kernel finds them by file and offset. FUTEX_WAKE is a full memory barrier on both architectures; a store made
before a call of `wake` is seen by others before any load made after it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = (
    ctypes.c_long,  # number
    ctypes.c_void_p,  # word
    ctypes.c_long,  # operation
    ctypes.c_ulong,  # expected value, or how many to wake
    ctypes.c_char_p,  # timeout
    ctypes.c_void_p,
    ctypes.c_ulong,
)

#: The system call's number; 98 is that of every architecture with the generic table (aarch64, riscv64, loongarch64).
SYSCALL = {"x86_64": 202}.get(platform.machine(), 98)
FUTEX_WAIT = 0
FUTEX_WAKE = 1
_EVERY_WAITER = 0x7FFF_FFFF

_TIMESPEC = struct.Struct("=qq")
assert _TIMESPEC.size == 16


def wait(address: int, expected: int, timeout_s: float | None = None) -> bool:
    """Sleep while the word at `address` is `expected`; False when `timeout_s` passed first, else True.

    True says only "look again": the word differed already (EAGAIN), somebody woke us, or a signal did. Raises OSError.
    """
    timeout: bytes | None = None
    if timeout_s is not None:
        timeout_ns = max(int(timeout_s * 1e9), 0)
        timeout = _TIMESPEC.pack(timeout_ns // 1_000_000_000, timeout_ns % 1_000_000_000)
    if _libc.syscall(SYSCALL, address, FUTEX_WAIT, expected, timeout, None, 0) == 0:
        return True
    error = ctypes.get_errno()
    if error == errno.ETIMEDOUT:
        return False
    if error in (errno.EAGAIN, errno.EINTR):
        return True
    raise OSError(error, f"futex wait: {os.strerror(error)}")


def wake(address: int, waiters: int = _EVERY_WAITER) -> int:
    """Wake at most `waiters` sleepers of the word at `address`; gives how many there were. Raises OSError."""
    woken = int(_libc.syscall(SYSCALL, address, FUTEX_WAKE, waiters, None, None, 0))
    if woken < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"futex wake: {os.strerror(error)}")
    return woken
