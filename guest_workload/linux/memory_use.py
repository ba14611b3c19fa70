"""What a process takes of its host's memory: /proc/PID/status, proc(5)."""

from __future__ import annotations

import os
from pathlib import Path


def memory_use_bytes(pid: int | None = None) -> tuple[int, int]:
    """Give the bytes of a process's own (not shared) memory and of its page tables; this one by default, zeros when it is gone.

    Guest memory is shared and not counted: each of its pages exists once, whoever maps it.
    """
    try:
        lines = Path(f"/proc/{os.getpid() if pid is None else pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    own, tables = (int(sizes.get(name, "0").split()[0]) << 10 for name in ("RssAnon", "VmPTE"))
    return own, tables
