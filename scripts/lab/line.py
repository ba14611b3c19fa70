"""One direction of an emulated link: when does a packet leave that arrives now, if it does?

The order of things is a real wire's: a packet is lost or not, waits for its turn at the rate (a departure time for each, no
bucket), or finds the queue full and is dropped, and is then on its way for the delay. Draws and formulas are netem's
(sch_netem.c), so that a shape means the same in both; a seeded line that is given the same packets drops the same ones.

Pure: `now` is given and no clock read. A `Line` is a tuple of arrays, and the functions on it are compiled, because the emulator's
loop calls them for each packet without the GIL; this file is what that loop's compiled code is kept by, with the loop's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pagefire.scripts.lab.shape import FRAME_BYTES, LinkShape
from pagefire.scripts.lab.tc_requests import NORMAL_SCALE, NORMAL_VALUES, normal_table

Words = npt.NDArray[np.int64]
#: What tc counts of a packet and a TUN device does not hand out: the Ethernet header.
HEADER_BYTES = 14
SLOT_BYTES = 2048
#: What happens within such a part of the delay, at most so long, may be dealt with together: a wake-up costs more than a packet.
_GRAIN, _LONGEST_GRAIN_NS = 0.005, 100_000

# Indices into the arrays of a line, plain numbers for compiled code.
DELAY_NS, JITTER_NS, NORMAL, RATE_BPS, QUEUE_NS, GAP, LIMIT, GRAIN_NS = range(8)
LOSS, LOSS_COR, DUPLICATE, DUPLICATE_COR, CORRUPT, CORRUPT_COR, REORDER, REORDER_COR, DELAY_COR = range(9)
HELD, FREE, FREE_AT_NS, ORDER, SINCE_REORDER = range(5)
#: Counters: packets that came, and what became of them. LATE_NS sums up how long after its time each left, LATEST_NS is the most.
CAME, LOST, FULL, DUPLICATED, CORRUPTED, REORDERED, LEFT, LEFT_BYTES, REFUSED, LATE_NS, LATEST_NS = range(11)
COUNTERS = (
    "came", "lost", "queue_full", "duplicated", "corrupted", "reordered", "left", "left_bytes", "refused", "late_ns", "latest_ns",
)  # fmt: skip
#: Draws that remember the last one, for correlations.
_SEED, _LAST_LOSS, _LAST_DUPLICATE, _LAST_CORRUPT, _LAST_REORDER, _LAST_DELAY = range(6)
GONE = -1


class Line(NamedTuple):
    """The state of one direction; made by `make_line`, changed by the functions below and by nothing else.

    Packets lie in `slots`; of those held the heap (`when`, `order`, `slot`) knows when they leave, and `free` lists the others.
    """

    settings: Words
    shares: npt.NDArray[np.float64]
    state: Words
    chance: npt.NDArray[np.uint64]
    remembered: npt.NDArray[np.float64]
    table: npt.NDArray[np.int64]
    counters: Words
    when: Words
    order: Words
    slot: Words
    size: Words
    free: Words
    slots: npt.NDArray[np.uint8]


def make_line(shape: LinkShape, seed: int) -> Line:
    """Make an empty line that does this."""
    held = shape.held_packets
    rate_bps = shape.rate_bps or 0
    queue_ns = round((shape.queue_bytes or 0) * 8e9 / rate_bps) if rate_bps else 0
    settings = np.array(
        [
            round(shape.delay_s * 1e9), round(shape.jitter_s * 1e9), shape.distribution == "normal", rate_bps, queue_ns, shape.gap,
            held, min(round(shape.delay_s * 1e9 * _GRAIN), _LONGEST_GRAIN_NS),
        ], np.int64
    )  # fmt: skip
    shares = np.array(
        [
            shape.loss, shape.loss_correlation, shape.duplicate, shape.duplicate_correlation, shape.corrupt,
            shape.corrupt_correlation, shape.reorder, shape.reorder_correlation, shape.delay_correlation,
        ]
    )  # fmt: skip
    # One slot more than may be held: the packet that comes while all are taken is read into it, and counted.
    state = np.zeros(5, np.int64)
    state[FREE] = held + 1
    # The free list gives back what was used last, so that memory is touched for as many packets as are held at once.
    return Line(
        settings, shares, state, np.array([seed * 2 + 1], np.uint64), np.zeros(6), np.array(normal_table(), np.int64),
        np.zeros(len(COUNTERS), np.int64), np.empty(held, np.int64), np.empty(held, np.int64), np.empty(held, np.int64),
        np.empty(held + 1, np.int64), np.arange(held, -1, -1, dtype=np.int64), np.empty((held + 1, SLOT_BYTES), np.uint8),
    )  # fmt: skip


def counted(line: Line) -> dict[str, int]:
    """Read the counters by name; any thread, at any time."""
    return {name: int(line.counters[index]) for index, name in enumerate(COUNTERS)}


_compiled: Any = njit(cache=True, nogil=True)


@_compiled
def draw(line):  # type: ignore[no-untyped-def]
    """Draw from [0, 1): splitmix64, 53 bits of it."""
    line.chance[0] += np.uint64(0x9E3779B97F4A7C15)
    mixed = line.chance[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return float(mixed >> np.uint64(11)) * (1.0 / (1 << 53))


@_compiled
def draw_correlated(line, which, correlation):  # type: ignore[no-untyped-def]
    """Draw a mix of a new number and the last one, as netem does."""
    drawn = draw(line)
    if correlation > 0.0:
        drawn = drawn * (1.0 - correlation) + line.remembered[which] * correlation
        line.remembered[which] = drawn
    return drawn


@_compiled
def happens(line, share, which):  # type: ignore[no-untyped-def]
    """Tell whether what has a share (LOSS and the like, its correlation beside it) happens to this packet."""
    return line.shares[share] > 0.0 and draw_correlated(line, which, line.shares[share + 1]) < line.shares[share]


@_compiled
def delay_ns(line):  # type: ignore[no-untyped-def]
    """Draw a packet's delay."""
    delay, jitter = line.settings[DELAY_NS], line.settings[JITTER_NS]
    if jitter == 0:
        return delay
    drawn = draw_correlated(line, _LAST_DELAY, line.shares[DELAY_COR])
    if line.settings[NORMAL]:
        delay += np.int64(jitter * line.table[np.int64(drawn * NORMAL_VALUES)] / NORMAL_SCALE)
    else:
        delay += np.int64((2.0 * drawn - 1.0) * jitter)
    return max(delay, 0)


@_compiled
def departure_ns(line, now_ns, size_bytes):  # type: ignore[no-untyped-def]
    """Say when a packet that was not lost leaves; GONE if the queue is full."""
    leaves_ns, rate_bps = now_ns, line.settings[RATE_BPS]
    if rate_bps:
        begins_ns = max(now_ns, line.state[FREE_AT_NS])
        if begins_ns - now_ns > line.settings[QUEUE_NS]:
            return np.int64(GONE)
        leaves_ns = begins_ns + (size_bytes + HEADER_BYTES) * 8_000_000_000 // rate_bps
        line.state[FREE_AT_NS] = leaves_ns
    if line.shares[REORDER] > 0.0:
        line.state[SINCE_REORDER] += 1
        if line.state[SINCE_REORDER] >= line.settings[GAP] and happens(line, REORDER, _LAST_REORDER):
            line.state[SINCE_REORDER] = 0
            line.counters[REORDERED] += 1
            return leaves_ns
    return leaves_ns + delay_ns(line)


@_compiled
def room(line):  # type: ignore[no-untyped-def]
    """Give the slot into which the next packet is to be read."""
    return line.free[line.state[FREE] - 1]


@_compiled
def arrive(line, now_ns, size_bytes):  # type: ignore[no-untyped-def]
    """Take in the packet that lies in `room`'s slot; it is then held, once or twice, or gone."""
    line.counters[CAME] += 1
    copies = 1
    if happens(line, DUPLICATE, _LAST_DUPLICATE):
        copies += 1
        line.counters[DUPLICATED] += 1
    if happens(line, LOSS, _LAST_LOSS):
        copies -= 1
        line.counters[LOST] += 1
    came_in, one, other = room(line), -1, -1
    for _ in range(copies):
        if line.state[HELD] >= line.settings[LIMIT]:
            line.counters[FULL] += 1
            continue
        leaves_ns = departure_ns(line, now_ns, size_bytes)
        if leaves_ns == GONE:
            line.counters[FULL] += 1
            continue
        slot = room(line)
        line.state[FREE] -= 1
        if slot != came_in:
            line.slots[slot, :size_bytes] = line.slots[came_in, :size_bytes]
        line.size[slot] = size_bytes
        push(line, leaves_ns, slot)
        one, other = slot, one
    # Each copy by itself, and not before the second one was made.
    for slot in (one, other):
        if slot >= 0 and happens(line, CORRUPT, _LAST_CORRUPT):
            corrupt(line, slot, size_bytes)


@_compiled
def corrupt(line, slot, size_bytes):  # type: ignore[no-untyped-def]
    """Change a bit past the IP header, so that the packet still finds its way and a checksum above it is put to the test."""
    byte = min(20 + np.int64(draw(line) * (size_bytes - 20)), size_bytes - 1)
    line.slots[slot, byte] ^= np.uint8(1 << np.int64(draw(line) * 8))
    line.counters[CORRUPTED] += 1


@_compiled
def push(line, leaves_ns, slot):  # type: ignore[no-untyped-def]
    """Put a packet into the heap; those of one time leave in the order in which they came."""
    at = line.state[HELD]
    line.state[HELD] += 1
    line.state[ORDER] += 1
    while at > 0:
        above = (at - 1) >> 1
        if line.when[above] <= leaves_ns:
            break
        line.when[at], line.order[at], line.slot[at] = line.when[above], line.order[above], line.slot[above]
        at = above
    line.when[at], line.order[at], line.slot[at] = leaves_ns, line.state[ORDER], slot


@_compiled
def next_ns(line):  # type: ignore[no-untyped-def]
    """Say when the next packet leaves; 2**62 where none is held."""
    return line.when[0] if line.state[HELD] else np.int64(1 << 62)


@_compiled
def leave(line, now_ns):  # type: ignore[no-untyped-def]
    """Take the packet out whose time has come first; gives its slot, which is free again until the next packet arrives."""
    slot, late_ns = line.slot[0], now_ns - line.when[0]
    line.counters[LATE_NS] += late_ns
    line.counters[LATEST_NS] = max(line.counters[LATEST_NS], late_ns)
    line.counters[LEFT] += 1
    line.counters[LEFT_BYTES] += line.size[slot] + HEADER_BYTES
    line.state[HELD] -= 1
    held = line.state[HELD]
    when, order, moved = line.when[held], line.order[held], line.slot[held]
    at = 0
    while True:
        below = 2 * at + 1
        if below >= held:
            break
        if below + 1 < held and earlier(line, below + 1, below):
            below += 1
        if when < line.when[below] or (when == line.when[below] and order < line.order[below]):
            break
        line.when[at], line.order[at], line.slot[at] = line.when[below], line.order[below], line.slot[below]
        at = below
    line.when[at], line.order[at], line.slot[at] = when, order, moved
    line.free[line.state[FREE]] = slot
    line.state[FREE] += 1
    return slot


@_compiled
def earlier(line, one, other):  # type: ignore[no-untyped-def]
    """Tell whether one packet of the heap leaves before another."""
    if line.when[one] != line.when[other]:
        return line.when[one] < line.when[other]
    return line.order[one] < line.order[other]


class VirtualLine:
    """A line whose packets come from and go to whoever holds it: the emulator without its devices and its clock."""

    def __init__(self, shape: LinkShape, seed: int | None = None) -> None:
        self.line = make_line(shape, shape.seed if seed is None else seed)

    def arrive(self, now_ns: int, packet: bytes) -> None:
        """Let a packet of at most 2,048 bytes come in."""
        self.line.slots[room(self.line), : len(packet)] = np.frombuffer(packet, np.uint8)
        arrive(self.line, now_ns, len(packet))

    def next_ns(self) -> int | None:
        """Say when the next packet leaves."""
        return int(next_ns(self.line)) if self.line.state[HELD] else None

    def leave(self, now_ns: int) -> list[bytes]:
        """Give the packets whose time has come, in order."""
        left = []
        while next_ns(self.line) <= now_ns:
            slot = leave(self.line, now_ns)
            left.append(self.line.slots[slot, : self.line.size[slot]].tobytes())
        return left

    @property
    def counters(self) -> dict[str, int]:
        return counted(self.line)


assert FRAME_BYTES < SLOT_BYTES
