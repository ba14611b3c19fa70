"""When to stop pre-copy: a pure function of the rounds so far and the time that has passed.

Pages are counted as contents: where they are compressed the link carries more of them than it carries bytes. Where those that the
destination holds just so are left out (`--skip-unchanged`), a round gets through more pages than it sends, at the pace of looking
at them: that pace counts for rounds and for the stun, but not for what moves after the resume, of which nothing is left out.
Likewise where differences go (`--delta-cache`). What a page's first version takes is not what the next ones do: whether hybrid ever
gets ahead of the guest is judged by the pace of pages that have been sent once.

Pre-copy: stop when the pages left can be sent within the downtime limit, because then the guest stands still for that long.
Hybrid: the remainder moves after the resume, so the limit bounds the time to move it (vMotion's switchover goal) and the stun does
not depend on it; and it stops as soon as a round has gained nothing, or the guest writes as fast as the link carries, because pages
that are rewritten all the time are not worth sending early. Within the limit it goes on as long as the next round is expected to
halve what is left and the last one did: a round costs the guest next to nothing, a page that is missing after the resume a wait.
Down to 2 ms (`LITTLE_S`) and not 10: 2 GiB, 50,000 stores/s in 256 MiB, twelve migrations each, three times, in turn: 1,500 pages
left instead of 2,600 to 3,700, 1 to 8 waits in all instead of 16 to 30, the last page after 11 to 14 ms instead of 19.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.report import Round
from pagefire.protocol.units import format_count, format_duration, format_throughput

#: A round that leaves more than this share of what it began with has gained nothing.
NO_GAIN = 0.8
#: Hybrid sends another round, though what is left is within the limit, where that leaves at most so much of it, and is more than
#: moves in so long.
HALF, LITTLE_S = 0.5, 0.002


@dataclass(frozen=True, slots=True)
class Limits:
    """What a person allows. `on_limit` says what follows max_rounds and max_time_s: postcopy or cancel.

    `switch_now`: the person has had enough of pre-copy, the rest is to move after the resume.
    """

    mode: str
    downtime_limit_s: float
    max_rounds: int
    max_time_s: float
    on_limit: str
    switch_now: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Go on with another round, or stop and do `then` (switch: stop the guest; postcopy: switch and send the rest afterwards;
    cancel). `reason` is a sentence for a person."""

    stop: bool
    then: str
    reason: str


def bandwidth_Bps(rounds: list[Round]) -> float:
    """Estimate what the link carries of page contents, by the largest of the last three rounds, since a small one measures latency.

    What is left resembles the last round, whose pages were written again. Where those compressed less than the largest round's, the
    link carries fewer of them; where they compressed more, it may have been the codec and not the link that took the time.
    """
    largest = _largest(rounds)
    shares = [payload_share(r) for r in (largest, rounds[-1]) if _whole_bytes(r) > 0]
    return _carried_Bps(largest) / max(shares, default=1.0)


def pace_Bps(rounds: list[Round]) -> float:
    """Estimate how fast the next round gets through the pages that are left, sent or not.

    Looking and sending overlap as far as the socket has something to send; here they are added up, so that no stun is promised that
    is too short.
    """
    return _pace_Bps(rounds, rounds[-1].delta_share)


def settled_pace_Bps(rounds: list[Round]) -> float:
    """Estimate how fast later rounds get through these pages, once the destination has a version of each to take differences to."""
    return _pace_Bps(rounds, rounds[-1].settled_share)


def _pace_Bps(rounds: list[Round], delta_share: float) -> float:
    last = rounds[-1]
    looked_bytes = (last.pages - last.zero_pages + last.unchanged_pages) * PAGE_BYTES
    look_s_per_byte = last.look_s / looked_bytes if looked_bytes else 0.0
    link_Bps = _carried_Bps(_largest(rounds))
    sent_s_per_byte = last.share_changed / max(bandwidth_Bps(rounds), 1.0)
    if delta_share < 1:
        # A page that has not changed differs by nothing: it is not to be counted twice. A difference has been compressed already.
        sent_s_per_byte = min(sent_s_per_byte, delta_share / max(link_Bps, 1.0))
    pace = 1 / max(sent_s_per_byte + look_s_per_byte, 1e-30)
    # Where the link is not what holds differences up, interpreter and peer are: as they did, they do.
    free = [r for r in rounds[-3:] if r.delta_pages and _carried_Bps(r) <= HALF * link_Bps]
    if free:
        largest = max(free, key=lambda r: r.pages)
        pace = min(pace, largest.pages * PAGE_BYTES / max(largest.duration_s, 1e-6))
    return pace


def _largest(rounds: list[Round]) -> Round:
    """Choose the round that tells what the link carries: where most was left out, or went as differences, the link is idle."""
    telling = [r for r in rounds if r.unchanged_pages + 2 * r.delta_pages <= r.pages] or rounds
    return max(telling[-3:], key=lambda r: r.wire_bytes)


def _carried_Bps(sent: Round) -> float:
    return sent.wire_bytes / max(sent.duration_s, 1e-6)


def payload_share(sent: Round) -> float:
    """Tell which share was left of the contents of a round's whole pages: 1 where nothing was compressed, or there were none."""
    left_bytes = sent.payload_bytes - sent.delta_bytes
    return left_bytes / _whole_bytes(sent) if _whole_bytes(sent) > 0 and left_bytes > 0 else 1.0


def _whole_bytes(sent: Round) -> int:
    """Give the contents of pages that did not go as differences."""
    return (sent.pages - sent.zero_pages - sent.delta_pages) * PAGE_BYTES


def judge(rounds: list[Round], limits: Limits, elapsed_s: float) -> Verdict:
    """Decide after a round; `rounds` is not empty, `elapsed_s` counts from the first round."""
    last = rounds[-1]
    left_bytes = last.dirty_pages_after * PAGE_BYTES
    hybrid = limits.mode == "hybrid"
    pace, speed_Bps = pace_Bps(rounds), bandwidth_Bps(rounds)
    if not hybrid:
        speed_Bps = pace
    expected_s = left_bytes / max(speed_Bps, 1.0)
    due_pages = last.pages + last.skipped_pages + last.unchanged_pages
    # A page of which less has to be sent now is a gain as well.
    left_pages = last.dirty_pages_after * last.delta_share
    dirtied_Bps = last.dirty_pages_per_s * PAGE_BYTES
    state = f"{format_count(last.dirty_pages_after)} pages left, {format_duration(expected_s)} at {format_throughput(speed_Bps)}"
    state += ", compressed" if payload_share(last) < 1 else ""
    state += f", {1 - last.share_changed:.0%} of them unchanged" if last.share_changed < 1 else ""
    state += f", of which differences leave {last.delta_share:.0%}" if last.delta_share < 1 else ""
    limit = f"the limit of {format_duration(limits.downtime_limit_s)}"
    dirt = f"dirty rate {format_throughput(dirtied_Bps)}"
    stopping = f"Stopping pre-copy after round {last.round}"
    if limits.switch_now:
        return Verdict(True, "postcopy", f"{stopping}: told to by `pagefire set --mode postcopy`; {state}; {dirt}")
    at_an_end = last.round >= limits.max_rounds or elapsed_s >= limits.max_time_s
    if expected_s <= limits.downtime_limit_s:
        shrinks = dirtied_Bps <= HALF * pace and (len(rounds) == 1 or last.dirty_pages_after <= HALF * due_pages)
        if hybrid and shrinks and expected_s > LITTLE_S and not at_an_end:
            return Verdict(
                False,
                "",
                f"Going on after round {last.round}: {state}, within {limit}; {dirt}, so another round leaves less",
            )
        return Verdict(True, "postcopy" if hybrid else "switch", f"{stopping}: {state}, within {limit}; {dirt}")
    if hybrid and dirtied_Bps >= settled_pace_Bps(rounds):
        faster = "the guest writes faster than the link carries, the rest moves after the resume"
        return Verdict(True, "postcopy", f"{stopping}: {state}, above {limit}; {dirt}; {faster}")
    if hybrid and len(rounds) >= 2 and left_pages >= NO_GAIN * due_pages * rounds[-2].delta_share:
        gain = (
            f"the round began with {format_count(due_pages)} pages and gained nothing, the rest moves after the resume"
        )
        return Verdict(True, "postcopy", f"{stopping}: {state}, above {limit}; {dirt}; {gain}")
    if at_an_end:
        which = "--max-rounds" if last.round >= limits.max_rounds else "--max-time"
        follows = "switching to post-copy" if limits.on_limit == "postcopy" else "cancelling"
        return Verdict(True, limits.on_limit, f"{stopping}: {which} reached, {state}, above {limit}; {dirt}; {follows}")
    return Verdict(False, "", f"Going on after round {last.round}: {state}, above {limit}; {dirt}")
