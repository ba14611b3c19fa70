"""Is a link what was asked? Pure: asked and measured figures in, complaints out.

A share that was counted is known up to an interval: Wilson's, of 95%. So a link that is right is outside of it one time in twenty,
and a rate that was measured for a second is short of what the machine stood still in it: measurement.py looks again before it
believes that.
"""

from __future__ import annotations

import math

from pagefire.protocol.link_report import LinkMeasured
from pagefire.protocol.units import format_duration
from pagefire.scripts.lab.shape import LinkShape, format_rate

#: How far round trip and rate may be off; a round trip by this much more, which two processes need to wake up.
TOLERANCE, WAKING_S = 0.1, 0.0005
#: Half of a normal distribution's middle 95%, in standard deviations.
_Z = 1.959964


def wilson(found: int, of: int) -> tuple[float, float]:
    """Give the 95% interval of a share of which `found` of so many were counted."""
    if not of:
        return 0.0, 1.0
    share, squared = found / of, _Z * _Z
    middle = (share + squared / (2 * of)) / (1 + squared / of)
    half = _Z / (1 + squared / of) * math.sqrt(share * (1 - share) / of + squared / (4 * of * of))
    # At the ends the formula gives the end itself, up to rounding.
    return (0.0 if not found else max(0.0, middle - half)), (1.0 if found == of else min(1.0, middle + half))


def expected_loss(shape: LinkShape) -> float | None:
    """Say which share of packets does not arrive; None where the shape does not tell.

    A corrupted packet is dropped by the receiver's checksum. Of one that netem duplicates, a loss takes one copy. Correlated draws
    do not keep the share that was asked for (netem's formula narrows them towards their mean).
    """
    if shape.loss_correlation or shape.corrupt_correlation or shape.duplicate_correlation:
        return None
    # One copy reaches the receiver unharmed unless it was lost, or each that is left was corrupted.
    lost = shape.loss * (1 - shape.duplicate)
    single = (1 - shape.loss) * (1 - shape.duplicate) + shape.loss * shape.duplicate
    double = shape.duplicate * (1 - shape.loss)
    return lost + single * shape.corrupt + double * shape.corrupt**2


def loss_is_as_asked(shape: LinkShape, measured: LinkMeasured) -> bool:
    """Tell whether the expected loss lies in the interval of what was counted."""
    expected, interval = expected_loss(shape), measured.loss_interval
    return expected is None or interval is None or interval[0] <= expected <= interval[1]


def rate_is_as_asked(shape: LinkShape, measured: LinkMeasured) -> bool:
    """Tell whether the rate, less what was lost on purpose, is close enough; one that came to nothing is not."""
    if shape.rate_bps is None:
        return True
    expected_bps = shape.rate_bps * (1 - (expected_loss(shape) or 0.0))
    return measured.rate_bps is not None and abs(measured.rate_bps - expected_bps) <= TOLERANCE * shape.rate_bps


def complaints(shape: LinkShape, measured: LinkMeasured) -> list[str]:
    """Say in what a link is not what was asked, with both figures; none: it is."""
    found = []
    rtt_s, rate_bps = measured.rtt_s, measured.rate_bps
    if shape.delay_s:
        if rtt_s is None:
            found.append(f"a round trip of {format_duration(shape.rtt_s)} was asked for, and no echo came back")
        elif abs(rtt_s - shape.rtt_s) > TOLERANCE * shape.rtt_s + WAKING_S:
            found.append(
                f"a round trip of {format_duration(shape.rtt_s)} was asked for, {format_duration(rtt_s)} was measured"
            )
    if not rate_is_as_asked(shape, measured):
        came = f"{format_rate(rate_bps)} was measured by UDP" if rate_bps is not None else "and nothing came through"
        times = f", {measured.rate_tries} times in turn" if measured.rate_tries > 1 else ""
        found.append(f"a rate of {format_rate(shape.rate_bps or 0)} was asked for, {came}{times}")
    if not loss_is_as_asked(shape, measured):
        assert measured.loss is not None
        assert measured.loss_interval is not None
        low, high = measured.loss_interval
        found.append(
            f"a loss of {expected_loss(shape) or 0.0:.4%} was asked for, {measured.loss:.4%} was measured of "
            f"{measured.loss_packets:,} packets (95%: {low:.4%} to {high:.4%}), {measured.loss_tries} times in turn"
        )
    return found
