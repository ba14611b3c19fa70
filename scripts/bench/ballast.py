"""Free memory, made warm before a measurement or held during it.

Free memory that lay idle is taken back by some hypervisors (free page reporting, after 2 s) and costs several times as much when it
is touched again. So before every measurement a child touches and frees as much as it needs. Which free page the kernel gives next
cannot be told, though, so that does not help much (0.5-0.9 GB/s right afterwards, 1.2 the second time). Where the machine is yours,
`--hold-memory` lets a child hold all free memory but what the benchmark needs: then what is given next was touched just before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import psutil
from rich.console import Console

from pagefire.guest_workload.linux import memfd
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.units import format_size

#: What is left alone when the rest is touched, so that nobody has to be killed for it.
_UNTOUCHED_BYTES = 384 << 20


def free_bytes() -> int:
    """Tell how much memory nobody uses."""
    return int(psutil.virtual_memory().free)


def warm_pool(size_bytes: int) -> None:
    """Touch and free that much memory, or what there is, in a child, so that what is taken next is at hand."""
    os.waitpid(_holding(max(min(size_bytes, free_bytes() - _UNTOUCHED_BYTES), 0), lambda: None), 0)


@contextlib.contextmanager
def all_held_but(needed_bytes: int, wanted: bool, console: Console) -> Iterator[None]:
    """Hold all free memory but that much while this lasts, if that is `wanted`."""
    if not wanted:
        yield
        return
    console.print(f"  all free memory but {format_size(needed_bytes)} is held until the end", soft_wrap=True)
    ballast = Ballast(free_bytes() - needed_bytes)
    try:
        yield
    finally:
        ballast.release()


class Ballast:
    """A child that holds so much memory, none below a page, from now until `release`."""

    def __init__(self, held_bytes: int) -> None:
        ours, theirs = os.pipe()

        def hold() -> None:
            # Ends with this process too, however that ends: then nobody has the other end any more.
            os.close(theirs)
            os.read(ours, 1)

        self._child = _holding(held_bytes, hold)
        os.close(ours)
        self._release = theirs

    def release(self) -> None:
        os.close(self._release)
        os.waitpid(self._child, 0)


def _holding(size_bytes: int, until: Callable[[], None]) -> int:
    """Fork a child that takes so much memory, returns from `until` and ends; gives its pid once the memory is taken."""
    taken, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if size_bytes >= PAGE_BYTES:
                memory = memfd.Mapping(memfd.create("held", size_bytes // PAGE_BYTES * PAGE_BYTES))
                memory.populate(0, memory.pages)
            os.write(tell, b"!")
            until()
        finally:
            os._exit(0)
    os.close(tell)
    done = os.read(taken, 1)
    os.close(taken)
    if not done:
        os.waitpid(child, 0)
        raise PagefireError(f"{format_size(size_bytes)} of memory could not be taken", "", "run it on an idle machine")
    return child
