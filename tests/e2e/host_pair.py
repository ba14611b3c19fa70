"""Real daemons for the end-to-end tests: a destination, a source with a guest, and what a test asks of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pagefire.guest_workload.observation import open_control
from pagefire.protocol.transport.control_socket import request
from pagefire.scripts.daemons import Pair
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]
PAGEFIRE = (sys.executable, "-m", "pagefire.scripts.cli")
PATIENCE_S = 60.0


class HostPair(Pair):
    """A `Pair` with the operations that a test needs; sizes small, so that a test takes seconds."""

    def migrate(self, **options: Any) -> Json:
        """Migrate with these options and give the report."""
        chosen = MigrationOptions(**{"to": self.destination, "settle_s": 0.2, **options})
        report: Json = request(
            self.source_socket, "migrate", timeout_s=60.0, name=self.name, **dataclasses.asdict(chosen)
        )["report"]
        return report

    @contextlib.contextmanager
    def migrating(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run `pagefire migrate` of this guest to this destination beside what is done within; `finish` waits for it."""
        process = start(
            "migrate", self.name, "--to", self.destination, "--settle", "200ms", *arguments,
            "--runtime-dir", str(self.directory),
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.kill()

    def kill(self, which: str) -> None:
        """End a daemon (source, dest) by SIGKILL."""
        daemon = getattr(self, which)
        daemon.process.kill()
        daemon.end()

    def kill_guest(self, which: str) -> None:
        """End the guest's process at one of the hosts by SIGKILL."""
        described = request(getattr(self, f"{which}_socket"), "guests", timeout_s=10.0).get(self.name)
        if described is not None:  # else it has ended already: its guest has moved
            os.kill(described["guest_pid"], signal.SIGKILL)

    def migrate_back(self, **options: Any) -> Json:
        """Migrate the guest from the destination daemon to the source daemon, which listens."""
        listening = self.on_source("status")["listen"]
        chosen = MigrationOptions(**{"to": listening, "settle_s": 0.2, **options})
        report: Json = request(
            self.dest_socket, "migrate", timeout_s=60.0, name=self.name, **dataclasses.asdict(chosen)
        )["report"]
        return report

    def restart(self, which: str) -> None:
        """Start the successor of a daemon that was killed."""
        if which == "source":
            self.start_source("--adopt")
        else:
            self.start_dest()

    def on_source(self, op: str, **fields: Any) -> Json:
        return request(self.source_socket, op, timeout_s=60.0, **fields)

    def on_dest(self, op: str, **fields: Any) -> Json:
        return request(self.dest_socket, op, timeout_s=60.0, **fields)

    @contextlib.contextmanager
    def held_at(self, point: str) -> Iterator[Callable[[], None]]:
        """Hold the source's script at a named point; gives what waits until it stands there. Released at the end."""
        self.on_source("point", action="hold", name=point)
        try:
            yield lambda: wait_at(self, point)
        finally:
            with contextlib.suppress(Exception):
                self.release(point)

    def release(self, point: str) -> None:
        self.on_source("point", action="release", name=point)

    def wait_for_commits(self, more: int) -> None:
        """Wait until the guest has committed so many transactions more, wherever it lives."""
        ask = self.on_source if any(one["owner"] for one in self.on_source("status")["guests"]) else self.on_dest
        before = int(ask("guest", name=self.name)["commits"])
        until(lambda: int(ask("guest", name=self.name)["commits"]) >= before + more, "the guest does not commit")

    def source_commits(self) -> int:
        return int(self.on_source("guest")["commits"])

    def commits_per_s(self, seconds: float = 0.2) -> float:
        """Measure the guest's rate at the source."""
        began, commits = time.monotonic(), self.source_commits()
        time.sleep(seconds)
        return (self.source_commits() - commits) / (time.monotonic() - began)

    @contextlib.contextmanager
    def guest_unharmed(self) -> Iterator[None]:
        """Check that what is done within leaves the guest running here as fast as before, untraced, and nothing over there."""
        before = self.commits_per_s()
        yield
        status = self.on_source("guest")
        assert status["owner"]
        assert status["running"]
        # A loaded machine takes a share of any one measurement; a guest that stays traced or paused never gets there.
        until(lambda: self.commits_per_s() > before / 2, f"the guest is slower than half of {before:.0f} commits/s")
        until(lambda: not self.traces_of_tracking(), "the source daemon still holds a userfaultfd")
        self.nothing_at_destination()

    def traces_of_tracking(self) -> list[str]:
        return [name for name in open_files(self.source.pid) if "userfaultfd" in name]

    def nothing_at_destination(self) -> None:
        """Check that no guest, no process and no guest memory is left at the destination."""
        until(lambda: not self.on_dest("status")["guests"], "the destination still knows a guest")
        assert self.on_dest("guests") == {}
        children = psutil.Process(self.dest.pid).children(recursive=True)
        assert not children, children
        held = [name for name in open_files(self.dest.pid) if "memfd" in name or "userfaultfd" in name]
        assert not held, held
        assert not list(self.directory.glob("in-*"))

    def transactions(self, socket_path: Path) -> int:
        """Count what the guest's registers say it has done since it was born, at either end."""
        control = open_control(request(socket_path, "guests", timeout_s=10.0)[self.name])
        try:
            return control.transactions()
        finally:
            control.close()


def wait_at(pair: HostPair, point: str) -> None:
    pair.on_source("point", action="wait", name=point)


def guest_arguments(memory: str = "64MiB", workload: str = "oltp", vcpus: int = 2, **options: Any) -> list[str]:
    """Give `pagefire source` arguments; options by their names with underscores."""
    arguments = ["--memory", memory, "--workload", workload, "--vcpus", str(vcpus)]
    for option, value in options.items():
        if value is not None:
            arguments += [f"--{option.replace('_', '-')}", str(value)]
    return arguments


def start(*arguments: str, command: tuple[str, ...] = PAGEFIRE, **popen: Any) -> subprocess.Popen[str]:
    """Start a command with its output piped; in a session of its own, as a terminal's foreground group is."""
    return subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **popen,
    )


def finish(process: subprocess.Popen[str], patience_s: float = PATIENCE_S) -> tuple[int, str, str]:
    """Wait for a command; gives its exit code, standard output and standard error. One that does not end is killed."""
    try:
        out, err = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"{process.args!r} did not end; it said: {out}{err}")
    return process.returncode, out, err


def run(*arguments: str, command: tuple[str, ...] = PAGEFIRE, **popen: Any) -> tuple[int, str, str]:
    """Run a command to its end; gives its exit code, standard output and standard error."""
    return finish(start(*arguments, command=command, **popen))


def until(holds: Callable[[], bool], complaint: str, patience_s: float = 10.0) -> None:
    """Wait until something holds; fails with the complaint when it does not."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(complaint)
        time.sleep(0.05)


def open_files(pid: int) -> list[str]:
    """Name what a process holds open."""
    names = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(entry.path))
    return names


def assert_verified(report: Json) -> None:
    """Check that a migration was completed and proved that nothing was lost."""
    verified = report["verified"]
    assert report["outcome"] == "completed"
    assert verified["problems"] == []
    assert (verified["invariant"], verified["commits_lost"], verified["commits_repeated"]) == (True, 0, 0)
