"""A place of one's own for a test: runtime directory, temporary directory, and what is left in it and on the machine."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_MARK = "PAGEFIRE_TEST_PLACE"


class Place:
    """All that is started while this place is in the environment inherits its mark, whatever session it is in."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime = root / "run"
        self._temporary = root / "tmp"
        self._temporary.mkdir()
        self._mark = uuid.uuid4().hex
        self._shared_memory = set(os.listdir("/dev/shm"))
        monkeypatch.setenv("PAGEFIRE_RUNTIME_DIR", str(self.runtime))
        monkeypatch.setenv("TMPDIR", str(self._temporary))
        monkeypatch.setenv(_MARK, self._mark)
        # Pairs that the test makes in this process put their directory here as well.
        monkeypatch.setattr(tempfile, "tempdir", str(self._temporary))

    def processes(self, words: str = "") -> list[psutil.Process]:
        """Give the running processes that were started here and have these words in their command."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and words in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def leftovers(self) -> list[str]:
        """Name what is left: processes, files in the runtime and the temporary directory, shared memory."""
        left = [" ".join(process.cmdline()) for process in self.processes()]
        left += [str(path) for path in self._temporary.rglob("*")]
        left += [str(path) for path in [self.runtime, *self.runtime.rglob("*")] if path.exists()]
        return left + sorted(set(os.listdir("/dev/shm")) - self._shared_memory)

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + 5.0
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        left = self.leftovers()
        assert not left, left


def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Make a place whose paths are short enough for sockets; ends what a failed test left."""
    with tempfile.TemporaryDirectory(prefix="pf-") as root:
        place = Place(Path(root), monkeypatch)
        try:
            yield place
        finally:
            for process in place.processes():
                process.kill()
