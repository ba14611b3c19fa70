"""What an experiment that was killed has left on this machine, and its removal when the experiment is resumed.

Daemons end by themselves (tied.py), and so does a lab. What stays is the daemons' folder in the temporary directory, which bears
the killed process's number. underway.json in the results folder says which that was, and when it was born, because numbers are
used again. Nothing else is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from pagefire.protocol.transport import runtime_directory
from pagefire.scripts.experiment.one_migration import folder_prefix
from pagefire.scripts.experiment.store import UNDERWAY

_PATIENCE_S = 30.0


@contextlib.contextmanager
def swept(folder: Path) -> Iterator[None]:
    """Remove what the last process that was under way in this results folder has left, and say that this one is now."""
    path = folder / UNDERWAY
    _sweep(path)
    path.write_text(json.dumps({"pid": os.getpid(), "born_s": psutil.Process().create_time()}) + "\n", encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    try:
        killed = json.loads(path.read_text(encoding="utf-8"))
        pid, born_s = int(killed["pid"]), float(killed["born_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # none was killed, or so early that it had started nothing
    with contextlib.suppress(psutil.Error):
        if psutil.Process(pid).create_time() != born_s or pid == os.getpid():
            return  # the number is another's now: what bears it may be its own
    for left in Path(tempfile.gettempdir()).glob(f"{folder_prefix(pid)}*"):
        if left.is_dir() and left.stat().st_uid == os.getuid():
            _wait_for_daemons(left)
            shutil.rmtree(left, ignore_errors=True)


def _wait_for_daemons(left: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while any(runtime_directory.answers(one) for one in left.rglob("*.control")) and time.monotonic() < deadline:
        time.sleep(0.05)
