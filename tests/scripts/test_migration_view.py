"""What is printed while a migration goes on: lines where nothing is live, a few that change where a terminal is."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

from rich.console import Console

from pagefire.scripts.migration_view import PHASES, MigrationView
from pagefire.source_host.convergence import judge
from tests.source_host.test_outlook import NAMES, events_of

Json = dict[str, Any]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def printed(name: str, *, terminal: bool) -> tuple[str, list[float]]:
    """Play a recording at its own pace; gives the text, and when something was printed that is no turn."""
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=terminal, width=100, highlight=False)
    view = MigrationView(console, judge, clock)
    at_s: list[float] = []
    with view.shown():
        for event in events_of(name):
            clock.now_s = event["at_s"]
            before = file.tell()
            view.take(event)
            if file.tell() > before and event["event"] in ("progress", "moving"):
                at_s.append(event["at_s"])
    return file.getvalue(), at_s


def test_where_nothing_is_live_a_line_a_second_at_most() -> None:
    for name in NAMES:
        text, at_s = printed(name, terminal=False)
        assert "\x1b" not in text
        for before, after in itertools.pairwise(at_s):
            assert after - before >= 1.0, name
        # Every phase that the migration came to, once.
        phases = {event["phase"] for event in events_of(name) if event["event"] == "phase"}
        for phase in phases & PHASES.keys():
            assert text.count(PHASES[phase]) == 1


def test_a_line_tells_all_that_is_known() -> None:
    name = next(name for name in NAMES if name.startswith("hopeless"))
    lines = printed(name, terminal=False)[0].splitlines()
    told = [line for line in lines if "will not converge" in line]
    assert told
    for words in ("round ", "pages remaining", " written", " sent", "time left not known"):
        assert words in told[0], words
    name = next(name for name in NAMES if name.startswith("converges"))
    told = [line for line in printed(name, terminal=False)[0].splitlines() if "stun about" in line]
    assert told
    assert " to go" in told[0]


def test_the_end_of_pre_copy_is_told_with_its_reason() -> None:
    for name in NAMES:
        stops = [event for event in events_of(name) if event["event"] == "round" and event["stop"]]
        text = printed(name, terminal=False)[0]
        for event in stops:
            assert event["verdict"] in text
            assert f"round {event['round']}: " in text


def test_a_terminal_has_live_lines_and_keeps_the_rounds() -> None:
    for name in NAMES:
        text, at_s = printed(name, terminal=True)
        assert "\x1b[" in text  # moves up to draw anew
        for event in events_of(name):
            if event["event"] == "round":
                assert f"round {event['round']}: " in text
        for before, after in itertools.pairwise(at_s):
            assert after - before >= 0.249, name


def test_recordings_are_small() -> None:
    """They are read by every run of these tests."""
    for name in NAMES:
        assert len(json.dumps(events_of(name))) < 150_000, name
