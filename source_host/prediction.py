"""From what was seen of a guest and a path to what its migration will be: the rounds, played through. Pure, no clock.

A round sends its pages at the speed that was measured and leaves what the guest writes meanwhile (dirty_curve.py). It follows the
rule of outstanding.py: at each look what was written since is taken out of what still waits, and granules in which something was
written come last. Pages are not played singly: what waits is two pools, cold and warm, and a look takes from either what share of
it is still there. What of a round's pages is written again in it follows from the curve: those that are in both of two times that
follow each other. After each round the migration's own rule decides (convergence.py, or a policy of the person's).

The stun cannot be measured without stopping the guest. Its parts that grow with something are (pages, vCPUs, the path's answer, the
last scan); the rest is a constant, measured on two cores, as is the speed of the push, which shows the guest each page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.prediction import DirtyPoint, PathSample, PredictedRound, Prediction
from pagefire.protocol.report import Round
from pagefire.protocol.units import format_count, format_duration, format_throughput
from pagefire.source_host import convergence, hot_pages, throttling
from pagefire.source_host.dirty_curve import DirtyCurve
from pagefire.source_host.options import MigrationOptions
from pagefire.source_host.outstanding import LOOK_S
from pagefire.source_host.policy import judge_named
from pagefire.source_host.postcopy import GRACE_S, LITTLE_PAGES

#: From the pause to the vCPUs at the destination, with nothing to send, and what each vCPU adds to that.
DOWNTIME_S, VCPU_S = 0.003, 0.0001
#: From there to the guest's first commit: in pre-copy, and where its first pages are fetched.
FIRST_COMMIT_S, FIRST_FETCHES_S = 0.0005, 0.001
#: What the push takes for a page at least, and for a run of pages besides, beside the guest. Over an unbounded loopback, medians of
#: 6 to 16 migrations: long runs 2.1 (256 MiB) to 3.7 us a page, 900 to 1,400 single pages 4 to 6, with all that a resume takes.
PUSH_PAGE_S, PUSH_RUN_S = 3e-6, 3e-6
#: Hot pages that go in the stun of hybrid.
HOT_PAGES = 30
#: The destination's word that it misses nothing, once it does.
RESIDENT_S = 0.002
#: What of the downtime limit a guest is slowed to, as a share: at the limit itself a page more or less would decide.
WITHIN_LIMIT = 0.9
#: A round that is simulated for so many looks does not end: its pages are written faster than the path carries any.
_MOST_LOOKS = 1_000_000


@dataclass(frozen=True, slots=True)
class Observed:
    """What was measured, by the names of `Prediction`; `dirty` is empty where nothing is traced.

    `scan_s`: one collection, or where nothing is traced, asking which holes have filled; `digest_page_s`: comparing one page
    (`--verify`).
    `resident_pages` includes the `swapped_pages`. *Touched* are pages in granules that are written. `touched_by[i]` is the share of
    them that lies within the first i of n - 1 equal parts of all pages, in ascending order (empty: they lie evenly). `runs_a_page`
    says how scattered the written pages lie: 1 for single ones, near 0 for long runs.
    """

    resident_pages: int
    swapped_pages: int
    vcpus: int
    setup_s: float
    first: PathSample
    again: PathSample | None
    empty_round_s: float
    dirty: tuple[DirtyPoint, ...] = ()
    slowdown: float = 1.0
    scan_s: float = 0.0
    digest_page_s: float = 0.0
    touched_by: tuple[float, ...] = ()
    runs_a_page: float = 0.0

    def curves(self) -> _Curves:
        """Give what the guest writes and touches while a host sends."""
        after_s = [point.after_s * self.slowdown for point in self.dirty]
        written = DirtyCurve(after_s, [point.pages for point in self.dirty], self.resident_pages)
        touched = DirtyCurve(after_s, [point.granule_pages for point in self.dirty], self.resident_pages)
        return _Curves(written, touched)

    def touched_within(self, share: float) -> float:
        """Give which share of the touched pages lies within the first `share` of all."""
        if not self.touched_by:
            return share
        return float(np.interp(share, np.linspace(0.0, 1.0, len(self.touched_by)), self.touched_by))


class _Curves(NamedTuple):
    """Different pages by time: those that are written, and those in granules that are."""

    written: DirtyCurve
    touched: DirtyCurve


class _Speed(NamedTuple):
    """Pages a second, and what they make of wire and payload."""

    pages_per_s: float
    sample: PathSample

    def round(self, number: int, sent: _Sent) -> Round:
        """Give a round as the migration would report it."""
        one, pages = self.sample, round(sent.pages)
        zero = round(one.zero_pages * pages / max(one.pages, 1))
        packed = one.payload_bytes / max((one.pages - one.zero_pages) * PAGE_BYTES, 1)
        return Round(
            number, pages, zero, round(one.wire_bytes * pages / max(one.pages, 1)), sent.duration_s,
            round(sent.left), round(sent.skipped), sent.dirty_per_s, round((pages - zero) * PAGE_BYTES * packed),
        )  # fmt: skip


class _Sent(NamedTuple):
    """What became of a round: its pages sent and skipped, its time, and what is left at its end."""

    pages: float
    skipped: float
    duration_s: float
    left: float
    dirty_per_s: float


def predict(observed: Observed, options: MigrationOptions) -> Prediction:
    """Tell how a migration with these options will go. Modes with rounds need what the guest writes (`observed.dirty`)."""
    told = Prediction(
        mode=options.mode, destination=options.to, outcome="completed", verdict="", converges=None, stop_reason="",
        total_s=0.0, setup_s=observed.setup_s, precopy_s=0.0, downtime_s=None, stun_s=None, resident_after_s=None,
        stun_pages=0, remaining_pages=0, rounds=[], resident_pages=observed.resident_pages,
        swapped_pages=observed.swapped_pages, dirty=list(observed.dirty), slowdown=observed.slowdown,
        watched_s=observed.dirty[-1].after_s if observed.dirty else 0.0, first=observed.first, again=observed.again,
        empty_round_s=observed.empty_round_s,
    )  # fmt: skip
    if options.mode not in ("hybrid", "precopy"):
        told.stop_reason = f"No pre-copy in mode {options.mode}: the guest is stopped at once"
        at_once = options.mode == "stop-and-copy"
        _stop(told, observed, options, observed.resident_pages, everything_first=at_once, speed=_first(observed))
    else:
        _rounds(told, observed, options)
    told.total_s = told.setup_s + told.precopy_s + (told.downtime_s or 0.0) + (told.resident_after_s or 0.0)
    told.caveats += _caveats(told, observed, options)
    told.verdict = _verdict(told, options)
    return told


# -- the rounds --------------------------------------------------------------------------------------------------------------


def _rounds(told: Prediction, observed: Observed, options: MigrationOptions) -> None:
    """Play pre-copy through, and what follows it."""
    curves = observed.curves()
    written = curves.written
    first, again = _first(observed), _again(observed)
    pages: float = observed.resident_pages - (observed.swapped_pages if options.mode == "hybrid" else 0)
    rounds: list[Round] = []
    since_s = math.inf
    judge = judge_named(options.policy)
    while True:
        speed = again if rounds else first
        if options.mode == "precopy" and options.auto_converge:
            sent = _throttled(pages, speed, observed, options, written, later=bool(rounds))
        elif not rounds and options.install == "rolling":
            sent = _rolling(pages, speed, observed, written)
        else:
            sent = _send(pages, since_s, speed, observed, curves)
        rounds.append(speed.round(len(rounds) + 1, sent))
        told.precopy_s += sent.duration_s
        verdict = judge(rounds, options.limits, told.precopy_s)
        if verdict.stop:
            break
        pages, since_s = sent.left, sent.duration_s
    told.rounds = [
        PredictedRound(r.round, r.pages, r.skipped_pages, r.duration_s, r.dirty_pages_after, r.dirty_pages_per_s)
        for r in rounds
    ]
    told.stop_reason = verdict.reason
    left_s = rounds[-1].dirty_pages_after * PAGE_BYTES / max(convergence.bandwidth_Bps(rounds), 1.0)
    told.converges = left_s <= options.downtime_limit_s
    if verdict.then == "cancel":
        told.outcome = "cancelled"
        return
    hybrid = options.mode == "hybrid" or verdict.then == "postcopy"
    approach_s = hot_pages.WINDOWS * (hot_pages.WINDOW_S + observed.scan_s) if hybrid else 0.0
    told.precopy_s += approach_s
    left = written.pages(sent.duration_s + approach_s) if hybrid else sent.left
    _stop(told, observed, options, left, everything_first=not hybrid, speed=again)


def _send(pages: float, since_s: float, speed: _Speed, observed: Observed, curves: _Curves) -> _Sent:
    """Send a round's pages, which were written in the `since_s` before it (infinite: all that there are).

    `cold` waits in granules in which this round has seen no write, `warm` in the others. Of either pool as it would be had nothing
    been sent (`cold_all`, `warm_all`), a look takes pages; the share of the pool that still waits is the share of them that do.
    """
    written, touched = curves
    cold, warm = pages, 0.0
    cold_all, warm_all, seen, skipped = pages, 0.0, 0.0, 0.0
    duration_s = observed.empty_round_s
    for look in range(1, _MOST_LOOKS):
        can_send = speed.pages_per_s * LOOK_S
        if cold + warm <= can_send:
            duration_s += (cold + warm) / speed.pages_per_s
            break
        from_cold = min(cold, can_send)
        cold, warm = cold - from_cold, warm - (can_send - from_cold)
        duration_s += LOOK_S
        now_seen = min(written.again(since_s, look * LOOK_S), pages)
        touched_share = touched.again(since_s, look * LOOK_S) / max(touched.pages(since_s), 1.0)
        # Neither pool takes anything back.
        now_cold_all = min(cold_all, pages * (1 - min(touched_share, 1.0)), pages - now_seen)
        warming = cold_all - now_cold_all
        # Cold ones go in ascending order, and those that the guest touches may lie anywhere in it.
        sent_share = 1 - cold / cold_all if cold_all > 0 else 1.0
        waiting_share = 1 - (observed.touched_within(sent_share) if since_s == math.inf else sent_share)
        moved = min(warming * waiting_share, cold)
        cold, warm, warm_all, cold_all = cold - moved, warm + moved, warm_all + warming, now_cold_all
        rewritten = min(max(now_seen - seen, 0.0), warm_all)
        taken = warm * rewritten / warm_all if warm_all > 0 else 0.0
        warm, warm_all, skipped = warm - taken, warm_all - rewritten, skipped + taken
        seen = max(now_seen, seen)
    return _ended(pages - skipped, skipped, duration_s, written.pages(duration_s), written)


def _rolling(pages: float, speed: _Speed, observed: Observed, written: DirtyCurve) -> _Sent:
    """Send all pages, each protected just before: what is written before its page's turn leaves nothing behind."""
    duration_s = observed.empty_round_s + pages / speed.pages_per_s
    steps = 64
    left = sum(written.pages(duration_s * (step + 0.5) / steps) for step in range(steps)) / steps
    return _ended(pages, 0.0, duration_s, left, written)


def _throttled(
    pages: float, speed: _Speed, observed: Observed, options: MigrationOptions, written: DirtyCurve, *, later: bool
) -> _Sent:
    """Send a round of a guest that may be slowed: nothing is collected before its end, and later ones leave what they may."""
    duration_s = observed.empty_round_s + pages / speed.pages_per_s
    left = written.pages(duration_s)
    if later:
        left = min(left, max(throttling.AIM * pages, WITHIN_LIMIT * speed.pages_per_s * options.downtime_limit_s))
    return _Sent(pages, 0.0, duration_s, left, left / max(duration_s, 1e-6))


def _ended(pages: float, skipped: float, duration_s: float, left: float, written: DirtyCurve) -> _Sent:
    look_s = min(duration_s, LOOK_S)
    return _Sent(pages, skipped, duration_s, left, written.pages(look_s) / max(look_s, 1e-6))


# -- the stun, and what follows ----------------------------------------------------------------------------------------------


def _stop(
    told: Prediction,
    observed: Observed,
    options: MigrationOptions,
    left: float,
    *,
    everything_first: bool,
    speed: _Speed,
) -> None:
    """Stop the guest with so many pages left, which go before the resume or after it."""
    fixed_s = DOWNTIME_S + VCPU_S * observed.vcpus + observed.scan_s + observed.empty_round_s
    if options.verify:
        fixed_s += observed.digest_page_s * observed.resident_pages
    if everything_first:
        told.stun_pages, told.remaining_pages = round(left), 0
        first_commit_s, told.resident_after_s = FIRST_COMMIT_S, RESIDENT_S
    else:
        told.stun_pages = min(HOT_PAGES, round(left)) if options.mode == "hybrid" else 0
        told.remaining_pages = round(left) - told.stun_pages
        if told.rounds:
            told.remaining_pages += observed.swapped_pages
        first_commit_s = FIRST_FETCHES_S
        page_s = PUSH_PAGE_S + PUSH_RUN_S * (observed.runs_a_page if told.rounds else 0.0)
        pushed_s = told.remaining_pages * max(1 / speed.pages_per_s, page_s)
        grace_s = GRACE_S if told.remaining_pages > LITTLE_PAGES else 0.0
        told.resident_after_s = RESIDENT_S + grace_s + pushed_s
    told.downtime_s = fixed_s + told.stun_pages / speed.pages_per_s
    told.stun_s = told.downtime_s + first_commit_s


def _first(observed: Observed) -> _Speed:
    return _speed(observed.first, observed.empty_round_s)


def _again(observed: Observed) -> _Speed:
    return _speed(observed.again or observed.first, observed.empty_round_s)


def _speed(sample: PathSample, empty_round_s: float) -> _Speed:
    """Give the speed of a sample, which was a round of its own: what every round takes is no part of it."""
    sending_s = max(sample.duration_s - empty_round_s, sample.duration_s / 2, 1e-6)
    return _Speed(max(sample.pages, 1) / sending_s, sample)


# -- words -------------------------------------------------------------------------------------------------------------------


def _verdict(told: Prediction, options: MigrationOptions) -> str:
    total, rounds = format_duration(told.total_s), _counted(len(told.rounds), "round")
    if told.outcome == "cancelled":
        slow = "" if options.auto_converge else ", slow the guest with --auto-converge"
        return (
            f"It does not converge: it would give up after {rounds} and {total}, and the guest stay here. "
            f"Use --mode hybrid{slow}, or allow more"
        )
    assert told.stun_s is not None
    stands = f"the guest stands still for {format_duration(told.stun_s)}"
    if told.converges is None:
        return f"No rounds: {stands}, and everything is there after {total}"
    if told.converges and options.auto_converge and options.mode == "precopy" and len(told.rounds) > 1:
        return f"It converges in {rounds}, where the guest is slowed if need be: {stands}, all of it takes {total}"
    if told.converges:
        return f"It converges in {rounds}: {stands}, all of it takes {total}"
    return (
        f"It does not converge, but goes on after the resume: {rounds}, then {stands}, "
        f"{format_count(told.remaining_pages)} pages follow; all of it takes {total}"
    )


def _caveats(told: Prediction, observed: Observed, options: MigrationOptions) -> list[str]:
    """Say what the figures do not know."""
    caveats = []
    longest_s = max((r.duration_s for r in told.rounds), default=0.0)
    if longest_s > 2 * told.watched_s:
        caveats.append(
            f"a round of {format_duration(longest_s)} is longer than the guest was watched, "
            f"{format_duration(told.watched_s)}: what it writes then is extrapolated (--for longer)"
        )
    if options.auto_converge and options.mode == "precopy" and len(told.rounds) > 1:
        caveats.append(
            f"auto-converge is taken at its aim, rounds that leave {throttling.AIM:g} of what they send, "
            "and not how it gets there"
        )
    if observed.swapped_pages and options.mode == "hybrid":
        caveats.append(
            f"{format_count(observed.swapped_pages)} pages are swapped out, "
            "and reading them in is taken to be as fast as sending them"
        )
    if observed.first.pages < observed.resident_pages and options.compress != "off":
        caveats.append(
            f"compression was tried on {format_count(observed.first.pages)} pages, at {format_throughput(observed.first.wire_Bps)}"
        )
    if options.delta_cache_bytes:
        caveats.append("no differences are taken while tracing is tried: with --delta-cache rounds may be far shorter")
    return caveats


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
