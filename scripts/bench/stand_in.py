"""A process that is as busy as a daemon in a migration, and has nothing to do with the guest.

It copies memory, since that is what a daemon's CPU time goes into, for a given share of one CPU, in a session of its own as the
daemons are, with the time slice that they ask for. `python -m pagefire.scripts.bench.stand_in SHARE` is one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from pagefire.guest_workload.linux import scheduling
from pagefire.scripts.bench.process_figures import cpu_s

_MEMORY_WORDS, _PIECE_WORDS = (64 << 20) // 8, (256 << 10) // 8
#: What it lags behind by more than this is dropped: a daemon that does not get the CPU takes longer, not more.
_MOST_LAG_S = 0.02
_NAP_S = 0.0005
_READY = "ready"


class StandIns:
    """The processes of `stand_ins`; `shares` tells what they have taken of a CPU each since the last call."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._pids = [process.pid for process in processes]
        self._before = self._now()

    def _now(self) -> tuple[float, list[float]]:
        return time.monotonic(), [cpu_s(pid) for pid in self._pids]

    def shares(self) -> list[float]:
        """Give CPU seconds per second of each, since this was last asked, or since they began."""
        (then_s, before), (now_s, after) = self._before, self._now()
        self._before = now_s, after
        return [(one - other) / (now_s - then_s) for one, other in zip(after, before, strict=True)]


@contextlib.contextmanager
def stand_ins(shares: Sequence[float]) -> Iterator[StandIns]:
    """Run one process for each share (CPU seconds per second, at most 1) while this lasts; all are busy when it begins."""
    with contextlib.ExitStack() as stack:
        processes = []
        for share in shares:
            process = subprocess.Popen(
                [sys.executable, "-m", "pagefire.scripts.bench.stand_in", str(share)],
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield StandIns(processes)


def main() -> None:
    share, parent = float(sys.argv[1]), os.getppid()
    scheduling.set_slice(scheduling.PROMPT_SLICE_NS)
    from_words, to_words = np.ones(_MEMORY_WORDS, np.uint64), np.zeros(_MEMORY_WORDS, np.uint64)
    print(_READY, flush=True)
    at, due_s, used_s, then_s = 0, 0.0, time.process_time(), time.monotonic()
    # Ends with whoever started it, however that ends.
    while os.getppid() == parent:
        now_s, now_used_s = time.monotonic(), time.process_time()
        due_s = min(due_s + share * (now_s - then_s) - (now_used_s - used_s), _MOST_LAG_S)
        then_s, used_s = now_s, now_used_s
        if due_s <= 0:
            time.sleep(_NAP_S)
            continue
        to_words[at : at + _PIECE_WORDS] = from_words[at : at + _PIECE_WORDS]
        at = (at + _PIECE_WORDS) % _MEMORY_WORDS


if __name__ == "__main__":
    main()
