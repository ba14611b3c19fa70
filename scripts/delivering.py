"""Where a command's results go: a report to the terminal, to a file as JSON, and to a folder; what goes on, to the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from pagefire.protocol.errors import PagefireError, UsageError

#: What is told beside a result: standard output is the result's.
SCREEN = Console(stderr=True, highlight=False)


def deliver(report: dict[str, Any], json_file: str | None, folder: Path | None) -> None:
    """Show and write a report; standard output carries JSON alone when that is asked for."""
    from pagefire.scripts.report_folder import write_report_folder
    from pagefire.scripts.summary import render_summary

    if json_file is not None:
        write_json(report, json_file)
    render_summary(report, SCREEN if json_file == "-" else Console(highlight=False))
    verified = report["verified"]
    if folder is not None:
        written = write_report_folder(report, folder)
        SCREEN.print("Report: " + ", ".join(str(path) for path in written), soft_wrap=True)
    if verified["invariant"] is False or verified["commits_lost"] or verified["commits_repeated"]:
        raise PagefireError(
            "the guest is not what it was", "; ".join(verified["problems"]) or "commits were lost or repeated",
            "keep the report: this is a defect of pagefire",
        )  # fmt: skip


def deliver_failure(report: dict[str, Any], json_file: str | None, folder: Path | None) -> None:
    """Write what had been measured before a migration ended; its error is printed by whoever catches it."""
    from pagefire.scripts.report_folder import write_report_folder

    if json_file is not None:
        write_json(report, json_file)
    if folder is not None:
        write_report_folder(report, folder)


def require_writable(json_file: str | None) -> None:
    """Refuse a file that could not be written before anything is done whose figures it is to hold."""
    if json_file is None or json_file == "-":
        return
    try:
        with Path(json_file).open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise UsageError(f"{json_file} cannot be written", error.strerror or str(error), "change --json") from error


def write_json(value: dict[str, Any], json_file: str) -> None:
    text = json.dumps(value, indent=1)
    if json_file == "-":
        print(text)
        return
    try:
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PagefireError(
            f"{json_file} could not be written", error.strerror or str(error), "change --json"
        ) from error
