"""Who shapes a lab's link, and making him do it: the kernel's netem and tbf, or the emulator where there is no netem.

A rate alone is tbf's in either case. The emulator is asked what it can carry first (`Ceiling`): a TCP transfer through it,
unshaped, with both ends on this machine as they will be, and a rate above 70% of that is refused, because the link would then be
as slow as the emulator and not as asked. Where no rate is asked it carries at 70%, so that a full queue drops packets by the
link's rules and not by the kernel's in front of the emulator.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.link_report import Carried, Emulator, Link, LinkAsked
from pagefire.scripts.lab.network import Asked, LabNetwork
from pagefire.scripts.lab.plan import DEST_ADDRESS, TUN_DEST, TUN_SOURCE
from pagefire.scripts.lab.shape import LinkShape, format_rate
from pagefire.scripts.tcp_transfer import transfer

Json = dict[str, Any]

SHARE_OF_CEILING = 0.7
_CEILING_S = 1.0


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the emulator carries here without any shape: packets a second of both directions, bits a second of the data's."""

    pps: float
    bps: float

    @property
    def most_bps(self) -> int:
        return int(self.bps * SHARE_OF_CEILING)

    def require(self, rate_bps: int) -> None:
        """Raise PagefireError for a rate that would be the emulator's and not the link's."""
        if rate_bps > self.most_bps:
            raise PagefireError(
                f"a link of {format_rate(rate_bps)} cannot be emulated here",
                f"the emulator carries {format_rate(self.bps)} ({self.pps:,.0f} packets/s) on this machine, and above 70% of that "
                "its own limit would be measured, not the link's",
                f"ask for --link-rate {self.most_bps // 1_000_000}mbit or less, or use a kernel with sch_netem",
            )


class Shaper:
    """A context: inside it the link of a network does what its shape says. `link` is what the report says of it."""

    def __init__(self, network: LabNetwork, shape: LinkShape) -> None:
        self._network, self._asked = network, shape
        self._emulator: Asked | None = None
        self._dropped_before: dict[str, int] = {}
        #: What the link really does: as asked, with the emulator's own rate where none was.
        self.shape = shape
        self.link = Link(asked=asked_of(shape))

    def __enter__(self) -> Shaper:
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._emulator is not None:
            self._emulator.end()

    def _begin(self) -> None:
        keeper, shape, link = self._network.keeper, self.shape, self.link
        if not shape.shapes:
            link.reason = "nothing was asked of the link but to be there"
            return
        if not shape.impairs:
            link.shaper, link.reason = "tbf", "a rate alone needs no more"
        elif keeper.ask({"netem": True})["offered"]:
            link.shaper, link.reason = "netem", "this kernel has it"
        else:
            link.shaper, link.reason = "emulator", "this kernel has no netem (sch_netem)"
            self._emulate()
            return
        keeper.ask({"qdiscs": dataclasses.asdict(shape)})

    def _emulate(self) -> None:
        self._emulator = Asked(
            [*self._network.before("wire"), sys.executable, "-m", "pagefire.scripts.lab.emulator"],
            "the link's emulator",
        )
        self._emulator.hear()
        self._network.keeper.ask({"tuns": True})
        ceiling = self._measure_ceiling(self._emulator)
        if self.shape.rate_bps is None:
            self.shape = dataclasses.replace(self.shape, rate_bps=ceiling.most_bps)
        rate_bps = self.shape.rate_bps or 0
        ceiling.require(rate_bps)
        self.link.emulator = Emulator(ceiling.pps, ceiling.bps, rate_bps, rate_bps / ceiling.bps)
        self.begin_anew()

    def _measure_ceiling(self, emulator: Asked) -> Ceiling:
        before = emulator.ask({"shape": dataclasses.asdict(LinkShape())})
        network = self._network
        try:
            came = transfer(network.before("source"), network.before("dest"), DEST_ADDRESS, _CEILING_S)
        except (subprocess.SubprocessError, ValueError) as error:
            raise PagefireError("the link's emulator carried no TCP transfer", str(error)) from error
        after = emulator.ask({})
        forth_bytes, packets = (
            after["forth"]["left_bytes"] - before["forth"]["left_bytes"],
            sum(after[way]["left"] - before[way]["left"] for way in ("forth", "back")),
        )
        return Ceiling(packets / came.seconds, forth_bytes * 8 / came.seconds)

    def begin_anew(self) -> None:
        """Count from here on, and draw what is lost from the beginning: a run is as seeded, whatever went before."""
        if self._emulator is not None:
            self._emulator.ask({"shape": dataclasses.asdict(self.shape)})
        self._dropped_before = self._network.keeper.ask({"dropped": True})["dropped"]

    def finish(self) -> None:
        """Fill in what the link has done since `begin_anew`."""
        dropped: dict[str, int] = self._network.keeper.ask({"dropped": True})["dropped"]
        since = {name: count - self._dropped_before.get(name, 0) for name, count in dropped.items()}
        if self._emulator is None or self.link.emulator is None:
            self.link.dropped = {name: count for name, count in since.items() if count}
            return
        told, emulator = self._emulator.ask({}), self.link.emulator
        emulator.scheduling = told["scheduling"]
        emulator.cpu_share = told["cpu_s"] / told["seconds"]
        emulator.missed = since.get(TUN_SOURCE, 0) + since.get(TUN_DEST, 0)
        emulator.forth, emulator.back = carried(told["forth"]), carried(told["back"])


def carried(counters: Json) -> Carried:
    """Read an emulator's counters of one direction."""
    left = max(counters["left"], 1)
    same = {field.name for field in dataclasses.fields(Carried)} & counters.keys()
    return Carried(
        **{name: counters[name] for name in same},
        late_mean_us=counters["late_ns"] / left / 1e3,
        late_max_us=counters["latest_ns"] / 1e3,
    )


def asked_of(shape: LinkShape) -> LinkAsked:
    """Say for the report what was asked."""
    return LinkAsked(
        delay_s=shape.delay_s,
        rtt_s=shape.rtt_s,
        jitter_s=shape.jitter_s,
        loss=shape.loss,
        reorder=shape.reorder,
        duplicate=shape.duplicate,
        corrupt=shape.corrupt,
        rate_bps=shape.rate_bps,
        queue_bytes=shape.queue_bytes,
        limit_packets=shape.held_packets if shape.impairs else None,
        seed=shape.seed,
        words=shape.words(),
    )
