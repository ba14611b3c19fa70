"""A results folder: experiment.json says what is run, results.jsonl has a line for each migration that was made.

A line is written at once, with its end, and is on the disk before the next migration begins. So whatever kills the experiment, only
the last line can be torn: it is cut off when the folder is opened again, and its migration is made once more. A folder belongs to
one scenario, and to one experiment at a time: that is what the lock on results.jsonl is for, which dies with its process.

    {"key", "case", "repetition", "seed", "command", "started_at", "took_s", "machine", "outcome", "error", "report", "fault"}
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.scripts.report_folder import write_whole

Json = dict[str, Any]

EXPERIMENT, RESULTS, UNDERWAY = "experiment.json", "results.jsonl", "underway.json"


class Store:
    """An open results folder; use `opened`."""

    def __init__(self, folder: Path, descriptor: int, lines: list[Json]) -> None:
        self.folder = folder
        #: What was found, and what was added since.
        self.lines = lines
        self._descriptor = descriptor

    @property
    def keys(self) -> set[str]:
        return {line["key"] for line in self.lines}

    def describe(self, experiment: Json) -> None:
        """Write experiment.json, unless there are results that it describes as it is."""
        if not self.lines or not (self.folder / EXPERIMENT).exists():
            write_whole(experiment, self.folder / EXPERIMENT)

    def add(self, line: Json) -> None:
        """Append a migration's line; when this returns it is on the disk."""
        if line["key"] in self.keys:
            raise PagefireError(f"{line['key']} is in {self.folder} already", "", "this is a defect of pagefire")
        written = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        while written:
            written = written[os.write(self._descriptor, written) :]
        os.fsync(self._descriptor)
        self.lines.append(line)


@contextlib.contextmanager
def opened(folder: Path, experiment: Json) -> Iterator[Store]:
    """Open a folder for `experiment`, whose `scenario` says what belongs in it; make it where there is none.

    Raises UsageError where it holds something else, the results of another scenario, or is being written by somebody.
    """
    path = folder / RESULTS
    try:
        _refuse_another(folder, experiment)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise PagefireError(
            f"results cannot be written to {folder}", error.strerror or str(error), "name another folder: --results"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder} is being written",
                "another `pagefire experiment run` has it",
                "wait for it, or name another folder",
            ) from error
        lines, whole_bytes = read_lines(path)
        os.truncate(descriptor, whole_bytes)
        store = Store(folder, descriptor, lines)
        store.describe(experiment)
        yield store
    finally:
        os.close(descriptor)


def read_experiment(folder: Path) -> Json:
    """Read experiment.json; raises UsageError where there is none, or it is not one."""
    path = folder / EXPERIMENT
    try:
        experiment: Json = json.loads(path.read_text(encoding="utf-8"))
        return {**experiment, "scenario": experiment["scenario"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder} holds no experiment",
            f"{path.name}: {error}",
            "name a folder that `pagefire experiment run` has written",
        ) from error


def read_lines(path: Path) -> tuple[list[Json], int]:
    """Read the whole lines of results.jsonl; gives them and how many bytes they are. A torn last one is left out.

    Raises PagefireError for a line in the middle that is none: somebody has edited it.
    """
    lines, whole_bytes = list[Json](), 0
    content = path.read_bytes() if path.exists() else b""
    pieces = content.split(b"\n")
    for number, piece in enumerate(pieces[:-1], 1):
        try:
            line = json.loads(piece)
            line["key"], line["outcome"]
        except (ValueError, KeyError, TypeError) as error:
            # A machine that lost power may leave a last line of zeros, with its end.
            if number == len(pieces) - 1 and not pieces[-1]:
                break
            raise PagefireError(
                f"line {number} of {path} is no result",
                str(error),
                "mend it or take it out; its migration is then made again",
            ) from error
        lines.append(line)
        whole_bytes += len(piece) + 1
    doubled = {line["key"] for line in lines if sum(other["key"] == line["key"] for other in lines) > 1}
    if doubled:
        raise PagefireError(
            f"{path} has {sorted(doubled)[0]} twice", "a migration counts once", "take one of the lines out"
        )
    return lines, whole_bytes


def _refuse_another(folder: Path, experiment: Json) -> None:
    """Raise UsageError where the folder holds anything but results of the same scenario."""
    if not folder.exists():
        return
    if not (folder / EXPERIMENT).exists():
        foreign = sorted({entry.name for entry in folder.iterdir()} - {RESULTS, UNDERWAY, EXPERIMENT + ".unfinished"})
        if not foreign:
            return
        raise UsageError(
            f"{folder} cannot take results",
            f"it holds something else: {foreign[0]}",
            "name a folder that is new or empty: --results",
        )
    old, new = read_experiment(folder)["scenario"], experiment["scenario"]
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        raise UsageError(
            f"{folder} holds results of another form of `{old.get('name')}`",
            f"`{key}` was {json.dumps(old.get(key))} and is {json.dumps(new.get(key))}",
            "results of both cannot be laid together: name another folder with --results, or remove this one",
        )
