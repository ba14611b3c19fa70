"""A database's lines in the summary, and the picture of its latencies."""

from __future__ import annotations

import random
from io import StringIO
from pathlib import Path

import numpy as np
from matplotlib import image
from rich.console import Console

from pagefire.protocol.client_report import Database, Latencies, LatencyBucket
from pagefire.protocol.report import MigrationReport
from pagefire.scripts.report_folder import LATENCY_FILE, REPORT_FILES, write_report_folder
from pagefire.scripts.summary import render_summary
from tests.scripts import completed_report


def database_report() -> MigrationReport:
    """Make up the report of a database whose clients waited 40 ms across the stun."""
    report, noise = completed_report(), random.Random(3)
    assert report.stun_at_s is not None
    buckets = [
        LatencyBucket(one.t_s, one.commits, wait_s := noise.uniform(1e-4, 2e-4), 4 * wait_s)
        for one in report.timeline
        if one.commits
    ]
    first = next(one for one in buckets if one.t_s > report.stun_at_s)
    first.max_s = 0.040
    report.database = Database(
        before=Latencies(1000, 0.00015, 0.0004, 0.0006),
        precopy=Latencies(2400, 0.00016, 0.0005, 0.0009),
        through=Latencies(700, 0.0002, 0.012, 0.040),
        after=None,
        waited=Latencies(2, 0.030, 0.0399, 0.040),
        counted={
            "orders": 4321, "payments": 4000, "looks_at_orders": 300, "failed": 0, "orders_lost": 0, "orders_repeated": 2,
            "integrity_errors": 0, "database_bytes": 1 << 24,
        },
        latencies=buckets,
    )  # fmt: skip
    return report


def summary_of(report: MigrationReport) -> str:
    page = StringIO()
    render_summary(report.as_dict(), Console(file=page, width=100, color_system=None))
    return page.getvalue()


def test_the_summary_tells_what_clients_felt_and_what_was_counted() -> None:
    text = summary_of(database_report())
    section = text[text.index("Database") : text.index("Verified")]
    for words in (
        "p99 400 us",
        "p99 12",
        "max 40",
        "no transaction",
        "4,321 orders",
        "4,000 payments",
        "300 looks at orders",
    ):
        assert words in section, section
    lines = {line.strip()[:16].strip(): line for line in section.splitlines()}
    assert "ok" in lines["integrity_check"]
    assert " 2 " in lines["orders repeated"]
    assert " 0 " in lines["orders lost"]


def test_broken_integrity_is_said() -> None:
    report = database_report()
    assert report.database is not None
    report.database.counted["integrity_errors"] = 3
    assert "3 errors" in summary_of(report)


def test_a_guest_without_clients_has_no_such_section_and_picture(tmp_path: Path) -> None:
    assert "Database" not in summary_of(completed_report())
    folder = tmp_path / "report"
    write_report_folder(database_report().as_dict(), folder)
    assert (folder / LATENCY_FILE).exists()
    write_report_folder(completed_report().as_dict(), folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(REPORT_FILES)


def test_the_picture_shows_the_wait(tmp_path: Path) -> None:
    write_report_folder(database_report().as_dict(), tmp_path / "report")
    pixels = image.imread(tmp_path / "report" / LATENCY_FILE)[..., :3]
    assert pixels.shape[1] > 1000
    # Of the longest waits something is drawn, in their colour; the one across the stun stands alone above all others.
    orange = np.abs(pixels - np.array([0xB0, 0x4A, 0x00]) / 255).max(axis=2) < 0.15
    rows = np.flatnonzero(orange.any(axis=1))
    assert rows.size > 20
    first_gap = np.diff(rows).max()
    assert first_gap > 40
