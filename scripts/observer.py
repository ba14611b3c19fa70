"""The observer: a process of its own that watches the commit counters of both ends and measures the blackout from outside.

Knows nothing of the migration: it samples both control blocks and notes when the source's counter last moved and when the
destination's first did. Its resolution is its sampling period, which it reports. `python -m pagefire.scripts.observer`, started
by `pagefire migrate` where both daemons are on this machine; it says "watching" when it has the source in view, and at the end
prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.observation import open_control
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.transport.control_socket import request

#: Sampling disturbs what it measures on two busy cores: with 0.1 ms the stun was 21.9 ms, with 0.5 ms 16.6 (medians of five
#: alternating pairs, one of them the other way round). The period adds to the observation's error, which is held to 1 ms.
_SAMPLE_S = 0.0004
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Observation:
    """`stun_s` from the last commit seen at the source to the first at the destination; `resolution_s` the longest gap between
    two samples around it, which is its error."""

    stun_s: float
    resolution_s: float


def observe(source: ControlBlock, destination_socket: Path, name: str, timeout_s: float) -> Observation | None:
    """Watch until the guest commits at the destination; None when it did not within `timeout_s`, or whoever asked is gone."""
    deadline = time.monotonic() + timeout_s
    destination: ControlBlock | None = None
    last_look = 0.0
    source_commits, last_moved_ns, sampled_ns, slack_ns = source.commits(), time.monotonic_ns(), time.monotonic_ns(), 0
    parent = os.getppid()
    while time.monotonic() < deadline and os.getppid() == parent:
        now = time.monotonic_ns()
        commits = source.commits()
        if commits != source_commits:
            source_commits, last_moved_ns, slack_ns = commits, now, now - sampled_ns
        if destination is not None and destination.commits():
            return Observation((now - last_moved_ns) / 1e9, (slack_ns + now - sampled_ns) / 1e9)
        sampled_ns = now
        if destination is None and time.monotonic() - last_look > _LOOK_S:
            destination = _find(destination_socket, name)
            last_look = time.monotonic()
        time.sleep(_SAMPLE_S)
    return None


def _find(destination_socket: Path, name: str) -> ControlBlock | None:
    """Map the control block of the guest's shell at the destination, once it exists."""
    try:
        guests = request(destination_socket, "guests", timeout_s=1.0)
        return open_control(guests[name]) if name in guests else None
    except (PagefireError, OSError):
        return None


class Observer:
    """Runs the observer beside a migration: a context, then `result`."""

    def __init__(self, source_socket: Path, destination_socket: Path, name: str) -> None:
        arguments = ["--source", str(source_socket), "--dest", str(destination_socket), "--name", name]
        # Out of the terminal's process group: a Ctrl-C is the command's to handle, and after the commit point it changes nothing.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pagefire.scripts.observer", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        try:
            self.watching = self._lines.readline().strip() == "watching"
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def result(self, timeout_s: float = 2.0) -> Observation | None:
        """Give what it saw, after the migration; None when it saw no switchover (a guest that commits nothing shows none)."""
        if not select.select([self._lines], [], [], timeout_s)[0]:
            return None
        line = self._lines.readline()
        return Observation(**json.loads(line)) if line.strip() not in ("", "null") else None

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._lines.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--dest", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--timeout", type=float, default=3600.0)
    arguments = parser.parse_args()
    # Seen late is measured wrong: an instrument goes before what it measures where it may (root), else it asks for the scheduler's
    # shortest slice; and for wake-ups without slack.
    scheduling.set_prompt()
    scheduling.set_timer_slack(1)
    guests = request(arguments.source, "guests", timeout_s=5.0)
    source = open_control(guests[arguments.name])
    print("watching", flush=True)
    seen = observe(source, arguments.dest, arguments.name, arguments.timeout)
    print(json.dumps(asdict(seen) if seen else None), flush=True)


if __name__ == "__main__":
    main()
