"""A lab's network as seen by who uses it: made by a keeper (keeper.py), which is asked by lines of JSON, and gone with it.

`before(side)` gives the words that run a command on a side. `folder` is the lab's own place for sockets and keys; it is gone
with the lab as well. Whoever dies without ending the lab takes it along: the keeper hears it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from pagefire.protocol.errors import FeatureMissing, PagefireError
from pagefire.scripts.daemons import signals_deferred
from pagefire.scripts.lab.shape import LinkShape

Json = dict[str, Any]


class Asked:
    """A child process that answers lines of JSON by lines of JSON, and ends when nobody asks any more."""

    def __init__(self, command: list[str], name: str) -> None:
        self._name = name
        with signals_deferred():
            # A session of its own: a Ctrl-C at the terminal is for who uses the lab.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Json) -> Json:
        """Ask and wait for the answer; raises PagefireError when it says that it could not, or ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: the answer that does not come tells
        return self.hear()

    def hear(self) -> Json:
        """Wait for its next line; raises PagefireError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PagefireError(
                f"{self._name} has ended", f"exit code {self._process.wait()}", "see what it said above"
            )
        answer: Json = json.loads(line)
        if "error" in answer:
            raise PagefireError(f"{self._name} could not do it", answer["error"])
        return answer

    def end(self) -> None:
        """Let it end, and wait for that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with signals_deferred():
            # Of one that was killed, what it was last asked is still there, and cannot be said any more.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


class LabNetwork:
    """A context: inside it the three namespaces exist and both hosts can reach each other through the wire, unshaped."""

    def __init__(self, shape: LinkShape, on_wait: Callable[[], None] = lambda: None) -> None:
        """`shape` says how long TCP's buffers have to be; `on_wait` is called where another lab has to end first."""
        self._shape, self._on_wait = shape, on_wait
        self.folder = Path()
        self._paths: dict[str, str] = {}

    @staticmethod
    def require_possible() -> None:
        """Raise FeatureMissing, naming what is missing, where no namespace can be made."""
        if os.geteuid() != 0:
            raise FeatureMissing("no network namespace can be made", "that needs root")

    def __enter__(self) -> LabNetwork:
        self.require_possible()
        self.keeper = Asked([sys.executable, "-m", "pagefire.scripts.lab.keeper"], "the lab's keeper")
        try:
            heard = self.keeper.hear()
            if heard.get("waiting"):
                self._on_wait()
                heard = self.keeper.hear()
            self.folder, self._paths = Path(heard["folder"]), heard["namespaces"]
            self.keeper.ask({"ends": dataclasses.asdict(self._shape)})
        except BaseException:
            self.keeper.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keeper.end()
        # The keeper has done so, unless it was killed.
        shutil.rmtree(self.folder, ignore_errors=True)

    def before(self, side: str) -> list[str]:
        """Give the words by which this process runs a command on a side (source, wire, dest); `inside` becomes that command."""
        return [sys.executable, "-m", "pagefire.scripts.lab.inside", self._paths[side], str(os.getpid())]
