"""Lists of like ioctls, packed so that any thread can make them: one of Python's here, or vCPUs of the guest, natively.

What is to be done to a guest's page tables is known before who does it, in which order and while which vCPUs run: that is the
install policy's business, and it may take the same list to either side.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

#: The number of ioctl among the system calls.
IOCTL_SYSCALL = {"x86_64": 16}.get(platform.machine(), 29)


@dataclass(frozen=True, slots=True)
class Calls:
    """Ioctls of one `request` on one descriptor `fd`, which belongs to whoever made the list.

    `arguments` is uint8 [calls, bytes of one argument]; the kernel may write into it, so a list serves once.
    """

    fd: int
    request: int
    arguments: npt.NDArray[np.uint8]
    name: str

    def __len__(self) -> int:
        return len(self.arguments)

    def issue(self, after_each: Callable[[], None] = lambda: None) -> None:
        """Make all of them in this thread, in order, and do something after each; raises OSError at the first that fails."""
        at, stride = self.arguments.ctypes.data, self.arguments.strides[0] if len(self) else 0
        for _ in range(len(self)):
            if _libc.ioctl(self.fd, self.request, at) < 0:
                raise self.failed(ctypes.get_errno())
            at += stride
            after_each()

    def failed(self, error: int) -> OSError:
        """Make the exception of a call that gave this error number."""
        return OSError(error, f"{self.name}: {os.strerror(error)}")


def packed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """View [calls, words of one argument] as bytes."""
    return np.ascontiguousarray(words).view(np.uint8)
