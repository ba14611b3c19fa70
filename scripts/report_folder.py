"""A report as a folder; a migration's: report.json for programs, summary.txt for people, timeline.png for papers.

Of a guest whose clients waited for it there is latency.png too.

A folder that holds anything else is left alone: its files belong to somebody. One that holds an earlier report only is written
over. The JSON comes first and is complete or absent, so that a figure is never lost to a picture that could not be drawn.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.scripts.latency_plot import draw_latencies
from pagefire.scripts.layout import MAX_WIDTH_COLUMNS
from pagefire.scripts.summary import render_summary
from pagefire.scripts.timeline import draw_timeline

REPORT_FILES = ("report.json", "summary.txt", "timeline.png")
LATENCY_FILE = "latency.png"
_UNFINISHED = ".unfinished"

Report = dict[str, Any]


def default_folder(now: datetime) -> Path:
    """Name the folder of a report written at `now`, relative to the working directory: pagefire-report-YYYYmmdd-HHMMSS."""
    return Path(f"pagefire-report-{now:%Y%m%d-%H%M%S}")


def write_report_folder(report: Report, folder: Path) -> list[Path]:
    """Write its files, making the folder and its parents; gives their paths.

    Raises UsageError, before anything is written, when `folder` is a file or holds something that is no report; PagefireError when
    the system refuses to write (what was written until then stays).
    """
    json_path, summary_path, timeline_path = (folder / name for name in REPORT_FILES)
    written = [json_path, summary_path, timeline_path]
    with report_folder(folder, (*REPORT_FILES, LATENCY_FILE)):
        write_whole(report, json_path)
        summary_path.write_text(_summary_text(report), encoding="utf-8")
        draw_timeline(report, timeline_path)
        # That of an earlier report says nothing of this one.
        latency_path = folder / LATENCY_FILE
        latency_path.unlink(missing_ok=True)
        if (report.get("database") or {}).get("latencies"):
            draw_latencies(report, latency_path)
            written.append(latency_path)
    return written


@contextmanager
def report_folder(folder: Path, files: Collection[str]) -> Iterator[None]:
    """Make a folder that is to hold `files` and nothing else, and map what the system refuses while they are written to it.

    Raises UsageError when it is a file or holds something else, PagefireError instead of OSError.
    """
    try:
        refuse_foreign(folder, files)
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise PagefireError(f"the report could not be written to {folder}", why, "name another folder") from error


def write_whole(report: Report, json_path: Path) -> None:
    """Write a report as JSON such that the file is complete or absent, whenever this ends."""
    unfinished = json_path.with_name(json_path.name + _UNFINISHED)
    unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(json_path)


def refuse_foreign(folder: Path, files: Collection[str]) -> None:
    """Raise UsageError when `folder` is a file, or holds anything but `files`."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} cannot take the report", "it is a file", "name a folder that is new or empty")
    own = {*files, *(name + _UNFINISHED for name in files)}
    foreign = sorted({entry.name for entry in folder.iterdir()} - own) if folder.exists() else []
    if foreign:
        why = f"it holds something that is not a report: {foreign[0]}"
        raise UsageError(f"{folder} cannot take the report", why, "name a folder that is new or empty")


def _summary_text(report: Report) -> str:
    page = StringIO()
    # No colour and a fixed width, whatever terminal this was started from.
    console = Console(file=page, width=MAX_WIDTH_COLUMNS, color_system=None, force_terminal=False, no_color=True)
    render_summary(report, console)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"
