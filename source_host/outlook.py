"""How a migration under way will go on, from its events so far. Pure: the same events give the same outlook, and no clock is read.

The rounds to come are played through with the rule that ends real ones (convergence.py, or a policy of the person's): each is sent
at the speed that was seen, and leaves what the curve of the guest's writes so far (dirty_curve.py) makes of its time. What is
rewritten while it waits is not sent in that round (outstanding.py); here it is, so that a time is rather too long than too short.

Nothing is said before it can be known. That a migration will not converge is said from the third look at a round on, or after the
first round: one look is a straight line. A time is not given where there is none: a pre-copy that will be given up has no end.
`done_share` is the share of the expected time that has passed. It never falls: an end that moves away makes it stand still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.report import Round
from pagefire.protocol.units import format_duration, format_throughput
from pagefire.source_host import convergence, prediction, throttling
from pagefire.source_host.convergence import Limits
from pagefire.source_host.dirty_curve import DirtyCurve
from pagefire.source_host.outstanding import LOOK_S
from pagefire.source_host.policy import Judge

#: A round tells the speed of the link once it has gone on for so long: until then buffers are filled.
STEADY_S = 0.5
#: How often the rounds to come are played through.
PLAY_S = 0.5
#: Looks from which on a curve is more than a straight line.
LEAST_LOOKS = 3
#: Over how long the push after the resume is averaged.
_PUSH_WINDOW_S = 1.0
#: More rounds than this are not played: what has not converged by then does not.
_MOST_ROUNDS = 200
#: Until the last page has been heard to be there, something is left to do.
_NEARLY = 0.99
_ROUND_FIELDS = {field.name for field in fields(Round)}
_LIMIT_FIELDS = {field.name for field in fields(Limits)}
_ANYTHING = Limits("hybrid", 0.05, 30, 300.0, "postcopy")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is shown of a migration. Rates are page contents a second; None: not known.

    remaining_pages: what the destination lacks, as far as it was seen: the rest of the round, and what was written meanwhile.
    stun_s: how long the guest will stand still, eta_s: until the last page is there. words: what a person should know.
    """

    phase: str
    at_s: float
    round: int
    done_share: float
    remaining_pages: int | None
    written_Bps: float | None
    sent_Bps: float | None
    stun_s: float | None
    eta_s: float | None
    words: str


class _Course(NamedTuple):
    """What the rounds to come lead to."""

    eta_s: float | None
    stun_s: float | None
    words: str


_UNKNOWN = _Course(None, None, "")


def outlooks(events: Iterable[dict[str, Any]], judge: Judge = convergence.judge) -> Iterator[Outlook]:
    """Give what is to be shown after each of a migration's events, as its source emits them."""
    watched = Watched(judge)
    for event in events:
        yield watched.take(event)


class Watched:
    """The events of one migration so far, as far as they bear on what follows."""

    def __init__(self, judge: Judge = convergence.judge) -> None:
        self._judge = judge
        self._limits, self._vcpus, self._auto_converge, self._deltas = _ANYTHING, 1, False, False
        self._phase, self._at_s, self._began_s = "setup", 0.0, 0.0
        self._rounds: list[Round] = []
        self._current: dict[str, Any] | None = None
        #: Where and how much was written since the beginning of this round, and of the last one.
        self._looks: list[tuple[float, int]] = []
        self._last_looks: list[tuple[float, int]] = []
        self._most_pages = 0
        self._left: deque[tuple[float, int]] = deque()
        #: What was decided to follow the last round.
        self._follows = ""
        self._paused: str | None = None
        self._course, self._played_s, self._done_share = _UNKNOWN, -PLAY_S, 0.0

    def take(self, event: dict[str, Any]) -> Outlook:
        """Take in the next event; gives what is to be shown now."""
        self._at_s = max(self._at_s, event.get("at_s", self._at_s))
        self._note(event)
        if self._phase == "active" and (
            self._at_s - self._played_s >= PLAY_S or event["event"] in ("round", "retuned")
        ):
            try:
                self._course = self._play()
            except PagefireError:
                # A policy of the person's that fails: whatever it is, the migration will say so.
                self._course = _UNKNOWN
            self._played_s = self._at_s
        elif self._phase == "postcopy-active" and self._left:
            self._course, self._played_s = self._push(), self._at_s
        elif self._phase == "device" and self._all_at_once and (speed := self._speed()) and self._current is not None:
            self._course, self._played_s = self._course._replace(eta_s=self._to_go / speed, words=""), self._at_s
        return self._shown()

    def _note(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "requested":
                self._limits = Limits(**{name: event[name] for name in _LIMIT_FIELDS})
                self._vcpus, self._auto_converge = event["vcpus"], event["auto_converge"]
                self._deltas = event["delta_cache_bytes"] > 0
            case "retuned":
                self._retune(event["changes"])
            case "phase":
                self._phase = event["phase"]
                if self._phase == "active":
                    self._began_s = self._at_s
            case "progress":
                self._progress(event)
            case "round":
                self._rounds.append(Round(**{name: event[name] for name in _ROUND_FIELDS}))
                if event["dirty_pages_after"]:
                    self._looks.append((event["duration_s"], event["dirty_pages_after"]))
                self._last_looks, self._looks, self._current = self._looks, [], None
                self._follows = event["then"]
            case "resumed" | "moving" | "recovered":
                self._paused = None
                self._left.append((self._at_s, event["remaining_pages"]))
                while self._at_s - self._left[0][0] > _PUSH_WINDOW_S:
                    self._left.popleft()
            case "paused":
                self._paused = event["error"]
                self._left.clear()
                self._left.append((self._at_s, event["remaining_pages"]))

    def _retune(self, changes: dict[str, Any]) -> None:
        changes = {name: value for name, value in changes.items() if name in _LIMIT_FIELDS and value is not None}
        if changes.get("mode") == "postcopy":
            changes |= {"mode": "hybrid", "switch_now": True}
        self._limits = replace(self._limits, **changes)

    def _progress(self, event: dict[str, Any]) -> None:
        self._current = event
        self._most_pages = max(self._most_pages, event["pages"])
        after_s, pages = event["looked_after_s"], event["unsent_pages"]
        if after_s is not None and (not self._looks or after_s > self._looks[-1][0]):
            self._looks.append((after_s, pages))

    # -- what is known ---------------------------------------------------------------------------------------------------------

    @property
    def _all_at_once(self) -> bool:
        """Whether all that is left goes in the stun."""
        return self._limits.mode in ("precopy", "stop-and-copy") and self._follows != "postcopy"

    @property
    def _to_go(self) -> int:
        """Pages of this round that have not been dealt with."""
        return max(self._current["pages"] - self._current["sent_pages"], 0) if self._current is not None else 0

    def _speed(self) -> float | None:
        """Pages a second that the link gets through."""
        current = self._current
        if current is not None and current["round_s"] >= STEADY_S and current["sent_pages"]:
            return float(current["sent_pages"] / current["round_s"])
        return convergence.pace_Bps(self._rounds) / PAGE_BYTES if self._rounds else None

    def _written_per_s(self) -> float | None:
        """Different pages a second that the guest writes."""
        current = self._current
        if current is not None and current["dirty_pages_per_s"] is not None:
            return float(current["dirty_pages_per_s"])
        return self._rounds[-1].dirty_pages_per_s if self._rounds else None

    def _curve(self) -> DirtyCurve | None:
        """The guest's writes by time; None where too little was seen of them."""
        looks = self._looks
        if len(looks) < LEAST_LOOKS:
            if not self._rounds:
                return None
            looks = self._last_looks
        return DirtyCurve([after_s for after_s, _ in looks], [pages for _, pages in looks], max(self._most_pages, 1))

    # -- what follows ------------------------------------------------------------------------------------------------------------

    def _play(self) -> _Course:
        """Play the rounds to come through, this one to its end first."""
        speed, curve = self._speed(), self._curve()
        if not speed or curve is None or (self._deltas and not self._rounds):
            # What differences will leave a first round does not tell.
            return _UNKNOWN
        later = self._later_speed(speed)
        rounds, began_s = [*self._rounds], self._at_s - self._began_s
        pages, duration_s, to_come_s = self._begun(rounds, speed)
        while not rounds or rounds[-1].round < len(self._rounds) + _MOST_ROUNDS:
            if pages is not None:
                rounds.append(self._played(len(rounds) + 1, pages, duration_s, curve, later))
            verdict = self._judge(rounds, self._limits, began_s + to_come_s)
            if verdict.stop:
                break
            pages = rounds[-1].dirty_pages_after
            duration_s = pages / later
            to_come_s += duration_s
        else:
            return self._endless(rounds, "no end in sight")
        if verdict.then == "cancel":
            return self._endless(rounds, f"it will be given up in about {format_duration(to_come_s)}")
        left = rounds[-1].dirty_pages_after
        after_resume = self._limits.mode == "hybrid" or verdict.then == "postcopy"
        stun_s = prediction.DOWNTIME_S + prediction.VCPU_S * self._vcpus
        if after_resume:
            stun_s += min(prediction.HOT_PAGES, left) / speed + prediction.FIRST_FETCHES_S
            eta_s = to_come_s + stun_s + left / speed
        else:
            stun_s += left / later + prediction.FIRST_COMMIT_S
            eta_s = to_come_s + stun_s
        within = left * PAGE_BYTES / max(convergence.bandwidth_Bps(rounds), 1.0) <= self._limits.downtime_limit_s
        if self._limits.switch_now or within or not after_resume:
            return _Course(eta_s, stun_s, "")
        return _Course(eta_s, stun_s, f"will not converge: {self._rates(rounds)}; the rest moves after the resume")

    @property
    def _settled_share(self) -> float:
        """What differences leave of pages that have been sent once; 1 without them."""
        return self._rounds[-1].settled_share if self._rounds else 1.0

    def _later_speed(self, speed: float) -> float:
        """Pages a second of the rounds after this one, which goes at `speed`."""
        if self._settled_share == 1.0:
            return speed
        return max(speed, convergence.settled_pace_Bps(self._rounds) / PAGE_BYTES)

    def _begun(self, rounds: list[Round], speed: float) -> tuple[int | None, float, float]:
        """Give the pages and the time of the round under way, and what of that is to come; no pages between two rounds."""
        if self._current is not None:
            to_come_s = self._to_go / speed
            return self._current["pages"], self._current["round_s"] + to_come_s, to_come_s
        return None, 0.0, 0.0

    def _played(self, number: int, pages: int, duration_s: float, curve: DirtyCurve, speed: float) -> Round:
        left = curve.pages(duration_s)
        if self._auto_converge and self._limits.mode == "precopy" and number > 1:
            # The guest is slowed until a round leaves less than it sends.
            aim = prediction.WITHIN_LIMIT * speed * self._limits.downtime_limit_s
            left = min(left, max(throttling.AIM * pages, aim))
        look_s = min(max(duration_s, 1e-6), LOOK_S)
        share = self._settled_share
        size_bytes = round(pages * PAGE_BYTES * share)
        return Round(
            number,
            pages,
            0,
            size_bytes,
            max(pages / speed, 1e-6),
            round(left),
            0,
            curve.pages(look_s) / look_s,
            size_bytes,
            delta_pages=pages if share < 1 else 0,
            delta_bytes=size_bytes if share < 1 else 0,
            delta_share=share,
            settled_share=share,
        )

    def _endless(self, rounds: list[Round], follows: str) -> _Course:
        return _Course(None, None, f"will not converge: {self._rates(rounds)}; {follows}")

    def _rates(self, rounds: list[Round]) -> str:
        """Say what is written and what is sent, over the time of the last round that was played."""
        last, speed = rounds[-1], self._speed() or 0.0
        written = max(last.dirty_pages_after / max(last.duration_s, 1e-6), self._written_per_s() or 0.0)
        return f"{format_throughput(written * PAGE_BYTES)} written, {format_throughput(speed * PAGE_BYTES)} sent"

    def _push(self) -> _Course:
        """After the resume: what is left, at the speed of the last second."""
        if self._paused is not None:
            return _Course(None, None, f"post-copy is paused: {self._paused}")
        (first_s, first), (last_s, last) = self._left[0], self._left[-1]
        speed = (first - last) / (last_s - first_s) if last_s > first_s and first > last else self._speed()
        return _Course(last / speed if speed else None, None, "")

    def _shown(self) -> Outlook:
        eta_s = self._course.eta_s
        if eta_s is not None:
            # The end stays where it was reckoned to be until it is reckoned anew.
            eta_s = max(eta_s - (self._at_s - self._played_s), 0.0)
            self._done_share = max(self._done_share, min(self._at_s / max(self._at_s + eta_s, 1e-9), _NEARLY))
        speed, written = self._speed(), self._written_per_s()
        moving = self._phase == "postcopy-active"
        return Outlook(
            phase=self._phase,
            at_s=self._at_s,
            round=self._current["round"] if self._current is not None else len(self._rounds),
            done_share=self._done_share,
            remaining_pages=self._remaining(),
            written_Bps=written * PAGE_BYTES if written is not None and not moving else None,
            sent_Bps=speed * PAGE_BYTES if speed is not None and not moving else None,
            stun_s=self._course.stun_s if not moving else None,
            eta_s=eta_s,
            words=self._course.words,
        )

    def _remaining(self) -> int | None:
        if self._left:
            return self._left[-1][1]
        if self._current is not None:
            return self._to_go + (self._current["unsent_pages"] or 0)
        return self._rounds[-1].dirty_pages_after if self._rounds else None
