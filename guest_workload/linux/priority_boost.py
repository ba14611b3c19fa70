"""All threads of this process before every ordinary one, while pages are missing after a resume.

Who fetches a page for a vCPU has a priority already, and it is not enough: whoever holds Python's lock while an ordinary thread has
its CPU keeps all others of the process from running, and the page may be one of those that an ordinary thread is about to bring. So
the vCPUs, which soon need a page anyway, give way to those who bring the pages. Measured on two cores, hybrid, 2 GiB, without and
with it, in turn, medians. 50,000 stores/s in 256 MiB, 1,500 pages left, 24 migrations each, three times: 47 and 8 waits, the
longest 4.3 and 1.6 ms, the last page after 10.1 and 6.1 ms, 95% of the rate back after 5 ms both; the first commit of the last vCPU
comes 0.5 to 1 ms later. At full rate, 250 MiB and 1 GiB left (8 migrations each, twice): 730 and 280 ms of waiting, 3,400 and
1,300; the last page after 0.53 and 0.33 s, 2.5 and 1.5 s. Mode postcopy at full rate is the exception: of 1 GiB the last page comes
after 1.4 and 1.1 s, but the guest has less than half its rate for 0.85 and 1.0 s, and of 2 GiB for 1.0 and 1.6 s, since most of
what is pushed it does not need: hence `MOST_BYTES`.
"""

from __future__ import annotations

import threading

from pagefire.guest_workload.linux import scheduling

#: Where more is left, the guest would have to give way for too long.
MOST_BYTES = 1 << 30


class PriorityBoost:
    """Wanted from `begin` to `end` by whoever has made it; several may want it at once. Nothing happens where it is not allowed."""

    _lock = threading.Lock()
    _wanted_by = 0
    #: What the threads were. Of the class, as they are the process's.
    _before: dict[int, scheduling.Attributes] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self._wanted = False

    def begin(self, left_bytes: int) -> None:
        """Raise what threads there are, in 0.1 ms, while so much is to be moved. More than once does nothing."""
        with PriorityBoost._lock:
            if self._wanted or left_bytes > MOST_BYTES:
                return
            self._wanted = True
            PriorityBoost._wanted_by += 1
            if PriorityBoost._wanted_by == 1:
                PriorityBoost._before = scheduling.raise_all_threads()

    def end(self) -> None:
        """Let them be as they were, where nobody else wants it. More than once does nothing."""
        with PriorityBoost._lock:
            if not self._wanted:
                return
            self._wanted = False
            PriorityBoost._wanted_by -= 1
            if not PriorityBoost._wanted_by:
                scheduling.lower_threads(PriorityBoost._before)
