"""The outlook on a migration: by the events of real ones, recorded with `--events`, and by some that are made up.

recorded/NAME.jsonl holds the source's lines of one migration each, as they were written. What was said before the end is held
against the end.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.errors import PagefireError
from pagefire.source_host.convergence import Verdict
from pagefire.source_host.outlook import Outlook, outlooks

Json = dict[str, Any]
RECORDED = Path(__file__).with_name("recorded")
NAMES = sorted(path.stem for path in RECORDED.glob("*.jsonl"))
CONVERGING = [name for name in NAMES if name.startswith("converges")]
every_recording = pytest.mark.parametrize("name", NAMES)


def events_of(name: str) -> list[Json]:
    """Read a recording as the command gets it, without its last line, which is not for it."""
    lines = [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]
    return [{"event": line["event"], **line["fields"]} for line in lines if line["event"] != "ended"]


def ended(name: str) -> Json:
    (last,) = (
        line["fields"]
        for line in map(json.loads, (RECORDED / f"{name}.jsonl").read_text().splitlines())
        if line["event"] == "ended"
    )
    return dict(last)


def seen(name: str) -> list[Outlook]:
    return list(outlooks(events_of(name)))


def test_there_are_recordings_of_every_kind() -> None:
    assert {name.partition("-")[0] for name in NAMES} == {"converges", "hopeless", "hybrid", "throttled", "stopped"}


@every_recording
def test_what_is_shown_never_runs_backwards(name: str) -> None:
    shown = seen(name)
    for before, after in itertools.pairwise(shown):
        assert 0 <= before.done_share <= after.done_share < 1
        assert before.at_s <= after.at_s
        assert before.round <= after.round


@every_recording
def test_it_follows_from_the_events_alone(name: str) -> None:
    events = events_of(name)
    once = list(outlooks(events))
    assert list(outlooks(events)) == once
    assert list(outlooks(events[: len(events) // 2])) == once[: len(events) // 2]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("hopeless")])
def test_the_time_left_is_about_right(name: str) -> None:
    """From the middle of its time on, and not about a fraction of a second."""
    total_s = ended(name)["total_s"]
    told = [one for one in seen(name) if one.eta_s is not None and total_s / 2 < one.at_s < 0.9 * total_s]
    assert told
    for one in told:
        assert one.eta_s is not None
        left_s = total_s - one.at_s
        assert left_s / 2.5 < one.eta_s < 2.5 * left_s, (one, left_s)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("converges", "throttled"))])
def test_what_converges_is_never_said_not_to(name: str) -> None:
    assert not [one for one in seen(name) if "will not converge" in one.words]


@pytest.mark.parametrize("name", CONVERGING)
def test_the_stun_is_foretold(name: str) -> None:
    """What is said of it last; the limit bounds it, and the fixed part is what `predict` takes."""
    told = [one.stun_s for one in seen(name) if one.stun_s is not None][-1]
    stun_s = ended(name)["stun_s"]
    assert stun_s / 4 < told < 4 * stun_s


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hopeless")])
def test_what_does_not_converge_is_told_early_and_never_given_a_time(name: str) -> None:
    shown = [one for one in seen(name) if one.phase == "active"]
    first = next(index for index, one in enumerate(shown) if "will not converge" in one.words)
    assert shown[first].at_s < ended(name)["precopy_s"] if ended(name)["precopy_s"] else len(shown) / 2 > first
    for one in shown[first:]:
        assert one.words.startswith("will not converge: ")
        assert " written, " in one.words
        assert " sent; it will be given up" in one.words
        assert one.eta_s is None
        assert one.stun_s is None
    assert len({one.done_share for one in shown[first:]}) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hybrid")])
def test_hybrid_says_that_the_rest_moves_afterwards(name: str) -> None:
    words = [one.words for one in seen(name) if "will not converge" in one.words]
    assert words
    assert all(" sent; the rest moves after the resume" in one for one in words)
    _, *after = (one for one in seen(name) if one.phase == "postcopy-active")
    assert [one.remaining_pages for one in after] == sorted((one.remaining_pages for one in after), reverse=True)
    assert {one.words for one in after} == {""}


# -- made up -----------------------------------------------------------------------------------------------------------------

REQUESTED = {
    "event": "requested", "destination": "x:1", "mode": "precopy", "downtime_limit_s": 0.05, "max_rounds": 30, "max_time_s": 300.0,
    "on_limit": "cancel", "switch_now": False, "auto_converge": False, "streams": 1, "delta_cache_bytes": 0,
    "max_bandwidth_Bps": None,
    "memory_bytes": 1 << 30, "vcpus": 2, "at_s": 0.0,
}  # fmt: skip


def progress(at_s: float, sent_pages: int, pages: int = 262_144, written: int | None = None) -> Json:
    return {
        "event": "progress", "round": 1, "pages": pages, "sent_pages": sent_pages, "wire_bytes": sent_pages * 4100, "round_s": at_s,
        "looked_after_s": at_s if written is not None else None, "unsent_pages": written,
        "dirty_pages_per_s": written / at_s if written is not None else None, "at_s": at_s,
    }  # fmt: skip


def test_nothing_is_said_before_it_can_be_known() -> None:
    start = [REQUESTED, {"event": "phase", "phase": "active", "at_s": 0.0}]
    *_, early = outlooks([*start, progress(0.1, 3000)])
    assert (early.eta_s, early.stun_s, early.words, early.sent_Bps, early.done_share) == (None, None, "", None, 0.0)
    *_, one_look = outlooks([*start, progress(0.6, 18_000, written=400_000)])
    assert (one_look.eta_s, one_look.words) == (None, "")
    assert one_look.sent_Bps == pytest.approx(30_000 * 4096)


def test_a_guest_that_writes_faster_than_the_link_is_named_with_both_rates() -> None:
    """The example that the design gives: 900 MB/s written, 700 MB/s sent."""
    written, sent = 900_000_000 // 4096, 700_000_000 // 4096
    looks = [progress(at, round(at * sent), 50_000_000, round(at * written)) for at in (0.5, 1.0, 1.5, 2.0)]
    *_, last = outlooks([REQUESTED, {"event": "phase", "phase": "active", "at_s": 0.0}, *looks])
    assert last.words.startswith("will not converge: 900 MB/s written, 700 MB/s sent; it will be given up in about ")
    assert last.eta_s is None


def test_a_post_copy_that_is_paused_has_no_end() -> None:
    events = [
        REQUESTED,
        {"event": "phase", "phase": "postcopy-active", "at_s": 1.0},
        {"event": "resumed", "remaining_pages": 1000, "at_s": 1.0},
        {"event": "moving", "remaining_pages": 800, "at_s": 1.1},
        {"event": "paused", "error": "the link was lost", "remaining_pages": 790, "at_s": 1.2},
        {"event": "recovered", "remaining_pages": 795, "at_s": 5.0},
        {"event": "moving", "remaining_pages": 500, "at_s": 5.1},
    ]
    moving, paused, _, again = list(outlooks(events))[3:]
    assert moving.eta_s == pytest.approx(0.4)
    assert (paused.eta_s, paused.words) == (None, "post-copy is paused: the link was lost")
    assert (again.words, again.remaining_pages) == ("", 500)
    assert again.eta_s is not None
    assert again.done_share >= moving.done_share


def test_a_policy_of_ones_own_is_asked() -> None:
    name = "converges-precopy"
    asked: list[int] = []

    def never(rounds: Any, limits: Any, elapsed_s: float) -> Verdict:
        asked.append(len(rounds))
        return Verdict(False, "", "")

    shown = list(outlooks(events_of(name), never))
    assert max(asked) > 100
    assert "will not converge" in shown[-1].words or any("no end in sight" in one.words for one in shown)

    def broken(rounds: Any, limits: Any, elapsed_s: float) -> Verdict:
        raise PagefireError("the policy failed")

    assert all(one.eta_s is None for one in outlooks(events_of(name), broken) if one.phase == "active")


def test_it_is_retuned_in_flight() -> None:
    """Told to move on after the resume, what would not have converged has an end."""
    name = next(name for name in NAMES if name.startswith("hopeless"))
    events = events_of(name)
    middle = next(i for i, event in enumerate(events) if event["event"] == "round") + 1
    at_s = events[middle - 1]["at_s"]
    retuned = {"event": "retuned", "changes": {"mode": "postcopy"}, "at_s": at_s}
    *_, last = outlooks([*events[:middle], retuned])
    assert last.eta_s is not None
    assert last.words == ""


def test_of_a_first_round_nothing_is_said_where_later_ones_send_differences() -> None:
    """It goes on as if it would not converge, and what follows is quicker by far."""
    asked, *others = events_of("hopeless-precopy")
    first = [asked, *itertools.takewhile(lambda event: event["event"] != "round", others)]
    assert any("will not converge" in one.words for one in outlooks(first))
    with_them = [asked | {"delta_cache_bytes": 1 << 30}, *first[1:]]
    assert not any(one.words or one.eta_s is not None for one in outlooks(with_them))
    ended = others[len(first) - 1]
    assert ended["event"] == "round"
    for share, hopeless in ((0.05, False), (1.0, True)):
        *_, last = outlooks([*with_them, ended | {"delta_share": 1 - (1 - share) / 10, "settled_share": share}])
        assert ("will not converge" in last.words) == hopeless
        assert (last.eta_s is None) == hopeless
