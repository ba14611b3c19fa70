"""Lines of results put together by what a figure tells apart: pure functions of parsed lines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagefire.protocol.errors import UsageError
from pagefire.protocol.units import parse_duration, parse_rate, parse_size, parse_throughput
from pagefire.scripts.experiment.parameters import DEFAULT, Value, words_of
from pagefire.scripts.figures.description import Axis, Row
from pagefire.scripts.figures.quantities import Quantity
from pagefire.scripts.shaped_link import parse_link_rate
from pagefire.scripts.spread import spread

Json = dict[str, Any]

#: Largest over least from which on an axis is logarithmic, of a parameter and of a quantity.
_LOG_FROM, _WIDE_FROM = 8, 30
_NO_UNIT = {
    "vcpus": "vCPUs",
    "streams": "page connections",
    "prefetch": "prefetch (pages)",
    "link-rate": "link rate",
    "delay": "one-way delay",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What the runs of a case gave: how many there were, and the figures of those that gave one."""

    runs: int
    figures: tuple[float, ...]

    @property
    def median(self) -> float | None:
        return statistics.median(self.figures) if self.figures else None

    @property
    def least(self) -> float | None:
        return min(self.figures, default=None)

    @property
    def largest(self) -> float | None:
        return max(self.figures, default=None)


def admitted(lines: Iterable[Json], where: Mapping[str, Sequence[Value]]) -> list[Json]:
    """Give the lines whose case has one of these values of each."""
    return [line for line in lines if all(line["case"].get(name, DEFAULT) in values for name, values in where.items())]


def values_of(lines: Iterable[Json], name: str) -> list[Value]:
    """Give the values that a parameter has: numbers in their order, words in the order of their first line; `default` last."""
    found = list(dict.fromkeys(line["case"].get(name, DEFAULT) for line in lines))
    numbers = {value: number_of(name, value) for value in found}
    if all(number is not None for value, number in numbers.items() if value != DEFAULT):
        found.sort(key=lambda value: (value == DEFAULT, numbers[value] or 0.0))
    return found


def with_value(lines: Iterable[Json], name: str, value: Value) -> list[Json]:
    """Give the lines whose case has this value; no name admits all."""
    return [line for line in lines if not name or line["case"].get(name, DEFAULT) == value]


def measure(lines: Sequence[Json], quantity: Quantity) -> Measured:
    """Read a quantity of some lines."""
    figures = (quantity.read(line) for line in lines)
    return Measured(len(lines), tuple(figure for figure in figures if figure is not None))


def row(case: str, measured: Measured, unit: str) -> Row:
    """Say what was measured of a case."""
    if not measured.figures:
        return Row(case, measured.runs, 0, "", "", "")
    three = spread(measured.figures)
    median, least, largest = (
        f"{digits(three[name])} {unit.removesuffix(' of runs')}".strip() for name in ("median", "min", "max")
    )
    return Row(case, measured.runs, len(measured.figures), median, least, largest)


def digits(figure: float) -> str:
    """Write a figure with three digits."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def number_of(name: str, value: Value) -> float | None:
    """Give the number that a parameter's value stands for, in whatever unit; None where it is not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    readers = {
        "memory": parse_size, "resident": parse_size, "working-set": parse_size, "rate": parse_rate,
        "max-bandwidth": parse_throughput, "link-rate": parse_link_rate,
        "delay": parse_duration, "jitter": parse_duration, "downtime-limit": parse_duration, "max-time": parse_duration,
    }  # fmt: skip
    try:
        return float(readers.get(name, _plain)(value))
    except (UsageError, ValueError):
        return None


def _plain(value: str) -> float:
    return float(value.strip().removesuffix("%"))


def parameter_axis(name: str, values: Sequence[Value]) -> tuple[Axis, dict[Value, float], bool]:
    """Give the axis of a parameter, where each value stands on it, and whether it is by number; the ticks are as written."""
    numbers = {value: number_of(name, value) for value in values}
    label = _NO_UNIT.get(name, name)
    if len(values) > 1 and all(number is not None for number in numbers.values()):
        places = {value: float(number) for value, number in numbers.items() if number is not None}
        log = min(places.values()) > 0 and max(places.values()) / min(places.values()) >= _LOG_FROM
        return Axis(label, tuple((place, words_of(value)) for value, place in places.items()), log), places, True
    places = {value: float(index) for index, value in enumerate(values)}
    return Axis(label, tuple((place, words_of(value)) for value, place in places.items())), places, False


def quantity_axis(quantity: Quantity, figures: Iterable[float | None]) -> Axis:
    """Give the axis of a quantity: logarithmic where it spans much and is never zero."""
    known = [figure for figure in figures if figure is not None]
    wide = bool(known) and min(known) > 0 and max(known) / min(known) >= _WIDE_FROM
    return Axis(quantity.label, log=wide)
