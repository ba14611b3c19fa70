"""The options of `pagefire bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import GRANULE_BYTES
from pagefire.protocol.units import format_size, parse_rate, parse_size
from pagefire.scripts import options as o
from pagefire.scripts.bench.plan import BACKINGS, Plan

#: Option -> what it is where it was not given, and with --quick.
_DEFAULTS = {
    "memory": ("2GiB", "64MiB"),
    "round_memory": ("1GiB", "64MiB"),
    "streams": ("1,2,4", "1"),
    "backing": ("4k,thp,hugetlb", "4k"),
    "repetitions": ("5", "1"),
    "migrations": ("20", "2"),
    "sizes": ("256MiB,512MiB,1GiB,2GiB,4GiB,8GiB", "none"),
    "rates": ("0,10k,50k,100k,200k", "none"),
    "vcpus": ("1,4,16,64,256", "none"),
}
_MAX_STREAMS, _MAX_VCPUS = 16, 256
_NONE, _MAY_BE_NONE = "none", ("rates", "vcpus", "sizes")


def _words(option: str) -> str:
    return f"\\[default: {_DEFAULTS[option][0]}]"


@dataclass(frozen=True)
class BenchOptions:
    """Sizes and counts; each benchmark takes those that concern it."""

    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", help="Memory of a guest whose size is not varied \\[default: 2GiB; of a round's 1GiB]."
        ),
    ] = None
    streams: Annotated[
        str | None, typer.Option("--streams", help=f"throughput, cpu: page connections {_words('streams')}.")
    ] = None
    backing: Annotated[
        str | None,
        typer.Option(
            "--backing",
            help=f"throughput, cpu: what maps memory; huge pages are allowed for so long, by root {_words('backing')}.",
        ),
    ] = None
    repetitions: Annotated[
        int | None, typer.Option("--repetitions", help=f"Pairs of each case {_words('repetitions')}.")
    ] = None
    migrations: Annotated[
        int | None,
        typer.Option("--migrations", help=f"stun: how many make up the distribution {_words('migrations')}."),
    ] = None
    sizes: Annotated[
        str | None, typer.Option("--sizes", help=f"stun, memory: sizes of guests; none {_words('sizes')}.")
    ] = None
    rates: Annotated[
        str | None, typer.Option("--rates", help=f"stun: page stores per second; none {_words('rates')}.")
    ] = None
    vcpus: Annotated[str | None, typer.Option("--vcpus", help=f"stun: numbers of vCPUs; none {_words('vcpus')}.")] = (
        None
    )
    hold_memory: Annotated[
        bool,
        typer.Option(
            "--hold-memory",
            help="throughput, cpu: hold all other free memory meanwhile: steadier figures on a machine that is yours alone.",
        ),
    ] = False
    quick: Annotated[
        bool, typer.Option("--quick", help="Small guests and few repetitions: to see that it works, not for figures.")
    ] = False

    def plan(self) -> Plan:
        """Parse it; raises UsageError before anything is started."""
        backings = self._list("backing")
        for one in backings:
            o.one_of("--backing", one, BACKINGS)
        sizes = [_size("--sizes", one) for one in self._list("sizes")]
        memory = self._given("memory")
        return Plan(
            memory_bytes=_size("--memory", memory),
            round_bytes=_size("--memory", self.memory or self._given("round_memory")),
            streams=self._counts("streams", _MAX_STREAMS),
            backings=tuple(backings),
            repetitions=self._count("repetitions", "pairs"),
            migrations=self._count("migrations", "migrations"),
            sizes_bytes=tuple(sorted(sizes)),
            rates_per_s=tuple(sorted(0.0 if one == "0" else parse_rate(one) for one in self._list("rates"))),
            vcpus=self._counts("vcpus", _MAX_VCPUS),
            hold_memory=self.hold_memory,
            quick=self.quick,
        )

    def _given(self, option: str) -> str:
        given = getattr(self, option, None)
        return str(given) if given is not None else _DEFAULTS[option][self.quick]

    def _list(self, option: str) -> list[str]:
        if self._given(option) == _NONE and option in _MAY_BE_NONE:
            return []
        parts = [part.strip() for part in self._given(option).split(",")]
        if not all(parts):
            raise UsageError(
                f"--{option} {self._given(option)!r} has an empty entry",
                "",
                "separate what you ask for by single commas",
            )
        return parts

    def _counts(self, option: str, most: int) -> tuple[int, ...]:
        counts = tuple(int(one) if one.isdigit() else 0 for one in self._list(option))
        if not all(1 <= count <= most for count in counts):
            raise UsageError(
                f"--{option} {self._given(option)!r} is no list of numbers from 1 to {most}",
                "",
                f"write --{option} 1,2",
            )
        return counts

    def _count(self, option: str, what: str) -> int:
        count = int(self._given(option))
        if count < 1:
            raise UsageError(f"{count} {what} measure nothing", "", f"ask for --{option} 1 or more")
        return count


def _size(option: str, given: str) -> int:
    size_bytes = parse_size(given)
    if size_bytes < 32 * GRANULE_BYTES or size_bytes % GRANULE_BYTES:
        raise UsageError(
            f"{option} {given!r} is no size of a guest here",
            f"whole pages of 2 MiB, {format_size(32 * GRANULE_BYTES)} and more, are",
            f"change {option}",
        )
    return size_bytes
