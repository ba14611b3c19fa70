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


def test_what_is_free_is_given_back_when_a_migration_has_ended() -> None:
    code = """
import re
from pathlib import Path
import numpy as np
from pagefire.protocol.transport import heap
def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
heap.settle()
before = own()
arrays = [np.ones(1 << 20, np.uint8) for _ in range(64)]
# A hole below what is in use: the end of the heap is not all that is free.
del arrays[:-1]
kept = own()
heap.tidy()
print(before, kept, own())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, kept, after = map(int, done.stdout.split())
    assert kept >= before + 60
    assert after <= before + 10
