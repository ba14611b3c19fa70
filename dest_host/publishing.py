"""Showing pages to the guest: UFFDIO_CONTINUE over what the memfd holds, with what the kernel may answer.

On hugetlb all of it goes by units of 2 MiB: a page of 4 KiB cannot be shown there, and the file has no hole (memfd.create).

The guest's mapping is registered MISSING | MINOR before it first runs, so it sees no page that was not published, however much of
it lies in the file already. COPY would refuse a page that the file has (EEXIST), and stale pages are such pages.

EAGAIN may mean partial success: go on after what was mapped, never repeat the range. EEXIST speaks of the first page only: it is
mapped already; wake whoever waits, skip one. EFAULT: the file has no page there; it is zero. ENOENT: the range is no longer
registered, so the kernel serves it by itself. ESRCH: the guest is gone.
"""

from __future__ import annotations

import errno
import os

from pagefire.guest_workload.linux import userfaultfd
from pagefire.protocol.errors import GuestError
from pagefire.protocol.pages import PAGE_BYTES, PageSet


class Publisher:
    """Publishes pages of one guest. Any thread; a page must be full, and its filler done, before it is published."""

    def __init__(self, uffd: int, address: int, memory_bytes: int, unit_pages: int = 1) -> None:
        self._uffd = uffd
        self._unit_bytes = unit_pages * PAGE_BYTES
        self._address = address
        self._memory_bytes = memory_bytes
        #: Whether the guest may have to wait for pages: until `disarm` has succeeded once.
        self.armed = True

    def arm(self) -> None:
        """From now on the guest waits for every page it touches until that page is published."""
        modes = userfaultfd.Mode.MISSING | userfaultfd.Mode.MINOR
        userfaultfd.register(self._uffd, self._address, self._memory_bytes, modes)

    def disarm(self) -> None:
        """Every page is here and current: the guest needs nobody any more. Wakes whoever waits. Raises GuestError, OSError."""
        try:
            userfaultfd.unregister(self._uffd, self._address, self._memory_bytes)
        except OSError as error:
            # So the kernel says that the memory is gone with its process (userfaultfd_unregister in fs/userfaultfd.c).
            raise _gone() if error.errno == errno.ENOMEM else error from error
        # The kernel wakes first and ends the registration second: a fault that holds only its mapping's own lock can begin to wait
        # between the two, and nobody would ever answer it (seen once in some 20 memories under load, Linux 6.18). Ending the
        # registration waits for such faults, so after it one more wake finds them all.
        userfaultfd.wake(self._uffd, self._address, self._memory_bytes)
        self.armed = False

    def publish(self, start: int, stop: int) -> None:
        """Map the pages start <= page < stop, whole units which the file holds, and wake whoever waits for them."""
        at, end = self._address + start * PAGE_BYTES, self._address + stop * PAGE_BYTES
        while at < end:
            mapped_bytes, error = userfaultfd.continue_range(self._uffd, at, end - at)
            at += mapped_bytes
            if error in (0, errno.EAGAIN):
                continue
            if error == errno.ENOENT:
                return
            if error == errno.EFAULT:
                self._zero(at)
            elif error == errno.EEXIST:
                userfaultfd.wake(self._uffd, at, self._unit_bytes)
            else:
                raise _unexpected("UFFDIO_CONTINUE", error)
            at += self._unit_bytes

    def publish_all(self, pages: PageSet) -> None:
        """Do for every run of a set what `publish` does for one."""
        first = 0
        while first < len(pages):
            served, mapped_bytes, error = userfaultfd.continue_runs(
                self._uffd, self._address, pages.starts[first:], pages.stops[first:]
            )
            first += served
            if error:
                # Whatever it was, the next call says it again.
                self.publish(int(pages.starts[first]) + mapped_bytes // PAGE_BYTES, int(pages.stops[first]))
                first += 1

    def publish_zero(self, page: int) -> None:
        """Map a zero page where the file holds nothing, and wake whoever waits for it."""
        self._zero(self._address + page * PAGE_BYTES)

    def _zero(self, at: int) -> None:
        error = errno.EAGAIN
        while error == errno.EAGAIN:
            filled_bytes, error = userfaultfd.zeropage(self._uffd, at, PAGE_BYTES)
            if filled_bytes:
                return
        if error == errno.EEXIST:
            userfaultfd.continue_range(self._uffd, at, PAGE_BYTES)
            userfaultfd.wake(self._uffd, at, PAGE_BYTES)
        elif error not in (0, errno.ENOENT):
            raise _unexpected("UFFDIO_ZEROPAGE", error)


def _unexpected(request: str, error: int) -> Exception:
    if error == errno.ESRCH:
        return _gone()
    return OSError(error, f"{request}: {os.strerror(error)}")


def _gone() -> GuestError:
    return GuestError("the guest ended while its pages were arriving")
