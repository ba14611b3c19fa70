"""The allocator's settings, each in a process of its own: they hold for its lifetime."""

from __future__ import annotations

import subprocess
import sys

#: Counts the page faults of filling 60 MiB of fresh arrays, the third time: by then a heap that keeps its memory has it.
_COUNT = """
import resource
import numpy as np
from pagefire.protocol.transport import heap
settled = {settle} and heap.settle()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(20 << 20, np.uint8) for _ in range(3)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del arrays
print(int(settled), faults)
"""


def faults(*, settle: bool) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT.format(settle=settle)], capture_output=True, text=True, check=True
    )
    settled, count = done.stdout.split()
    return settled == "1", int(count)


def test_freed_memory_is_used_again_without_faults() -> None:
    settled, kept = faults(settle=True)
    assert settled
    # Without the settings glibc gives it back: 30 faults where memory comes in huge pages, else 15,360.
    assert faults(settle=False)[1] >= 30 > kept
