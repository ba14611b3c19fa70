"""Events as JSON lines: in order, complete, not while a guest stands still, and never the end of a daemon."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.errors import UsageError
from pagefire.protocol.transport import event_lines
from pagefire.protocol.transport.event_lines import EventLines
from pagefire.protocol.transport.logbook import Logbook


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_lines_are_written_in_order_and_appended(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text('{"an earlier daemon": true}\n')
    logbook = Logbook(EventLines(str(path)))
    for number in range(100):
        logbook.note("source", "guest0", b"\x01\xff", {"event": "round", "round": number})
    await logbook.close()
    _, *lines = read(path)
    assert [line["fields"]["round"] for line in lines] == list(range(100))
    assert {(line["side"], line["guest"], line["session"], line["event"]) for line in lines} == {
        ("source", "guest0", "01ff", "round")
    }
    times = [line["monotonic_ns"] for line in lines]
    assert times == sorted(times)
    assert all("event" not in line["fields"] for line in lines)


async def test_they_are_written_soon_and_not_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "events"
    logbook = Logbook(EventLines(str(path)))
    logbook.note("daemon", None, b"", {"event": "started"})
    async with asyncio.timeout(10):
        while not path.read_text():
            await asyncio.sleep(0.01)
    assert (read(path)[0]["guest"], read(path)[0]["session"]) == (None, None)
    await logbook.close()


async def test_nothing_is_written_while_a_guest_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_lines, "DELAY_S", 0.001)
    path = tmp_path / "events"
    logbook = Logbook(EventLines(str(path)))
    logbook.note("source", "guest0", b"", {"event": "phase", "phase": "device"})
    for _ in range(5):
        logbook.note("source", "guest0", b"", {"event": "progress"})
        await asyncio.sleep(0.01)
    assert read(path) == []
    logbook.note("source", "guest0", b"", {"event": "phase", "phase": "postcopy-active"})
    async with asyncio.timeout(10):
        while len(read(path)) < 7:
            await asyncio.sleep(0.01)
    await logbook.close()


async def test_a_stun_that_does_not_end_puts_off_no_line_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_lines, "DELAY_S", 0.001)
    monkeypatch.setattr(event_lines, "LONGEST_HOLD_S", 0.05)
    path = tmp_path / "events"
    logbook = Logbook(EventLines(str(path)))
    logbook.note("source", "guest0", b"", {"event": "phase", "phase": "device"})
    async with asyncio.timeout(10):
        while not read(path):
            await asyncio.sleep(0.01)
    await logbook.close()


async def test_a_full_disk_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    logbook = Logbook(EventLines("/dev/full"))
    for _ in range(2):
        logbook.note("daemon", None, b"", {"event": "started"})
        await asyncio.sleep(2 * event_lines.DELAY_S)
    await logbook.close()
    assert [record.getMessage() for record in caplog.records] == [
        "events are not written any more: [Errno 28] No space left on device"
    ]


def test_a_file_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written: No such file or directory\. Change --events"):
        EventLines(str(tmp_path / "missing" / "events"))
