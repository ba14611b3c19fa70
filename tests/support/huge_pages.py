"""Transparent huge pages for shared memory, for the tests that need them; the host's setting is put back whatever happens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from pagefire.guest_workload.linux.memfd import SHMEM_ENABLED


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """Let memory that asks for huge pages have them while this lasts; skips by name where that cannot be."""
    if not SHMEM_ENABLED.exists():
        pytest.skip("this kernel has no transparent huge pages for shared memory")
    before = SHMEM_ENABLED.read_text().split("[")[1].split("]")[0]
    if before in ("advise", "always", "within_size", "force"):
        yield
        return
    if os.geteuid():
        pytest.skip(f"{SHMEM_ENABLED} is {before}, and only root can change it")
    SHMEM_ENABLED.write_text("advise")
    try:
        yield
    finally:
        SHMEM_ENABLED.write_text(before)
