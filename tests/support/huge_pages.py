"""Transparent huge pages and hugetlb for the tests that need them; the host's settings are put back whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagefire.guest_workload.linux.memfd import HUGETLB_POOL, SHMEM_ENABLED, free_hugetlb_bytes
from pagefire.protocol.pages import GRANULE_BYTES


@contextlib.contextmanager
def _alone(setting: str) -> Iterator[None]:
    """Keep other tests of this machine from changing the same setting meanwhile: each would put back what the other has set."""
    # Not tempfile's: a test may have a temporary directory of its own.
    path = Path("/tmp") / f"pagefire-tests-{setting}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """Let memory that asks for huge pages have them while this lasts; skips by name where that cannot be."""
    if not SHMEM_ENABLED.exists():
        pytest.skip("this kernel has no transparent huge pages for shared memory")
    with _alone("huge-pages"):
        yield from _with_huge_pages()


def _with_huge_pages() -> Iterator[None]:
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


@contextlib.contextmanager
def hugetlb_pool(size_bytes: int) -> Iterator[None]:
    """Have so much more memory in the host's pool of 2 MiB pages while this lasts; skips by name where that cannot be."""
    pool = HUGETLB_POOL / "nr_hugepages"
    if not pool.exists():
        pytest.skip("this kernel has no hugetlb")
    with _alone("hugetlb"):
        yield from _with_pool(pool, size_bytes)


def _with_pool(pool: Path, size_bytes: int) -> Iterator[None]:
    if free_hugetlb_bytes() >= size_bytes:
        yield
        return
    if os.geteuid():
        pytest.skip("the pool of 2 MiB pages is too small, and only root can change it")
    before = int(pool.read_text())
    try:
        pool.write_text(str(before + size_bytes // GRANULE_BYTES))
        if free_hugetlb_bytes() < size_bytes:
            pytest.skip("this host's memory has too few free pages of 2 MiB for a pool")
        yield
    finally:
        pool.write_text(str(before))
