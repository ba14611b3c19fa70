"""What a person reads of a lab's link: asked, measured, and who shaped it; from the report's `link`, fresh or read from JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pagefire.protocol.units import format_count, format_duration
from pagefire.scripts.lab.shape import format_rate

Json = dict[str, Any]
_MISSING = "not measured"


def link_lines(link: Json) -> Iterator[str]:
    """Write a line for what was asked, one for the shaper, one for what was measured."""
    yield f"The link: {link['asked']['words']}."
    yield f"  shaped by {shaper_words(link)}"
    if measured := link.get("measured"):
        yield f"  measured: {measured_words(measured)}"


def shaper_words(link: Json) -> str:
    """Say who shaped it, and of an emulator what it can do."""
    words = f"{link['shaper']}: {link['reason']}" if link.get("reason") else str(link["shaper"])
    emulator = link.get("emulator")
    if not emulator:
        return words
    words += (
        f"; it carries {format_rate(emulator['ceiling_bps'])} ({format_count(emulator['ceiling_pps'])} packets/s) at most here, "
        f"{emulator['share_of_ceiling']:.0%} of which are used"
    )
    if emulator.get("cpu_share") is not None:
        words += f"; it took {emulator['cpu_share']:.0%} of a CPU"
    if emulator.get("missed"):
        words += f"; {format_count(emulator['missed'])} packets were dropped in front of it"
    return words


def measured_words(measured: Json) -> str:
    """Write what was measured."""
    rtt_s, rate_bps, goodput_bps = (measured.get(name) for name in ("rtt_s", "rate_bps", "tcp_goodput_bps"))
    parts = [
        f"RTT {format_duration(rtt_s) if rtt_s is not None else _MISSING}",
        f"UDP {format_rate(rate_bps) if rate_bps is not None else _MISSING}",
        f"TCP {format_rate(goodput_bps) if goodput_bps is not None else _MISSING}",
    ]
    if measured.get("loss") is not None and measured.get("loss_interval"):
        low, high = measured["loss_interval"]
        parts.append(
            f"loss {measured['loss']:.3%} (95%: {low:.3%} to {high:.3%}, of {format_count(measured['loss_packets'])} packets)"
        )
    return ", ".join(parts)


def carried_words(link: Json) -> str:
    """Say what the emulator did to the migration's own packets; empty where there was none."""
    emulator = link.get("emulator") or {}
    ways = []
    for name, way in (("there", "forth"), ("back", "back")):
        if not (counted := emulator.get(way)):
            continue
        gone = [
            f"{format_count(counted[key])} {words}"
            for key, words in (
                ("lost", "lost"),
                ("queue_full", "dropped by a full queue"),
                ("reordered", "out of order"),
            )
            if counted.get(key)
        ]
        ways.append(f"{format_count(counted['came'])} packets {name}" + (f" ({', '.join(gone)})" if gone else ""))
    return ", ".join(ways)


def link_rows(link: Json | None) -> list[tuple[str, str]]:
    """Give the summary's rows; none without a lab."""
    if not link:
        return []
    rows = [("link", link["asked"]["words"]), ("shaped by", shaper_words(link))]
    if measured := link.get("measured"):
        rows.append(("link measured", measured_words(measured)))
    if words := carried_words(link):
        rows.append(("link carried", words))
    if dropped := link.get("dropped"):
        rows.append(("link dropped", ", ".join(f"{format_count(count)} by {name}" for name, count in dropped.items())))
    return rows


def tcp_rows(connections: list[Json] | None) -> list[tuple[str, str, str]]:
    """Give the summary's rows of what the kernel says of each connection."""
    rows = []
    for connection in connections or []:
        rtt_s, retransmits = connection.get("rtt_s"), connection.get("retransmits")
        rtt = f"{format_duration(rtt_s) if rtt_s is not None else _MISSING} rtt"
        again = f"{format_count(retransmits) if retransmits is not None else _MISSING} retransmits"
        rows.append((f"tcp {connection.get('role')}", rtt, f"{again}, {connection.get('congestion')}"))
    return rows
