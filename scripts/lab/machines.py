"""The same on two real machines, over ssh: each shapes what it receives from the other, runs a daemon, and is left as it was.

What is done on a machine is done by a shell there that undoes it when its standard input ends: because the experiment is over,
because this command was killed, or because the connection broke. Pagefire has to be installed on both machines at the path that it
has here, shaping needs root there, and ssh has to get there without a question. Keys are the machines' own (`pagefire keys`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.link_report import Link
from pagefire.protocol.transport import runtime_directory
from pagefire.scripts.daemons import signals_deferred
from pagefire.scripts.demo import source_arguments
from pagefire.scripts.lab.link_words import link_lines
from pagefire.scripts.lab.measurement import measure_link, require_as_asked
from pagefire.scripts.lab.plan import lines_for_a_machine
from pagefire.scripts.lab.shape import LinkShape
from pagefire.scripts.lab.shaper import asked_of
from pagefire.scripts.migrating import Migration
from pagefire.source_host.options import MigrationOptions

_HELD = "held"
_WAIT_S = 30.0
#: A machine that does not answer for so long is gone.
_SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine: how ssh is called, and what it calls the machine."""

    ssh: tuple[str, ...]
    host: str

    def before(self) -> list[str]:
        """Give the words that run a command there, whose own words are plain."""
        return [*self.ssh, *_SSH_OPTIONS, self.host]

    def said(self, command: str) -> str:
        """Run a command line there; gives what it said, raises PagefireError."""
        ended = subprocess.run([*self.before(), command], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise self.refused(command, ended.stderr)
        return ended.stdout

    def refused(self, command: str, why: str) -> PagefireError:
        last = why.strip().splitlines()[-1] if why.strip() else "it said nothing"
        return PagefireError(f"{self.host} did not do `{command}`", last, f"try it by hand: ssh {self.host}")

    def own_address(self) -> str:
        """Give the address by which it was reached."""
        words = self.said("echo $SSH_CONNECTION").split()
        if len(words) != 4:
            raise PagefireError(f"{self.host} does not know its address", "sshd there gives no SSH_CONNECTION")
        return words[2]

    def interface_to(self, peer: str) -> str:
        """Name the interface by which it reaches another machine."""
        words = self.said(f"ip -o route get {shlex.quote(peer)}").split()
        return words[words.index("dev") + 1]


class Held:
    """A context: what a shell does on a machine, undone when it ends. `said` is what it printed before it held."""

    def __init__(self, machine: Machine, doing: Sequence[str], undoing: Sequence[str]) -> None:
        undo = "\n".join(f"  {line} || :" for line in undoing)
        self._script = (
            f"set -e\nundo() {{\n{undo}\n}}\ntrap undo EXIT\n" + "\n".join(doing) + f"\necho {_HELD}\ncat >/dev/null\n"
        )
        self._machine = machine
        self.said: list[str] = []

    def __enter__(self) -> Held:
        with signals_deferred():
            self._shell = subprocess.Popen(
                [*self._machine.before(), "sh -s"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        assert self._shell.stderr is not None
        try:
            self._shell.stdin.write(self._script)
            self._shell.stdin.flush()
            while (line := self._shell.stdout.readline().strip()) != _HELD:
                if not line and self._shell.poll() is not None:
                    raise self._machine.refused("sh -s", self._shell.stderr.read())
                self.said.append(line)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with signals_deferred():
            assert self._shell.stdin is not None
            with contextlib.suppress(OSError):
                self._shell.stdin.close()
            self._shell.wait()
            for stream in (self._shell.stdout, self._shell.stderr):
                assert stream is not None
                stream.close()


@dataclass(frozen=True, slots=True)
class Machines:
    """Both machines, as `measure_link` wants its two sides."""

    source: Machine
    dest: Machine

    def before(self, side: str) -> list[str]:
        return (self.source if side == "source" else self.dest).before()


def shaping(machine: Machine, shape: LinkShape, peer: str) -> Held:
    """Let a machine shape what it receives from another."""
    # Pagefire is there, ethtool may not be.
    ethtool = f"{shlex.quote(sys.executable)} -m pagefire.scripts.lab.offload"
    lines = list(lines_for_a_machine(shape, machine.interface_to(peer), peer, ethtool))
    at = lines.index("# afterwards:")
    return Held(machine, lines[:at], lines[at + 1 :])


def daemon(machine: Machine, arguments: Sequence[str]) -> Held:
    """Run a daemon on a machine; `said` is its runtime directory and the line that it prints when it is ready."""
    command = shlex.join([sys.executable, "-m", "pagefire.scripts.cli", *arguments])
    return Held(
        machine,
        [
            'd=$(mktemp -d --tmpdir pagefire-lab-XXXXXX); mkdir -m 700 "$d/run"',
            f'{command} --runtime-dir "$d/run" >"$d/ready" 2>"$d/log" </dev/null & p=$!',
            'while ! [ -s "$d/ready" ]; do kill -0 $p 2>/dev/null || { tail -n 1 "$d/log" >&2; exit 1; }; sleep 0.05; done',
            'echo "$d/run"; cat "$d/ready"',
        ],
        ['[ -z "$p" ] || { kill $p 2>/dev/null && wait $p; }', 'rm -rf "$d"'],
    )


@contextlib.contextmanager
def _forwarded(machine: Machine, here: Path, there: str) -> Iterator[None]:
    """Let a unix socket here stand for one on a machine."""
    with subprocess.Popen(
        # `cat` ends with its input: when this process is killed nothing is forwarded any more.
        [*machine.ssh, *_SSH_OPTIONS, "-o", "ExitOnForwardFailure=yes", "-L", f"{here}:{there}", machine.host, "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as forwarding:
        try:
            deadline = time.monotonic() + _WAIT_S
            while not runtime_directory.answers(here):
                if forwarding.poll() is not None or time.monotonic() > deadline:
                    raise machine.refused(f"ssh -L {here}:{there}", "the daemon's control socket cannot be reached")
                time.sleep(0.05)
            yield
        finally:
            forwarding.terminate()


def run_on_machines(
    shape: LinkShape,
    config: GuestConfig,
    options: MigrationOptions,
    warmup_s: float,
    machines: Machines,
    console: Console,
) -> dict[str, Any]:
    """Shape, measure, migrate, and leave both machines as they were; gives the report. Raises PagefireError.

    `options.keys`, if given, is a folder on the source; the destination's keys are its own.
    """
    source, dest = machines.source, machines.dest
    source_address, dest_address = source.own_address(), dest.own_address()
    link = Link(asked=asked_of(shape), shaper="none", reason="nothing was asked of the link but to be there")
    with contextlib.ExitStack() as stack:
        if shape.shapes:
            stack.enter_context(shaping(source, shape, dest_address))
            stack.enter_context(shaping(dest, shape, source_address))
            link.shaper, link.reason = (
                ("netem" if shape.impairs else "tbf"),
                f"on what {source.host} and {dest.host} receive",
            )
        link.measured = measure_link(machines, shape, dest_address)
        for line in link_lines(dataclasses.asdict(link)):
            console.print(line, soft_wrap=True)
        require_as_asked(shape, link.measured)
        insecure = ["--insecure"] if options.insecure else []
        allowed = [part for workload in config.user_workloads for part in ("--allow-workload", workload)]
        there = stack.enter_context(daemon(dest, ["dest", "--listen", f"{dest_address}:0", *insecure, *allowed]))
        here = stack.enter_context(daemon(source, ["source", "--name", config.name, *source_arguments(config)]))
        destination = there.said[-1].split("listening on ")[1].split(",")[0]
        console.print(f"  {dest.host}: {there.said[-1]}", style="dim", soft_wrap=True)
        console.print(f"  {source.host}: {here.said[-1]}", style="dim", soft_wrap=True)
        # By another name than the destination's would have, because no observer sees both machines' counters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pagefire-lab-")))
        control = folder / "source.control"
        stack.enter_context(_forwarded(source, control, f"{here.said[0]}/source-{config.name}.control"))
        time.sleep(warmup_s)
        chosen = dataclasses.asdict(dataclasses.replace(options, to=destination))
        report = Migration(control, config.name, chosen, console).run()
    report["link"] = dataclasses.asdict(link)
    return report
