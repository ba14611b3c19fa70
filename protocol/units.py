"""Sizes, durations, rates and CPU lists: from what a person types, and back to what a person reads.

One rule for sizes, both ways: a letter alone or with iB is a power of 1024, because that is how memory comes (4G = 4GiB =
2**32), and a letter with a capital B is a power of 1000, because that is how networks and disks are sold (100MB = 10**8). A small
b would mean bits and is refused. Rates are counts, so their k, M and G are powers of 1000.

What is refused is a `UsageError` that repeats what was given, says why it is wrong, and shows one that is right. Nothing here
knows a default: an option that was left out never gets this far.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import PAGE_BYTES, pages_of

#: Linux cannot be built for more CPUs than this (NR_CPUS of x86-64), so a longer list is a typing mistake.
MAX_CPUS = 8192

_NUMBER_AND_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([^\s0-9.]*)")
_MAX_SIZE_BYTES = 2**63 - 1
_MAX_DURATION_S = 10 * 365 * 86_400
_MAX_RATE_PER_S = 10**12

_SIZE_FACTORS = {"": 1, "B": 1} | {
    spelling: factor
    for power, letters in enumerate(("kK", "mM", "gG", "tT"), start=1)
    for letter in letters
    for spelling, factor in (
        (letter, 1024**power),
        (f"{letter}iB", 1024**power),
        (f"{letter}ib", 1024**power),
        (f"{letter}IB", 1024**power),
        (f"{letter}B", 1000**power),
    )
}
_DURATION_FACTORS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "\N{MICRO SIGN}s": Decimal("1e-6"),
    "\N{GREEK SMALL LETTER MU}s": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
}
_COUNT_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}

_SIZE_STEPS = ((1, "B"), (1024, "KiB"), (1024**2, "MiB"), (1024**3, "GiB"), (1024**4, "TiB"))
_DURATION_STEPS = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"))
_THROUGHPUT_FACTORS = {
    f"{letter}{unit}": factor
    for letter, power in (("", 1), ("k", 10**3), ("K", 10**3), ("M", 10**6), ("G", 10**9))
    for unit, factor in (("B/s", Decimal(power)), ("bit/s", Decimal(power) / 8), ("bit", Decimal(power) / 8))
}
_THROUGHPUT_STEPS = ((1, "B/s"), (10**3, "kB/s"), (10**6, "MB/s"), (10**9, "GB/s"))


def parse_size(given: str) -> int:
    """Read a size in bytes: 4096, 512M, 4GiB, 6TiB (powers of 1024) or 100MB (powers of 1000).

    A fraction of a byte is dropped (1.1GiB). Raises UsageError, also at 2**63 bytes and above.
    """
    number, unit = _split(given, "size")
    factor = _SIZE_FACTORS.get(unit)
    if factor is None:
        bits = unit[-1:] == "b"
        why = "a small b would mean bits" if bits else f"{unit!r} is not a unit of size"
        raise _refusal(given, "size", why)
    size_bytes = int(number * factor)
    if size_bytes > _MAX_SIZE_BYTES:
        raise _refusal(given, "size", "that is more than 64-bit Linux can address")
    return size_bytes


def parse_duration(given: str) -> float:
    """Read a duration in seconds: 300us, 50ms, 1.5s, 5m, 1h; only 0 may come without a unit. Raises UsageError."""
    number, unit = _split(given, "duration")
    if not unit and number:
        raise _refusal(given, "duration", "the unit is missing")
    factor = _DURATION_FACTORS.get(unit or "s")
    if factor is None:
        raise _refusal(given, "duration", f"{unit!r} is not a unit of time")
    duration_s = number * factor
    if duration_s > _MAX_DURATION_S:
        raise _refusal(given, "duration", "that is more than ten years")
    return float(duration_s)


def parse_rate(given: str) -> float:
    """Read a rate per second: 2000, 2000/s or 50k/s (k, M and G are powers of 1000). Zero is refused. Raises UsageError."""
    number, unit = _split(given, "rate")
    factor = _COUNT_FACTORS.get(unit.removesuffix("/s"))
    if factor is None:
        raise _refusal(given, "rate", f"{unit!r} is not a unit of a rate")
    rate_per_s = number * factor
    if not 0 < rate_per_s <= _MAX_RATE_PER_S:
        raise _refusal(given, "rate", "a rate is above zero and at most 1000G/s")
    return float(rate_per_s)


def parse_throughput(given: str) -> float:
    """Read bytes per second: 125MB/s, 1.5GB/s, or as networks are sold 1Gbit/s, 100Mbit. Powers of 1000. Raises UsageError."""
    number, unit = _split(given, "throughput")
    factor = _THROUGHPUT_FACTORS.get(unit.replace("mbit", "Mbit").replace("gbit", "Gbit"))
    if factor is None:
        raise _refusal(given, "throughput", f"{unit!r} is not a unit of throughput" if unit else "the unit is missing")
    bytes_per_s = number * factor
    if not 1 <= bytes_per_s <= _MAX_RATE_PER_S:
        raise _refusal(given, "throughput", "a throughput is at least 1 B/s and at most 1000 GB/s")
    return float(bytes_per_s)


def parse_share(given: str) -> float:
    """Read a share (50%) as a number above 0 and at most 1. Raises UsageError."""
    number, unit = _split(given, "share")
    if unit != "%" or not 0 < number <= 100:
        raise _refusal(given, "share", "a share is above 0% and at most 100%")
    return float(number) / 100


def parse_working_set(given: str, memory_bytes: int) -> int:
    """Read a working set, as a share of `memory_bytes` (25%) or a size (256MiB), in bytes.

    Rounded up to whole pages, since a guest writes no less, but never above `memory_bytes`. Raises UsageError when it is nothing or
    more than the memory.
    """
    if given.strip().endswith("%"):
        number, unit = _split(given, "working set")
        if unit != "%" or not 0 < number <= 100:
            raise _refusal(given, "working set", "a share is above 0% and at most 100%")
        wanted_bytes = max(1, int(number * memory_bytes / 100))
    else:
        try:
            wanted_bytes = parse_size(given)
        except UsageError as error:
            raise _refusal(given, "working set", error.why) from error
        if not wanted_bytes:
            raise _refusal(given, "working set", "a guest that writes nothing has no working set")
    if wanted_bytes > memory_bytes:
        raise _refusal(given, "working set", f"the guest has {format_size(memory_bytes)} of memory")
    return min(memory_bytes, pages_of(wanted_bytes) * PAGE_BYTES)


def parse_cpu_list(given: str) -> tuple[int, ...]:
    """Read a CPU list as the kernel writes them (0,2-3): ascending, each CPU once. Raises UsageError.

    Whether this machine has those CPUs is for the caller to ask.
    """
    cpus: set[int] = set()
    for part in given.split(","):
        matched = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        if matched is None:
            raise _refusal(given, "CPU list", f"{part.strip()!r} is neither a CPU nor a range of CPUs")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if last < first:
            raise _refusal(given, "CPU list", f"the range {part.strip()} ends before it begins")
        if last >= MAX_CPUS:
            raise _refusal(given, "CPU list", f"no Linux has a CPU {last}")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_size(size_bytes: float) -> str:
    """Write bytes in powers of 1024 with three digits: 512 B, 497 KiB, 1.5 GiB."""
    return _scaled(size_bytes, _SIZE_STEPS)


def format_duration(duration_s: float) -> str:
    """Write seconds with three digits: 42 us, 1.5 ms, 3.2 s, and from two minutes on 2 min 5 s."""
    whole_s = round(abs(duration_s))
    if whole_s < 120:
        return _scaled(duration_s, _DURATION_STEPS) if duration_s else "0 s"
    sign = "-" if duration_s < 0 else ""
    hours, minutes, seconds = whole_s // 3600, whole_s // 60 % 60, whole_s % 60
    return sign + (f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s")


def format_throughput(bytes_per_s: float) -> str:
    """Write bytes per second in powers of 1000 with three digits: 812 MB/s, 5.15 GB/s."""
    return _scaled(bytes_per_s, _THROUGHPUT_STEPS)


def format_count(count: float) -> str:
    """Write a count with its thousands apart: 1,296; a fraction is rounded to the nearest whole."""
    return f"{round(count):,}"


_EXAMPLES = {
    "size": "4GiB, 512M, 100MB or 4096",
    "duration": "300us, 50ms, 1.5s or 5m",
    "share": "50%",
    "rate": "2000, 2000/s or 50k/s",
    "throughput": "125MB/s or 1Gbit/s",
    "working set": "25% or 256MiB",
    "CPU list": "0,2-3",
}


def _split(given: str, kind: str) -> tuple[Decimal, str]:
    matched = _NUMBER_AND_UNIT.fullmatch(given.strip())
    if matched is None or len(matched[1]) > 40:
        why = "it must not be empty" if not given.strip() else "it must be a number, then its unit"
        if given.strip().startswith("-"):
            why = "it must not be negative"
        raise _refusal(given, kind, why)
    return Decimal(matched[1]), matched[2]


def _refusal(given: str, kind: str, why: str) -> UsageError:
    return UsageError(f"{given!r} is not a valid {kind}", why, f"give a {kind} such as {_EXAMPLES[kind]}")


def _scaled(value: float, steps: Sequence[tuple[float, str]]) -> str:
    """Write `value` in the largest of its ascending steps that leaves at least one, as it will be rounded."""
    # Rounded first, chosen second: 999.9 MB/s is "1 GB/s", not "1000 MB/s".
    factor, unit = steps[0]
    for larger, name in steps[1:]:
        if _three_digits(abs(value) / factor) * factor < larger * (1 - 1e-9):
            break
        factor, unit = larger, name
    return f"{_three_digits(value / factor):,.10g} {unit}"


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) < 1000 else float(round(value))
