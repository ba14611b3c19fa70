"""The keeper of the huge page settings: what it changed is put back, also when whoever asked for it was killed."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pagefire.guest_workload.linux.memfd import HUGETLB_POOL, SHMEM_ENABLED, free_hugetlb_bytes, huge_pages_allowed
from pagefire.protocol.errors import FeatureMissing
from pagefire.protocol.pages import GRANULE_BYTES
from pagefire.scripts import huge_pages as settings
from tests.support.huge_pages import huge_pages, hugetlb_pool

pytestmark = pytest.mark.kernel

POOL = HUGETLB_POOL / "nr_hugepages"
HOLDS = """
import sys, time
from pagefire.scripts.huge_pages import hugetlb_pool
with hugetlb_pool(int(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def at_rest(setting: Path) -> str:
    """Read a setting when nobody holds it changed: another test may."""
    with setting.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return setting.read_text()


def test_huge_pages_are_allowed_for_so_long() -> None:
    with huge_pages():
        assert huge_pages_allowed()
    before = at_rest(SHMEM_ENABLED)
    with huge_pages():
        pass
    assert at_rest(SHMEM_ENABLED) == before


def test_a_pool_has_the_size_that_was_asked_for() -> None:
    with hugetlb_pool(8 * GRANULE_BYTES):
        assert free_hugetlb_bytes() >= 8 * GRANULE_BYTES


def test_a_pool_that_memory_cannot_give_is_refused_before_anything_is_taken() -> None:
    with hugetlb_pool(GRANULE_BYTES):
        pass  # it can be had here at all
    with (
        pytest.raises(FeatureMissing, match="does not give a pool of 2 MiB pages: there is less memory"),
        settings.hugetlb_pool(1 << 60),
    ):
        pytest.fail("there is no such memory")


def test_what_was_changed_is_put_back_when_whoever_asked_is_killed() -> None:
    with hugetlb_pool(GRANULE_BYTES):
        pass
    before = at_rest(POOL)
    asked_bytes = free_hugetlb_bytes() + 8 * GRANULE_BYTES
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(asked_bytes)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert free_hugetlb_bytes() >= asked_bytes
        process.send_signal(signal.SIGKILL)
    # Waits for the keeper to let go of its lock.
    assert at_rest(POOL) == before
