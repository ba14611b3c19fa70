"""The picture and the report folder: where the stun is drawn, that every report can be drawn, and whose folder is left alone."""

from __future__ import annotations

import json
import struct
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.scripts.report_folder import REPORT_FILES, default_folder, write_report_folder
from pagefire.scripts.timeline import draw_timeline, place_stun

from . import completed_report


def png_size(path: Path) -> tuple[int, int]:
    """Read a PNG's width and height in pixels, after checking its first chunk."""
    octets = path.read_bytes()
    assert octets.startswith(b"\x89PNG\r\n\x1a\n")
    (checksum,) = struct.unpack(">I", octets[29:33])
    assert checksum == zlib.crc32(octets[12:29])
    width, height = struct.unpack(">II", octets[16:24])
    return width, height


def buckets(commits: list[int], phase: str = "active") -> list[dict[str, Any]]:
    return [{"t_s": step / 100, "commits": count, "phase": phase} for step, count in enumerate(commits)]


def test_a_migration_is_drawn(tmp_path: Path) -> None:
    draw_timeline(completed_report().as_dict(), tmp_path / "timeline.png")
    width, height = png_size(tmp_path / "timeline.png")
    assert width > height > 500


ODD_TIMELINE = [
    {"t_s": 0.0, "commits": 5, "phase": "postcopy-paused"},
    {"t_s": 2.0, "commits": 7, "phase": "a new phase"},
]


@pytest.mark.parametrize(
    "changed",
    [
        {"timeline": []},
        {"timeline": buckets([0] * 3), "stun_s": None, "guest_rate": None},
        {"timeline": buckets([0]), "stun_s": 0.0, "stun_at_s": 0.0},
        {"timeline": ODD_TIMELINE, "guest": {"name": "$x_1$ & " + "long " * 30}, "stun_error_s": 0.01},
    ],
    ids=["empty", "idle and no stun", "one bucket", "gap, unknown phase, awkward name"],
)
def test_odd_reports_are_drawn(changed: dict[str, Any], tmp_path: Path) -> None:
    draw_timeline(completed_report(precopy_s=0.1).as_dict() | changed, tmp_path / "timeline.png")
    assert png_size(tmp_path / "timeline.png")


def test_the_stun_is_drawn_where_it_was_measured() -> None:
    # Empty buckets before and after it, longer than it: a guest that waits for pages, or for its turn, is not in its stun.
    commits = [0] * 40 + [9] * 60 + [0] + [9, 0, 0, 0, 0, 9]
    stun = place_stun({"stun_s": 0.012, "stun_at_s": 0.998, "timeline": buckets(commits)})
    assert stun is not None
    assert (stun.start_s, stun.end_s) == (0.998, pytest.approx(1.010))


@pytest.mark.parametrize("changed", [{"stun_s": None}, {"stun_at_s": None}, {"timeline": []}, {"stun_at_s": 0.02}])
def test_a_stun_that_was_not_measured_or_lies_outside_is_not_drawn(changed: dict[str, Any]) -> None:
    report = {"stun_s": 0.01, "stun_at_s": 0.01, "timeline": buckets([9, 9])}
    assert place_stun(report) is not None
    assert place_stun(report | changed) is None


def test_a_report_folder_holds_three_files_and_may_be_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    report = completed_report().as_dict() | {"timeline": []}
    for _ in range(2):
        written = write_report_folder(report, folder)
        assert [path.name for path in written] == list(REPORT_FILES)
        assert sorted(entry.name for entry in folder.iterdir()) == sorted(REPORT_FILES)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report
    summary = (folder / "summary.txt").read_text(encoding="utf-8")
    assert summary.startswith("cache-7 moved")
    assert "\x1b" not in summary
    assert not any(line != line.rstrip() for line in summary.splitlines())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        write_report_folder({}, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="it is a file"):
        write_report_folder({}, tmp_path / "thesis.tex")


def test_a_refusal_of_the_system_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PagefireError, match="could not be written"):
        write_report_folder({}, tmp_path / "file" / "report")


def test_the_default_folder_carries_the_time() -> None:
    assert default_folder(datetime(2026, 3, 4, 5, 6, 7)) == Path("pagefire-report-20260304-050607")
