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
        {"timeline": buckets([0]), "stun_s": 0.0},
        {"timeline": ODD_TIMELINE, "guest": {"name": "$x_1$ & " + "long " * 30}, "stun_error_s": 0.01},
    ],
    ids=["empty", "idle and no stun", "one bucket", "gap, unknown phase, awkward name"],
)
def test_odd_reports_are_drawn(changed: dict[str, Any], tmp_path: Path) -> None:
    draw_timeline(completed_report(precopy_s=0.1).as_dict() | changed, tmp_path / "timeline.png")
    assert png_size(tmp_path / "timeline.png")


def test_a_stun_covers_its_empty_buckets() -> None:
    report = {"stun_s": 0.034, "setup_s": 0.02, "precopy_s": 0.018, "timeline": buckets([9, 9, 9, 4, 0, 0, 0, 8, 9])}
    stun = place_stun(report)
    assert stun is not None
    assert stun.end_s - stun.start_s == pytest.approx(0.034)
    assert stun.start_s <= 0.04
    assert stun.end_s >= 0.07


def test_a_stun_shorter_than_a_bucket_lies_in_the_slowest_one() -> None:
    stun = place_stun({"stun_s": 0.002, "setup_s": 0.02, "precopy_s": 0.0, "timeline": buckets([9, 9, 9, 6, 9])})
    assert stun is not None
    assert stun.start_s >= 0.03
    assert stun.end_s <= 0.04


def test_an_idle_stretch_far_from_the_pause_is_not_the_stun() -> None:
    commits = [0] * 40 + [9] * 60 + [0, 0] + [9] * 20
    stun = place_stun({"stun_s": 0.02, "setup_s": 0.1, "precopy_s": 0.9, "timeline": buckets(commits)})
    assert stun is not None
    assert stun.start_s == pytest.approx(1.0)


def test_without_a_pause_the_phases_tell() -> None:
    timeline = [*buckets([9, 0, 9, 9]), {"t_s": 0.3, "commits": 0, "phase": "device"}]
    stun = place_stun({"stun_s": 0.01, "setup_s": None, "precopy_s": None, "timeline": timeline})
    assert stun is not None
    assert stun.start_s in (pytest.approx(0.01), pytest.approx(0.3))


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
