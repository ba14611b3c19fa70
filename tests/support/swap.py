"""Swap space for the tests that need one: a zram device of their own, removed again whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_CONTROL = Path("/sys/class/zram-control")


def swapped_out_pages() -> int:
    """Count the pages that this machine has swapped out since it started."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("pswpout")).split()[1])


@contextlib.contextmanager
def zram_swap(size_bytes: int) -> Iterator[None]:
    """Have so much compressed swap while this lasts; skips by name where that cannot be."""
    if os.geteuid():
        pytest.skip("page-out is not effective: swap needs root")
    if not (_CONTROL / "hot_add").exists():
        pytest.skip("page-out is not effective: this kernel has no zram")
    if not shutil.which("mkswap") or not shutil.which("swapon"):
        pytest.skip("page-out is not effective: mkswap and swapon are missing")
    number = (_CONTROL / "hot_add").read_text().strip()
    device, settings = f"/dev/zram{number}", Path(f"/sys/block/zram{number}")
    try:
        (settings / "disksize").write_text(str(size_bytes))
        subprocess.run(["mkswap", device], check=True, capture_output=True)
        subprocess.run(["swapon", device], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["swapoff", device], check=False, capture_output=True)
        for _ in range(50):
            try:
                (settings / "reset").write_text("1")
                (_CONTROL / "hot_remove").write_text(number)
                break
            except OSError:  # somebody looks at the device at this moment
                time.sleep(0.1)
