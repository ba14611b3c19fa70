"""Who lives in a lab's namespaces, and what is left of a lab whose keeper was killed.

A keeper writes into the file that it locks which namespaces and which folder are its own, and empties it when it has undone them.
One that finds something there when it has the lock undoes that first. Namespaces are known by numbers, which the kernel gives out
again when nobody lives there: so a namespace counts as that lab's only if it bears the folder's name as well (`wiring.mark`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from pagefire.scripts.lab import wiring
from pagefire.scripts.lab.inside import enter

FOLDER_PREFIX = "pagefire-lab-"
_END_S = 10.0


def kill_all_in(numbers: Iterable[int]) -> None:
    """Kill every other process in the namespaces of these numbers, those that one starts while it dies included."""
    numbers = set(numbers)
    deadline = time.monotonic() + _END_S
    while (found := _processes_in(numbers)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def note(file: IO[str], numbers: Iterable[int], folder: str) -> None:
    """Write down what has to be undone."""
    _write(file, json.dumps({"namespaces": list(numbers), "folder": folder}))


def forget(file: IO[str]) -> None:
    """Write down that nothing has to be."""
    _write(file, "")


def undo_what_is_left(file: IO[str]) -> None:
    """Undo what a killed keeper has written down."""
    file.seek(0)
    try:
        left = json.loads(file.read())
        numbers, folder = {int(number) for number in left["namespaces"]}, Path(left["folder"])
    except (ValueError, KeyError, TypeError):
        return  # the usual case: the last lab ended
    numbers.discard(os.stat("/proc/self/ns/net").st_ino)
    kill_all_in({number for number in numbers if _bears(number, folder.name)})
    if folder.name.startswith(FOLDER_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    forget(file)


def _write(file: IO[str], words: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(words)
    file.flush()


def _processes_in(numbers: set[int]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                # A zombie has no namespaces any more.
                if os.stat(f"/proc/{name}/ns/net").st_ino in numbers:
                    found.append(int(name))
    return found


def _bears(number: int, mark: str) -> bool:
    """Look into a namespace by way of one who lives there."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for pid in _processes_in({number}):
            with contextlib.suppress(OSError):
                fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    # It may have ended since, and its process number be another's.
                    if os.fstat(fd).st_ino == number:
                        enter(fd)
                        return wiring.mark_here() == mark
                finally:
                    os.close(fd)
        return False
    finally:
        enter(here)
        os.close(here)
