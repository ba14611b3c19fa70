"""A shape as the kernel's own qdiscs: the netlink requests, byte for byte what tc would send, and the tc lines themselves.

One list of qdiscs for an interface: netem (delay, loss and the like) at its root, tbf (the rate) below it, or one of the two alone.
What netem has delayed goes into tbf's queue, which is as long as the shape's; netem's own limit counts both. Its delays are in
ticks of 64 ns, as they have been since Linux 2.6.31; shares are fractions of 2**32 - 1.

Pure: `requests` gives the options of RTM_NEWQDISC, encoded after include/uapi/linux/pkt_sched.h; keeper.py sends them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

from pagefire.scripts.lab.shape import LinkShape

TC_H_ROOT = 0xFFFFFFFF
NETEM_HANDLE, NETEM_CLASS, TBF_HANDLE = 0x1_0000, 0x1_0001, 0x2_0000
_TICK_NS = 64
_U32 = 0xFFFFFFFF
#: Attributes of netem's and tbf's options.
_CORR, _DELAY_DIST, _REORDER, _CORRUPT, _PRNG_SEED = 1, 2, 3, 4, 14
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_LINKLAYER_ETHERNET, _CELL_LOG = 1, 3
#: A token bucket holds 1 ms at its rate, but so much at least: timers are no more exact than that.
_BURST_S, _LEAST_BURST_BYTES = 0.001, 16 << 10
#: netem's tables of distributions: so many values, of which NORMAL_SCALE is one standard deviation.
NORMAL_VALUES, NORMAL_SCALE = 4096, 8192


@dataclass(frozen=True, slots=True)
class Qdisc:
    """One qdisc to be added to an interface: where, of which kind, its encoded options, and what one would type after `tc`."""

    kind: str
    parent: int
    handle: int
    options: bytes
    words: str

    def line(self, interface: str) -> str:
        """Write `tc qdisc add`; the interface may have `-n NAMESPACE` in front, by a space."""
        where = "root" if self.parent == TC_H_ROOT else f"parent {self.parent >> 16:x}:{self.parent & 0xFFFF:x}"
        return f"qdisc add dev {interface} {where} handle {self.handle >> 16:x}: {self.kind} {self.words}"


def requests(shape: LinkShape) -> list[Qdisc]:
    """Give the qdiscs of an interface, in the order in which they are added; none for a link of which nothing is asked."""
    found = []
    if shape.impairs:
        found.append(Qdisc("netem", TC_H_ROOT, NETEM_HANDLE, _netem_options(shape), " ".join(_netem_words(shape))))
    if shape.rate_bps is not None:
        parent = NETEM_CLASS if found else TC_H_ROOT
        found.append(Qdisc("tbf", parent, TBF_HANDLE, _tbf_options(shape, shape.rate_bps), _tbf_words(shape)))
    return found


def burst_bytes(rate_bps: int) -> int:
    """Give the size of the token bucket."""
    return max(round(rate_bps / 8 * _BURST_S), _LEAST_BURST_BYTES)


def normal_table() -> list[int]:
    """Give netem's table of a normal distribution: quantiles of equal probability, cut off at four standard deviations."""
    normal, most = NormalDist(), 4 * NORMAL_SCALE - 1
    quantiles = (normal.inv_cdf((index + 0.5) / NORMAL_VALUES) for index in range(NORMAL_VALUES))
    return [max(-most, min(most, round(quantile * NORMAL_SCALE))) for quantile in quantiles]


def _netem_options(shape: LinkShape) -> bytes:
    options = struct.pack(
        "=6I", _ticks(shape.delay_s), shape.held_packets, _share(shape.loss), shape.gap, _share(shape.duplicate),
        _ticks(shape.jitter_s),
    )  # fmt: skip
    correlations = (shape.delay_correlation, shape.loss_correlation, shape.duplicate_correlation)
    if any((*correlations, shape.reorder_correlation, shape.corrupt_correlation)):
        options += _attribute(_CORR, struct.pack("=3I", *map(_share, correlations)))
    if shape.reorder:
        options += _attribute(_REORDER, struct.pack("=2I", _share(shape.reorder), _share(shape.reorder_correlation)))
    if shape.corrupt:
        options += _attribute(_CORRUPT, struct.pack("=2I", _share(shape.corrupt), _share(shape.corrupt_correlation)))
    if shape.distribution == "normal" and shape.jitter_s:
        options += _attribute(_DELAY_DIST, struct.pack(f"={NORMAL_VALUES}h", *normal_table()))
    # Kernels before 6.6 do not know it, and take no notice.
    return options + _attribute(_PRNG_SEED, struct.pack("=Q", shape.seed))


def _netem_words(shape: LinkShape) -> Iterator[str]:
    yield f"limit {shape.held_packets}"
    if shape.delay_s:
        yield f"delay {_time_word(shape.delay_s)}"
        if shape.jitter_s:
            yield _time_word(shape.jitter_s)
            if shape.delay_correlation:
                yield _share_word(shape.delay_correlation)
            if shape.distribution != "uniform":
                yield f"distribution {shape.distribution}"
    for name in ("loss", "duplicate", "corrupt", "reorder"):
        if share := getattr(shape, name):
            correlation = getattr(shape, f"{name}_correlation")
            yield f"{name} {_share_word(share)}" + (f" {_share_word(correlation)}" if correlation else "")
    if shape.gap:
        yield f"gap {shape.gap}"


def _tbf_options(shape: LinkShape, rate_bps: int) -> bytes:
    bytes_per_s, burst = round(rate_bps / 8), burst_bytes(rate_bps)
    # struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate. The kernel needs no table of times where it is told
    # the link layer; of a rate that 32 bits do not hold it reads the attribute instead.
    ratespec = struct.pack("=BBHhHI", _CELL_LOG, _LINKLAYER_ETHERNET, 0, -1, 0, min(bytes_per_s, _U32))
    no_peak = bytes(12)
    parms = ratespec + no_peak + struct.pack("=3I", shape.queue_bytes or 0, _ticks(burst / min(bytes_per_s, _U32)), 0)
    options = _attribute(_TBF_PARMS, parms) + _attribute(_TBF_BURST, struct.pack("=I", burst))
    if bytes_per_s > _U32:
        options += _attribute(_TBF_RATE64, struct.pack("=Q", bytes_per_s))
    return options


def _tbf_words(shape: LinkShape) -> str:
    rate_bps = shape.rate_bps or 0
    return f"rate {rate_bps}bit burst {burst_bytes(rate_bps)} limit {shape.queue_bytes}"


def _attribute(kind: int, payload: bytes) -> bytes:
    """Encode a netlink attribute; the next one begins at a multiple of four bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _ticks(seconds: float) -> int:
    # Whole microseconds first, then whole ticks, both cut off as tc does, but for what a float is short of.
    return int(seconds * 1e6 + 1e-6) * 1000 // _TICK_NS


def _share(share: float) -> int:
    return round(share * _U32)


def _time_word(seconds: float) -> str:
    return f"{seconds * 1e6:.6g}us" if seconds < 1e-3 else f"{seconds * 1e3:.9g}ms"


def _share_word(share: float) -> str:
    return f"{share * 100:.6g}%"
