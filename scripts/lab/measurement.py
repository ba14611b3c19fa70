"""What a link really does, measured between its two hosts before anything migrates: round trip, loss, rate, and TCP over it.

By UDP where the link itself is meant (probe.py), because TCP's own window and pacing would be measured with it; the TCP goodput
stands beside it. Source to destination, as a guest moves; the round trip is both. Takes 4 to 8 seconds.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
import time
from typing import Protocol

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.link_report import LinkMeasured
from pagefire.scripts.lab.judging import complaints, expected_loss, loss_is_as_asked, rate_is_as_asked, wilson
from pagefire.scripts.lab.network import Asked
from pagefire.scripts.lab.plan import DEST_ADDRESS
from pagefire.scripts.lab.probe import LEAST_PAYLOAD_BYTES
from pagefire.scripts.lab.shape import FRAME_BYTES, LinkShape
from pagefire.scripts.tcp_transfer import transfer

_ECHOES, _ECHO_GAP_S = 41, 0.01
#: IP and UDP headers and the Ethernet header, beside a datagram's payload.
_HEADERS_BYTES = 28 + 14
_FULL_PAYLOAD_BYTES = FRAME_BYTES - _HEADERS_BYTES
#: Loss is counted on so many packets that about this many are lost, within bounds, and at this share of the rate at most.
_LOST_PACKETS, _FEWEST_PACKETS, _MOST_PACKETS = 30, 4_000, 40_000
_LOSS_PER_S, _LOSS_SHARE_OF_RATE, _LONGEST_LOSS_S = 10_000, 0.4, 8.0
_TRIES = 3
#: The rate is found by offering more than it, for so long; where none was asked, by what one sender gets through.
_RATE_S, _RATE_OFFERED, _UNPACED_PACKETS = 1.0, 1.15, 40_000
_TCP_S, _TCP_TRIPS, _LONGEST_TCP_S = 1.5, 10, 4.0


class Sides(Protocol):
    """Whoever can run a command on the link's two sides."""

    def before(self, side: str) -> list[str]:
        """Give the words that run a command on a side: source or dest."""
        ...


def measure_link(network: Sides, shape: LinkShape, dest_address: str = DEST_ADDRESS) -> LinkMeasured:
    """Measure a link that shall be like this; what it shall be decides only how many packets that takes. Raises PagefireError."""
    probe = [sys.executable, "-m", "pagefire.scripts.lab.probe"]
    with contextlib.ExitStack() as stack:
        far = Asked([*network.before("dest"), *probe, "far", dest_address], "the link's far probe")
        stack.callback(far.end)
        port = far.hear()["port"]
        near = Asked([*network.before("source"), *probe, "near", dest_address, str(port)], "the link's near probe")
        stack.callback(near.end)
        trips_s = near.ask({"echo": _ECHOES, "gap_s": _ECHO_GAP_S})["rtts_s"]
        measured = LinkMeasured(rtt_s=statistics.median(trips_s) if trips_s else None)
        for tries in range(1, _TRIES + 1):
            _measure_loss(near, far, shape, measured)
            measured.loss_tries = tries
            if loss_is_as_asked(shape, measured):
                break
        for tries in range(1, _TRIES + 1):
            measured.rate_bps = _rate_bps(near, far, shape)
            measured.rate_tries = tries
            if rate_is_as_asked(shape, measured):
                break
    measured.tcp_goodput_bps = _tcp_goodput_bps(network, shape, dest_address)
    return measured


def require_as_asked(shape: LinkShape, measured: LinkMeasured) -> None:
    """Raise PagefireError where the link is not what was asked."""
    if found := complaints(shape, measured):
        raise PagefireError(
            "the link is not what was asked",
            "; ".join(found),
            "end other programs on this machine, or ask for a slower link",
        )


def _measure_loss(near: Asked, far: Asked, shape: LinkShape, measured: LinkMeasured) -> None:
    packets, per_s = loss_plan(shape)
    near.ask({"send": packets, "payload_bytes": LEAST_PAYLOAD_BYTES, "per_s": per_s})
    time.sleep(_on_the_way_s(shape))
    lost = packets - int(far.ask({})["distinct"])
    measured.loss, measured.loss_packets, measured.loss_interval = lost / packets, packets, list(wilson(lost, packets))


def loss_plan(shape: LinkShape) -> tuple[int, float]:
    """Say how many packets, and how many a second, tell a link's loss."""
    per_s = float(_LOSS_PER_S)
    if shape.rate_bps is not None:
        frame_bytes = LEAST_PAYLOAD_BYTES + _HEADERS_BYTES
        per_s = min(per_s, shape.rate_bps / 8 / frame_bytes * _LOSS_SHARE_OF_RATE)
    if shape.limit_packets is not None and shape.delay_s:
        # What is on its way counts for the limit.
        per_s = min(per_s, shape.limit_packets / (shape.delay_s + shape.jitter_s) / 2)
    expected = expected_loss(shape)
    wanted = math.ceil(_LOST_PACKETS / expected) if expected else _FEWEST_PACKETS
    packets = min(max(wanted, _FEWEST_PACKETS), _MOST_PACKETS, max(round(per_s * _LONGEST_LOSS_S), 1))
    return packets, per_s


def _rate_bps(near: Asked, far: Asked, shape: LinkShape) -> float | None:
    """Offer more than the rate, and give what came, in bits of Ethernet frames; None where less than two packets did."""
    per_s = shape.rate_bps * _RATE_OFFERED / 8 / FRAME_BYTES if shape.rate_bps is not None else 0.0
    packets = max(round(per_s * _RATE_S), 20) if per_s else _UNPACED_PACKETS
    near.ask({"send": packets, "payload_bytes": _FULL_PAYLOAD_BYTES, "per_s": per_s})
    time.sleep(_on_the_way_s(shape))
    came = far.ask({})
    if came["packets"] < 2 or not came["seconds"]:
        return None
    frames_bytes = came["payload_bytes_after_first"] + _HEADERS_BYTES * (came["packets"] - 1)
    return float(frames_bytes * 8 / came["seconds"])


def _on_the_way_s(shape: LinkShape) -> float:
    """Say how long after it was sent the last packet has come or never will."""
    waiting_s = (shape.queue_bytes or 0) * 8 / shape.rate_bps if shape.rate_bps else 0.0
    return shape.delay_s + 4 * shape.jitter_s + waiting_s + 0.1


def _tcp_goodput_bps(network: Sides, shape: LinkShape, dest_address: str) -> float | None:
    """Give the payload's bits per second of one TCP connection, slow start included; None where none came through."""
    seconds = min(_TCP_S + _TCP_TRIPS * shape.rtt_s, _LONGEST_TCP_S)
    try:
        came = transfer(network.before("source"), network.before("dest"), dest_address, seconds, seconds)
    except (subprocess.SubprocessError, ValueError):
        return None
    return came.bits_per_s
