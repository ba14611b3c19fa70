"""This host's settings for huge pages, changed for a while and put back whatever happens.

The change is made by a keeper, a process of its own, which undoes it when nobody holds the other end of its pipe any more: so also
when whoever wanted it was killed. While it lasts the keeper locks the setting itself (flock(2)): two that change one setting wait
for each other, because each would put back what the other has set. `python -m pagefire.scripts.huge_pages` is the keeper.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil

from pagefire.guest_workload.linux.memfd import HUGETLB_POOL, SHMEM_ENABLED, free_hugetlb_bytes
from pagefire.protocol.errors import FeatureMissing
from pagefire.protocol.pages import GRANULE_BYTES

_POOL = HUGETLB_POOL / "nr_hugepages"
_THP, _HUGETLB = "transparent huge pages for shared memory", "a pool of 2 MiB pages"
_SET, _MISSING = "set", "missing: "
_ENOUGH = ("advise", "always", "within_size", "force")


@contextlib.contextmanager
def transparent_huge_pages() -> Iterator[None]:
    """Let shared memory that asks for 2 MiB pages have them while this lasts; raises FeatureMissing where that cannot be."""
    with _kept("thp", _THP):
        yield


@contextlib.contextmanager
def hugetlb_pool(size_bytes: int) -> Iterator[None]:
    """Have so much memory free in the host's pool of 2 MiB pages while this lasts; raises FeatureMissing where that cannot be."""
    with _kept(str(size_bytes), _HUGETLB):
        yield


@contextlib.contextmanager
def _kept(what: str, feature: str) -> Iterator[None]:
    # A session of its own: a Ctrl-C at the terminal is for whoever uses the setting, and the keeper goes when that has gone.
    keeper = subprocess.Popen(
        [sys.executable, "-m", "pagefire.scripts.huge_pages", what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        answer = keeper.stdout.readline().strip()
        if answer != _SET:
            raise FeatureMissing(
                f"this host does not give {feature}",
                answer.removeprefix(_MISSING) or "the keeper of the setting has ended",
            )
        yield
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()


@contextlib.contextmanager
def _thp_set() -> Iterator[str]:
    if not SHMEM_ENABLED.exists():
        yield "this kernel has none"
        return
    with SHMEM_ENABLED.open() as setting:
        fcntl.flock(setting, fcntl.LOCK_EX)
        before = SHMEM_ENABLED.read_text().split("[")[1].split("]")[0]
        if before in _ENOUGH:
            yield ""
            return
        if os.geteuid():
            yield f"{SHMEM_ENABLED} is {before}, and only root can change it"
            return
        SHMEM_ENABLED.write_text("advise")
        try:
            yield ""
        finally:
            SHMEM_ENABLED.write_text(before)


@contextlib.contextmanager
def _pool_set(size_bytes: int) -> Iterator[str]:
    if not _POOL.exists():
        yield "this kernel has no hugetlb"
        return
    with _POOL.open() as setting:
        fcntl.flock(setting, fcntl.LOCK_EX)
        if free_hugetlb_bytes() >= size_bytes:
            yield ""
            return
        if os.geteuid():
            yield "it is too small, and only root can change it"
            return
        if size_bytes > psutil.virtual_memory().available:
            # The kernel would take what there is, from everybody, before it finds that it is not enough.
            yield "there is less memory than that"
            return
        before = int(_POOL.read_text())
        try:
            _POOL.write_text(str(before + size_bytes // GRANULE_BYTES))
            yield "" if free_hugetlb_bytes() >= size_bytes else "memory has too few free pages of 2 MiB"
        finally:
            _POOL.write_text(str(before))


def main() -> None:
    # Only the end of whoever asked undoes it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    what = sys.argv[1]
    with _thp_set() if what == "thp" else _pool_set(int(what)) as why_not:
        print(f"{_MISSING}{why_not}" if why_not else _SET, flush=True)
        if not why_not:
            sys.stdin.read()


if __name__ == "__main__":
    main()
