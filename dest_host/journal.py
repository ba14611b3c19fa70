"""What this host remembers of sessions that are over here and that their source may still ask about: a small file each.

    session-ID.said     msgpack: the secret, the last word (fenced, perished, resident), and its reason

Written where the source may not know the end: it had relinquished the guest, or could have, and has not acknowledged what became of
it. The word in the guest's memory goes with the guest's process, this does not. It is removed when the source has noted it, or
after `KEPT_S`: a source that asks later is told that nothing is known, and a person decides.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgpack

KEPT_S = 30 * 86_400.0
_SUFFIX = ".said"


@dataclass(frozen=True, slots=True)
class LastWord:
    """How a session ended here. fenced: not taken, and never will be. perished: taken, and lost. resident: taken, and whole.

    `outcome`, `what`, `why` and `do` are as in `Failure`.
    """

    secret: bytes
    word: Literal["fenced", "perished", "resident"]
    outcome: str = "failed"
    what: str = ""
    why: str = ""
    do: str = ""


class Journal:
    """The last words of one runtime directory's sessions; shared by all daemons that use it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, session: bytes, last: LastWord) -> None:
        """Write it down, durably: it is there, whole, when this returns. Raises OSError."""
        path = self._path(session)
        partial = path.with_suffix(".part")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgpack.packb(asdict(last)))
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.rename(path)

    def find(self, session: bytes) -> LastWord | None:
        """Look a session up; what is older than `KEPT_S` is removed on the way."""
        for path in self._directory.glob(f"session-*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()
        try:
            return LastWord(**msgpack.unpackb(self._path(session).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def forget(self, session: bytes) -> None:
        """The source has noted it."""
        self._path(session).unlink(missing_ok=True)

    def _path(self, session: bytes) -> Path:
        return self._directory / f"session-{session.hex()}{_SUFFIX}"
