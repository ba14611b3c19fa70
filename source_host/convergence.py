"""When to stop pre-copy: a pure function of the rounds so far and the time that has passed.

Pages are counted as contents: where they are compressed the link carries more of them than it carries bytes. Where those that the
destination holds just so are left out (`--skip-unchanged`), a round gets through more pages than it sends, at the pace of looking
at them: that pace counts for rounds and for the stun, but not for what moves after the resume, of which nothing is left out.

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
    # A round of which most was left out tells how fast pages are looked at, not what the link carries.
    telling = [r for r in rounds if r.unchanged_pages <= r.pages] or rounds
    largest = max(telling[-3:], key=lambda r: r.wire_bytes)
    return largest.wire_bytes / max(largest.duration_s, 1e-6) / max(payload_share(largest), payload_share(rounds[-1]))


def pace_Bps(rounds: list[Round]) -> float:
    """Estimate how fast the next round gets through the pages that are left, sent or not.

    Looking and sending overlap as far as the socket has something to send; here they are added up, so that no stun is promised that
    is too short.
    """
    last = rounds[-1]
    looked_bytes = (last.pages - last.zero_pages + last.unchanged_pages) * PAGE_BYTES
    look_s_per_byte = last.look_s / looked_bytes if looked_bytes else 0.0
    return 1 / max(last.share_changed / max(bandwidth_Bps(rounds), 1.0) + look_s_per_byte, 1e-30)


def payload_share(sent: Round) -> float:
    """Tell which share of a round's contents was left to be sent: 1 where nothing was compressed, or nothing had contents."""
    contents_bytes = (sent.pages - sent.zero_pages) * PAGE_BYTES
    return sent.payload_bytes / contents_bytes if contents_bytes > 0 and sent.payload_bytes > 0 else 1.0


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
    dirtied_Bps = last.dirty_pages_per_s * PAGE_BYTES
    state = f"{format_count(last.dirty_pages_after)} pages left, {format_duration(expected_s)} at {format_throughput(speed_Bps)}"
    state += ", compressed" if payload_share(last) < 1 else ""
    state += f", {1 - last.share_changed:.0%} of them unchanged" if last.share_changed < 1 else ""
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
    if hybrid and dirtied_Bps >= pace:
        faster = "the guest writes faster than the link carries, the rest moves after the resume"
        return Verdict(True, "postcopy", f"{stopping}: {state}, above {limit}; {dirt}; {faster}")
    if hybrid and len(rounds) >= 2 and last.dirty_pages_after >= NO_GAIN * due_pages:
        gain = (
            f"the round began with {format_count(due_pages)} pages and gained nothing, the rest moves after the resume"
        )
        return Verdict(True, "postcopy", f"{stopping}: {state}, above {limit}; {dirt}; {gain}")
    if at_an_end:
        which = "--max-rounds" if last.round >= limits.max_rounds else "--max-time"
        follows = "switching to post-copy" if limits.on_limit == "postcopy" else "cancelling"
        return Verdict(True, limits.on_limit, f"{stopping}: {which} reached, {state}, above {limit}; {dirt}; {follows}")
    return Verdict(False, "", f"Going on after round {last.round}: {state}, above {limit}; {dirt}")
