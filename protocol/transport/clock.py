"""Two hosts, two clocks: are they the same one, and if not, how far apart.

CLOCK_MONOTONIC is shared by all processes of one boot and one time namespace. Between machines the offset is taken from the
quickest of several round trips; half of that trip is its error, because nothing tells how it was divided between the directions.
"""

from __future__ import annotations

import os
import time

from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.messages import ClockProbe, ClockReading
from pagefire.protocol.report import Clock
from pagefire.protocol.transport.frame_stream import FrameStream

_PROBES = 32


def machine_identity() -> str:
    """Name what must be equal for two processes to share one CLOCK_MONOTONIC."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/time')}"


async def compare_clocks(control: FrameStream, peer_identity: str, timeout_s: float) -> Clock:
    """Give the offset to subtract from the peer's readings; the source asks, before it makes its offer."""
    if peer_identity == machine_identity():
        return Clock(shared=True, offset_s=0.0, error_s=0.0)
    quickest_ns, offset_ns = 1 << 62, 0.0
    for _ in range(_PROBES):
        sent_ns = time.monotonic_ns()
        await control.send(ClockProbe(sent_ns))
        reading = await control.expect(ClockReading, timeout_s)
        trip_ns = time.monotonic_ns() - sent_ns
        if reading.sent_ns != sent_ns:
            raise RemoteProtocolError("the destination answered another clock probe than the last")
        if trip_ns < quickest_ns:
            quickest_ns, offset_ns = trip_ns, reading.here_ns - (sent_ns + trip_ns / 2)
    return Clock(shared=False, offset_s=offset_ns / 1e9, error_s=quickest_ns / 2e9)
