"""Runs a command on a kernel that lacks something: the system calls named are refused to it and to all its children.

    python forbidding.py userfaultfd -- COMMAND ...     userfaultfd(2) answers EPERM, as in many containers
    python forbidding.py pagemap-scan -- COMMAND ...    ioctl PAGEMAP_SCAN answers ENOTTY, as a kernel before 6.7 does

A seccomp filter (seccomp(2), struct sock_filter): the command is the real one, its kernel really refuses. x86-64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
#: AUDIT_ARCH, userfaultfd, ioctl.
_MACHINES = {"x86_64": (0xC000003E, 323, 16), "aarch64": (0xC00000B7, 282, 29)}
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENT_1 = 0, 4, 24
_PAGEMAP_SCAN = 0xC0606610

Instruction = tuple[int, int, int, int]


def _filter(forbidden: set[str]) -> list[Instruction]:
    arch, userfaultfd, ioctl = _MACHINES[platform.machine()]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_IF_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    if "userfaultfd" in forbidden:
        program += [(_JUMP_IF_EQUAL, 0, 1, userfaultfd), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    if "pagemap-scan" in forbidden:
        program += [
            (_JUMP_IF_EQUAL, 0, 3, ioctl),
            (_LOAD, 0, 0, _AT_ARGUMENT_1),
            (_JUMP_IF_EQUAL, 0, 1, _PAGEMAP_SCAN),
            (_RETURN, 0, 0, _ERRNO | errno.ENOTTY),
        ]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def main() -> None:
    cut = sys.argv.index("--")
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(set(sys.argv[1:cut])))
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("@HP", len(packed) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
        error = ctypes.get_errno()
        raise SystemExit(f"forbidding: {os.strerror(error)}")
    os.execvp(sys.argv[cut + 1], sys.argv[cut + 1 :])


if __name__ == "__main__":
    main()
