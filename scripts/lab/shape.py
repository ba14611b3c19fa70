"""What a link is to do to packets: one frozen description, from options or from tc's own grammar (tc-netem(8)).

The same shape holds for both directions, so that a delay of 25 ms is a round trip of 50. Rates count Ethernet frames, as tc counts
them: 14 bytes more than the IP packet. Loss, duplication, corruption and reordering are shares, 0 to 1; correlations too, and they
mean what they mean to netem: each draw is a mix of a new one and the last.

Pure: what a shape becomes, netlink requests or arrays of the emulator, is not known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from pagefire.protocol.errors import UsageError
from pagefire.protocol.units import format_duration, format_size, parse_duration, parse_share

#: An IP packet of the usual size as a frame, and how short the queue of a link with a rate is at least.
FRAME_BYTES = 1514
_LEAST_QUEUE_S, _LEAST_QUEUE_BYTES = 0.01, 64 << 10
#: What a link without a rate may hold, and what any may.
_UNLIMITED_PACKETS, MAX_PACKETS = 100_000, 1_000_000
_LEAST_PACKETS = 1000
MAX_DELAY_S, MIN_RATE_BPS = 60.0, 64_000
DISTRIBUTIONS = ("uniform", "normal")


@dataclass(frozen=True, slots=True)
class LinkShape:
    """One link. `rate_bps` None: no limit; `limit_packets` None: what `held_packets` says.

    delay_s: one way. jitter_s: a packet's delay is drawn from delay +- jitter (normal: jitter is the standard deviation), so that
    packets closer together than that overtake each other. reorder: this share of packets is not delayed at all; with a gap of n
    only each n-th can be. seed: of the emulator's draws.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    delay_correlation: float = 0.0
    distribution: str = "uniform"
    loss: float = 0.0
    loss_correlation: float = 0.0
    duplicate: float = 0.0
    duplicate_correlation: float = 0.0
    corrupt: float = 0.0
    corrupt_correlation: float = 0.0
    reorder: float = 0.0
    reorder_correlation: float = 0.0
    gap: int = 0
    rate_bps: int | None = None
    limit_packets: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.delay_s <= MAX_DELAY_S or not 0 <= self.jitter_s <= MAX_DELAY_S:
            raise _refusal(f"a delay of {self.delay_s:g} s", f"0 to {MAX_DELAY_S:g} s can be had")
        if self.jitter_s and not self.delay_s:
            raise _refusal("jitter without a delay", "it is what a delay varies by")
        if (self.reorder or self.gap) and not self.delay_s:
            raise _refusal("reordering without a delay", "a packet overtakes others by not being delayed")
        if self.gap and not self.reorder:
            raise _refusal("a gap without reordering", "it says which packets may overtake others")
        if self.rate_bps is not None and self.rate_bps < MIN_RATE_BPS:
            raise _refusal(f"a rate of {self.rate_bps} bit/s", f"{MIN_RATE_BPS // 1000} kbit/s is the least")
        if self.limit_packets is not None and not 1 <= self.limit_packets <= MAX_PACKETS:
            raise _refusal(f"a limit of {self.limit_packets} packets", f"1 to {MAX_PACKETS} can be had")

    @property
    def rtt_s(self) -> float:
        return 2 * self.delay_s

    @property
    def shapes(self) -> bool:
        """Whether anything is asked of the link at all."""
        return replace(self, seed=1, limit_packets=None) != LinkShape()

    @property
    def impairs(self) -> bool:
        """Whether anything is asked but a rate: what needs netem or the emulator."""
        return replace(self, seed=1, rate_bps=None) != LinkShape()

    @property
    def queue_bytes(self) -> int | None:
        """How much may wait for its turn at the rate: twice bandwidth x delay, 10 ms and 64 KiB at least. None without a rate."""
        if self.rate_bps is None:
            return None
        return max(round(self.rate_bps / 8 * max(self.rtt_s, _LEAST_QUEUE_S)), _LEAST_QUEUE_BYTES)

    @property
    def held_packets(self) -> int:
        """How many packets the link may hold in a direction, those on their way and those that wait for their turn together.

        As netem counts its `limit`. Counted for small packets as well: a quarter of a full one each.
        """
        if self.limit_packets is not None:
            return self.limit_packets
        if self.rate_bps is None:
            return _UNLIMITED_PACKETS
        on_their_way_bytes = self.rate_bps / 8 * (self.delay_s + 4 * self.jitter_s)
        held = 4 * math.ceil((on_their_way_bytes + (self.queue_bytes or 0)) / FRAME_BYTES)
        return min(max(held, _LEAST_PACKETS), MAX_PACKETS)

    def words(self) -> str:
        """Write it for a person."""
        parts = []
        if self.delay_s:
            jitter = f" +- {format_duration(self.jitter_s)} ({self.distribution})" if self.jitter_s else ""
            parts.append(f"{format_duration(self.delay_s)}{jitter} each way ({format_duration(self.rtt_s)} RTT)")
        named = {"loss": self.loss, "reordered": self.reorder, "duplicated": self.duplicate, "corrupted": self.corrupt}
        parts += [f"{share * 100:.6g}% {name}" for name, share in named.items() if share]
        if self.rate_bps is not None:
            parts.append(f"{format_rate(self.rate_bps)}, a queue of {format_size(self.queue_bytes or 0)}")
        return ", ".join(parts) or "nothing is shaped"


def shape_of(  # the options of a command, or of a scenario
    delay: str | None = None,
    jitter: str | None = None,
    loss: str | None = None,
    link_rate: str | None = None,
    reorder: str | None = None,
    netem: str | None = None,
    seed: int = 1,
) -> LinkShape:
    """Read the options of a link; `netem` is tc's grammar, and goes with `link_rate` only. Raises UsageError."""
    if netem is not None:
        if (delay, jitter, loss, reorder) != (None, None, None, None):
            raise UsageError(
                "--netem says all of a link but its rate",
                "--delay, --jitter, --loss and --reorder say the same otherwise",
                "give either",
            )
        shape = parse_netem(netem)
        if link_rate is not None and shape.rate_bps is not None:
            raise UsageError("two rates are given", "one by --netem and one by --link-rate", "give one of them")
        return replace(shape, rate_bps=shape.rate_bps or (parse_rate(link_rate) if link_rate else None), seed=seed)
    return LinkShape(
        delay_s=parse_duration(delay) if delay is not None else 0.0,
        jitter_s=parse_duration(jitter) if jitter is not None else 0.0,
        loss=_small_share(loss) if loss is not None else 0.0,
        reorder=_small_share(reorder) if reorder is not None else 0.0,
        gap=1 if reorder is not None and _small_share(reorder) else 0,
        rate_bps=parse_rate(link_rate) if link_rate is not None else None,
        seed=seed,
    )


def _small_share(given: str) -> float:
    return 0.0 if re.fullmatch(r"0+(\.0+)?%?", given.strip()) else parse_share(given)


# -- tc's grammar ----------------------------------------------------------------------------------------------------------------

_TIMES = (
    dict.fromkeys(("s", "sec", "secs"), Decimal(1))
    | dict.fromkeys(("ms", "msec", "msecs"), Decimal("1e-3"))
    | dict.fromkeys(("", "us", "usec", "usecs"), Decimal("1e-6"))
)
_RATES = {"": Decimal(1), "bit": Decimal(1), "bps": Decimal(8)} | {
    f"{prefix}{binary}{unit}": Decimal(bits * (1024 if binary else 1000) ** power)
    for power, prefix in enumerate("kmgt", 1)
    for binary in ("", "i")
    for unit, bits in (("bit", 1), ("bps", 8))
}
_SHARES = {"": Decimal("0.01"), "%": Decimal("0.01")}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(.*)")


def parse_rate(given: str) -> int:
    """Read a rate as tc does: 200mbit, 1gbit, and 25mbps for bytes. Bits per second. Raises UsageError."""
    return round(_number(given, _RATES, "rate of a link", "200mbit, 1gbit or 25mbps (bytes)"))


def format_rate(rate_bps: float) -> str:
    """Write bits per second as tc reads them, with three digits."""
    for factor, unit in ((1e9, "gbit"), (1e6, "mbit"), (1e3, "kbit")):
        if rate_bps >= factor * (1 - 1e-9):
            return f"{rate_bps / factor:.4g} {unit}/s"
    return f"{rate_bps:.4g} bit/s"


def parse_netem(given: str) -> LinkShape:
    """Read what follows `tc qdisc add dev DEV root netem`. Raises UsageError, also for what netem knows and this does not."""
    words, found = given.split(), dict[str, Any]()
    while words:
        name = words.pop(0).lower()
        reader = _CLAUSES.get(name)
        if reader is None:
            why = "netem has it, but it is not offered here" if name in _NOT_OFFERED else "netem does not know it"
            raise UsageError(f"{name!r} cannot be asked of a link", why, f"known are {', '.join(_CLAUSES)}")
        reader(words, found)
    if found.get("reorder"):
        # As tc does where nothing is said: each packet may overtake.
        found.setdefault("gap", 1)
    return LinkShape(**found)


_NOT_OFFERED = ("slot", "ecn", "seed")


def _delay(words: list[str], found: dict[str, Any]) -> None:
    found["delay_s"] = _time(_next(words, "delay"))
    if _is_number(words):
        found["jitter_s"] = _time(words.pop(0))
        _correlation(words, found, "delay_correlation")


def _distribution(words: list[str], found: dict[str, Any]) -> None:
    name = _next(words, "distribution")
    if name not in DISTRIBUTIONS:
        raise UsageError(f"no delay is distributed as {name!r} here", f"known are {', '.join(DISTRIBUTIONS)}")
    if not found.get("jitter_s"):
        raise _refusal("a distribution without jitter", "it is the jitter's")
    found["distribution"] = name


def _loss(words: list[str], found: dict[str, Any]) -> None:
    if words and words[0] == "random":
        words.pop(0)
    elif words and words[0] in ("state", "gemodel"):
        raise UsageError(
            f"loss {words[0]} is not offered here", "random loss is, with a correlation", "write loss 1% 25%"
        )
    _share_with_correlation("loss")(words, found)


def _share_with_correlation(name: str) -> Callable[[list[str], dict[str, Any]], None]:
    def read(words: list[str], found: dict[str, Any]) -> None:
        found[name] = _share(_next(words, name))
        _correlation(words, found, f"{name}_correlation")

    return read


def _gap(words: list[str], found: dict[str, Any]) -> None:
    found["gap"] = _count(_next(words, "gap"), "gap")


def _rate(words: list[str], found: dict[str, Any]) -> None:
    found["rate_bps"] = parse_rate(_next(words, "rate"))


def _limit(words: list[str], found: dict[str, Any]) -> None:
    found["limit_packets"] = _count(_next(words, "limit"), "limit")


_CLAUSES: dict[str, Callable[[list[str], dict[str, Any]], None]] = {
    "delay": _delay,
    "latency": _delay,
    "distribution": _distribution,
    "loss": _loss,
    "drop": _loss,
    "duplicate": _share_with_correlation("duplicate"),
    "corrupt": _share_with_correlation("corrupt"),
    "reorder": _share_with_correlation("reorder"),
    "gap": _gap,
    "rate": _rate,
    "limit": _limit,
}


def _correlation(words: list[str], found: dict[str, Any], name: str) -> None:
    if _is_number(words):
        found[name] = _share(words.pop(0))


def _is_number(words: list[str]) -> bool:
    return bool(words) and _NUMBER.fullmatch(words[0]) is not None


def _next(words: list[str], name: str) -> str:
    if not words:
        raise UsageError(f"{name} says nothing", "its value is missing", f"write it after {name}")
    return words.pop(0)


def _time(given: str) -> float:
    return _number(given, _TIMES, "time", "25ms, 300us or 1s")


def _share(given: str) -> float:
    share = _number(given, _SHARES, "share", "0.1%")
    if share > 1:
        raise UsageError(f"{given!r} is more than all", "", "give a share such as 0.1%")
    return share


def _count(given: str, name: str) -> int:
    if not given.isdecimal():
        raise UsageError(f"{given!r} is no {name}", "it is a whole number", f"write {name} 1000")
    return int(given)


def _number(given: str, units: dict[str, Decimal], kind: str, example: str) -> float:
    matched = _NUMBER.fullmatch(given.strip().lower())
    if matched is None or matched[2].strip() not in units:
        raise UsageError(f"{given!r} is no {kind}", "it is a number and its unit, as tc reads them", f"write {example}")
    return float(Decimal(matched[1]) * units[matched[2].strip()])


def _refusal(what: str, why: str) -> UsageError:
    return UsageError(f"{what} cannot be had of a link", why, "change the link's options")
