"""Events as JSON lines, for `--events`: one object a line, as things happened. events.schema.json says what is in it.

Noting an event costs two readings of a clock and an append; it is put into words and written by a thread, some time later. Not
while a guest of this daemon stands still: the thread and the script of the switchover would share one interpreter, and the stun
would be longer by it. So a daemon that is killed takes the last lines with it, of `DELAY_S` as a rule and of `LONGEST_HOLD_S` at
most. A file that cannot be written any more is told of once, and the daemon does without: migrating comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from pagefire.protocol.errors import UsageError
from pagefire.protocol.transport.tasks import in_thread

log = logging.getLogger("pagefire.events")

Json = dict[str, Any]

#: When what was noted is written, and for how long a stun puts that off.
DELAY_S, LONGEST_HOLD_S = 0.1, 2.0
#: The phase in which a guest stands still.
_STANDS_STILL = "device"


class EventLines:
    """Writes to one file, or to standard output (`-`). Owns the file until `close`. All but writing is the loop's."""

    def __init__(self, to: str) -> None:
        """Open the file to append; raises UsageError."""
        try:
            self._file: TextIO = sys.stdout if to == "-" else Path(to).open("a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"{to} cannot be written", error.strerror or str(error), "change --events") from error
        self._owned = to != "-"
        self._waiting: deque[tuple[int, int, str, str | None, str | None, Json]] = deque()
        self._still: dict[tuple[str, str | None], float] = {}
        self._task: asyncio.Task[None] | None = None
        self._broken = False

    def note(self, side: str, guest: str | None, session: str | None, event: Json) -> None:
        """Something has happened now: `event` holds its name as "event", all else in it are its fields. Kept, not copied."""
        self._waiting.append((time.time_ns(), time.monotonic_ns(), side, guest, session, event))
        if event["event"] == "phase" and event["phase"] == _STANDS_STILL:
            self._still[side, guest] = time.monotonic()
        elif event["event"] != "progress":
            self._still.pop((side, guest), None)
        if self._task is None:
            self._task = asyncio.create_task(self._write_soon())

    async def close(self) -> None:
        """Write what waits, and close the file."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await in_thread(self._write)
        if self._owned:
            with contextlib.suppress(OSError):
                self._file.close()

    async def _write_soon(self) -> None:
        await asyncio.sleep(DELAY_S)
        while self._stands_still():
            await asyncio.sleep(DELAY_S)
        await in_thread(self._write)
        self._task = asyncio.create_task(self._write_soon()) if self._waiting else None

    def _stands_still(self) -> bool:
        now_s = time.monotonic()
        return any(now_s - since_s < LONGEST_HOLD_S for since_s in self._still.values())

    def _write(self) -> None:
        """Write what waits; one thread at a time."""
        lines = []
        while self._waiting:
            time_ns, monotonic_ns, side, guest, session, event = self._waiting.popleft()
            fields = {name: value for name, value in event.items() if name != "event"}
            line = {"time_ns": time_ns, "monotonic_ns": monotonic_ns, "side": side, "guest": guest, "session": session}
            lines.append(json.dumps(line | {"event": event["event"], "fields": fields}))
        if not lines or self._broken:
            return
        try:
            self._file.write("\n".join(lines) + "\n")
            self._file.flush()
        except OSError as error:
            self._broken = True
            log.error("events are not written any more: %s", error)
