"""The summary: what a person looks for is there, at 80 columns and without colour, and nothing passes for measured that was not."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from pagefire.protocol.report import Compression, DeltaCache, MigrationReport, Round, Unchanged
from pagefire.scripts.summary import NOT_MEASURED, render_failure, render_summary, stun_words

from . import completed_report


def printed(report: dict[str, Any], width: int = 100) -> str:
    page = StringIO()
    render_summary(report, Console(file=page, width=width))
    return page.getvalue()


def flowing(report: dict[str, Any]) -> str:
    return " ".join(printed(report).split())


def test_the_first_sentence_says_what_happened() -> None:
    first = flowing(completed_report().as_dict()).partition(" guest 4 GiB")[0]
    assert first == (
        "cache-7 moved to 10.0.0.2:7400: the guest stood still for 12.4 ms; all of it took 3.21 s. "
        "No commit was lost or repeated."
    )


@pytest.mark.parametrize("width", [80, 100, 240])
def test_every_section_is_there_and_no_line_is_too_long(width: int) -> None:
    words = printed(completed_report().as_dict(), width)
    for title in ("Stun", "Downtime", "Pre-copy", "Bitmap at switchover", "Post-copy", "Guest", "Verified", "Cost"):
        assert f"\n{title}" in words
    for figure in (
        "12.6 ms",
        "262,144",
        "5.09 KiB",
        "25 times smaller",
        "p99 140 us",
        "92% of before",
        "550 MB/s",
        "holds",
    ):
        assert figure in words
    assert max(len(line) for line in words.splitlines()) <= min(width, 100)


def test_a_slowed_guest_is_told_of() -> None:
    slept = "auto-converge the vCPUs slept 800 ms each, 1.2 s at most: in round 2 30% of the time, one of them 45%"
    assert slept in flowing(completed_report().as_dict())
    assert "auto-converge" not in flowing(completed_report().as_dict() | {"throttle": None})


def test_the_breakdown_adds_up() -> None:
    report = completed_report().as_dict()
    lines = printed(report).splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith("quiesce"))
    shares = [int(word[:-1]) for line in lines[first : first + 9] for word in line.split() if word.endswith("%")]
    assert len(shares) == 9
    assert sum(shares) == pytest.approx(100, abs=5)


def test_a_part_that_cannot_be_does_not_fill_the_screen() -> None:
    """A migration whose destination had died took `resume` for the time since the machine was started: a bar of megabytes."""
    report = completed_report().as_dict()
    report["downtime_breakdown"] |= {"resume_s": 5e4, "transfer_s": -5e4}
    assert len(printed(report)) < 2 * len(printed(completed_report().as_dict()))


def test_a_report_read_back_from_json_prints_the_same() -> None:
    report = completed_report().as_dict()
    assert printed(json.loads(json.dumps(report))) == printed(report)


def test_what_was_not_measured_says_so() -> None:
    words = printed(MigrationReport(outcome="completed").as_dict())
    assert words.startswith("The guest moved to its destination: how long the guest stood still was not measured.")
    assert words.count(NOT_MEASURED) > 25
    assert "None" not in words


@pytest.mark.parametrize("key", sorted(completed_report().as_dict()))
def test_each_figure_alone_may_be_missing(key: str) -> None:
    report = completed_report().as_dict()
    assert printed(report | {key: None})
    del report[key]
    assert printed(report)


def test_all_nested_figures_may_be_missing() -> None:
    def hollow(tree: Any) -> Any:
        if isinstance(tree, dict):
            return dict.fromkeys(tree)
        return [hollow(one) for one in tree] if isinstance(tree, list) else tree

    report = {key: hollow(figure) for key, figure in completed_report().as_dict().items()}
    assert "0 B" not in printed(report)
    assert printed({key: {} if isinstance(figure, dict) else figure for key, figure in report.items()})


def test_compression_is_mentioned_where_it_was_asked_for() -> None:
    report = completed_report()
    assert "compressed" not in flowing(report.as_dict())
    report.compression = Compression("off")
    assert "compressed" not in flowing(report.as_dict())
    report.compression = Compression("auto", "zstd", 25_600, 12, 100 << 20, 32 << 20, 3.125)
    assert "compressed 3.12 to 1 by zstd 100 MiB of page contents to 32 MiB; 12 pages went as they are" in flowing(
        report.as_dict()
    )
    report.compression = Compression("auto", reason="the link is too fast for it to pay: it carries 2 GB/s")
    assert "compressed nothing the link is too fast for it to pay: it carries 2 GB/s" in flowing(report.as_dict())


def test_unchanged_pages_are_mentioned_where_they_were_looked_for() -> None:
    report = completed_report()
    report.unchanged = Unchanged("off", reason="asked for")
    assert "unchanged" not in flowing(report.as_dict())
    report.unchanged = Unchanged("auto", reason="the link is too fast for it to pay")
    assert "unchanged 0 pages the link is too fast for it to pay" in flowing(report.as_dict())
    report.unchanged = Unchanged("on", 600_000, 400_000, 0.5, "asked for")
    assert "unchanged 400,000 pages left out, of 600,000 pages looked at in 500 ms" in flowing(report.as_dict())
    assert "same" not in flowing(report.as_dict())
    report.rounds[1].unchanged_pages = 4321
    assert "skipped same left" in flowing(report.as_dict())
    assert "4,321" in flowing(report.as_dict())


def test_differences_are_mentioned_where_they_were_asked_for() -> None:
    report = completed_report()
    assert "differences" not in flowing(report.as_dict())
    report.delta_cache = DeltaCache(1 << 30, reason="it pays", whole_pages=1234)
    assert "differences none it pays; 1,234 pages had no version" in flowing(report.as_dict())
    report.delta_cache = DeltaCache(1 << 30, 1 << 20, 25_600, 100 << 20, 4 << 20, 25.0, 1234, 55, 77)
    told = flowing(report.as_dict())
    rest = "1,234 pages had no version, 55 were written all over, 77 found no room"
    assert f"differences 25 to 1 100 MiB of page contents to 4 MiB; {rest}" in told
    assert "zero on the wire" in told
    report.rounds[1].delta_pages = 4321
    told = flowing(report.as_dict())
    assert "zero differences on the wire" in told
    assert "4,321" in told


def test_uncertain_clocks_make_the_stun_a_range() -> None:
    assert stun_words({"stun_s": 0.0124, "stun_error_s": 0.001}) == "12.4 ms"
    assert stun_words({"stun_s": 0.0124, "stun_error_s": 0.004}) == "8.4 ms to 16.4 ms"
    assert stun_words({"stun_s": 0.001, "stun_error_s": 0.002}) == "0 s to 3 ms"
    assert stun_words({"stun_s": None, "stun_error_s": 0.002}) == NOT_MEASURED


@pytest.mark.parametrize(
    "wrong",
    [{"invariant": False}, {"commits_lost": 3}, {"commits_repeated": 1}, {"digest_match": False}, {"problems": ["x"]}],
)
def test_a_disproved_migration_says_so_in_its_first_words(wrong: dict[str, Any]) -> None:
    report = completed_report().as_dict()
    report["verified"] |= wrong
    assert "VERIFICATION FAILED" in printed(report).partition("Stun")[0].replace("\n", " ")


def test_many_rounds_are_shown_by_their_ends() -> None:
    report = completed_report()
    report.rounds = [Round(number, 1000 + number, 0, 4096, 0.1, 10, 0, 100.0, 4096) for number in range(1, 31)]
    words = printed(report.as_dict())
    assert "(18 more)" in words
    assert "1,001" in words
    assert "1,030" in words
    assert "1,015" not in words


def test_failures_say_why_and_a_cancelled_guest_where_it_is() -> None:
    failed = completed_report().as_dict() | {"outcome": "failed", "error": "the link was lost: [reset] by peer."}
    words = printed(failed)
    assert words.startswith("The migration of cache-7 to 10.0.0.2:7400 failed after 3.21 s.")
    assert "[reset] by peer" in words
    assert "Pre-copy" in words
    assert "cancelled after 3.21 s; the guest runs on at the source" in flowing(failed | {"outcome": "cancelled"})
    assert "has not ended: it is active" in flowing(MigrationReport().as_dict())


def test_render_failure_takes_an_empty_report() -> None:
    page = StringIO()
    render_failure({}, Console(file=page, width=100))
    assert "of unknown state" in page.getvalue()


def test_an_ascii_terminal_gets_ascii() -> None:
    class AsciiPage(StringIO):
        encoding = "ascii"

    page = AsciiPage()
    render_summary(completed_report().as_dict(), Console(file=page, width=80))
    assert page.getvalue().isascii()
    assert "####" in page.getvalue()
