"""The options of `pagefire compare`: the guests, the links, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pagefire.protocol.errors import UsageError
from pagefire.protocol.units import parse_duration, parse_share
from pagefire.scripts import options as o
from pagefire.scripts.compare import Case, Times
from pagefire.scripts.profiles import ABLATION, VSPHERE
from pagefire.scripts.shaped_link import parse_link_rate

GUESTS = ("resident", "sparse")


@dataclass(frozen=True)
class CompareOptions:
    """A resident guest for the trace phase, a sparse one behind a shaped link for the bitmap."""

    guests: Annotated[str, typer.Option("--guests", help="resident (loopback), sparse (shaped link).")] = (
        "resident,sparse"
    )
    repetitions: Annotated[int, typer.Option("--repetitions", help="Runs of each profile, in turn.")] = 3
    backing: Annotated[
        str, typer.Option("--backing", help="thp (2 MiB pages), or 4k: granularity is 4K in every profile then.")
    ] = "thp"
    memory: Annotated[str, typer.Option("--memory", help="The resident guest's memory.")] = "1GiB"
    vcpus: Annotated[int, typer.Option("--vcpus", help="The resident guest's vCPUs.")] = 4
    working_set: Annotated[str, typer.Option("--working-set", help="What it writes: size or percentage.")] = "25%"
    rate: Annotated[
        str, typer.Option("--rate", help="Share of its unpaced rate that it does: 50%; 100% does not pace it.")
    ] = "50%"
    ablation: Annotated[
        bool, typer.Option("--ablation/--no-ablation", help="Each enhancement alone, and all but one, as well.")
    ] = True
    sparse: Annotated[str, typer.Option("--sparse", help="The sparse guest's memory.")] = "6TiB"
    resident: Annotated[str, typer.Option("--resident", help="How much of that has contents.")] = "256MiB"
    sparse_vcpus: Annotated[int, typer.Option("--sparse-vcpus", help="The sparse guest's vCPUs.")] = 16
    sparse_rate: Annotated[
        str, typer.Option("--sparse-rate", help="Its transactions per second, of all vCPUs together.")
    ] = "8k/s"
    link_rate: Annotated[
        str, typer.Option("--link-rate", help="Rates of the shaped link, by commas: 1gbit,10gbit.")
    ] = "1gbit,10gbit"
    warmup: Annotated[str, typer.Option("--warmup", help="How long a guest runs before it migrates.")] = "2s"
    settle: Annotated[str, typer.Option("--settle", help="How long it is watched at the destination.")] = "2s"
    seed: Annotated[int, typer.Option("--seed", help="Seed of the workload and of the memory's contents.")] = 1

    def cases(self) -> list[Case]:
        """Give the cases, in the order in which they run; raises UsageError before anything is started."""
        asked = [part.strip() for part in self.guests.split(",")]
        for one in asked:
            o.one_of("--guests", one, GUESTS)
        o.one_of("--backing", self.backing, ("4k", "thp"))
        if self.repetitions < 1:
            raise UsageError(f"{self.repetitions} repetitions measure nothing", "", "ask for --repetitions 1 or more")
        share = parse_share(self.rate)
        resident = Case(
            "resident",
            o.GuestOptions(
                memory=self.memory,
                vcpus=self.vcpus,
                working_set=self.working_set,
                backing=self.backing,
                seed=self.seed,
            ).config(),
            (*VSPHERE, *ABLATION) if self.ablation else VSPHERE,
            share if share < 1 else None,
        )
        sparse = o.GuestOptions(
            memory=self.sparse,
            resident=self.resident,
            vcpus=self.sparse_vcpus,
            rate=self.sparse_rate,
            backing=self.backing,
            seed=self.seed,
        ).config()
        behind = [
            Case(f"sparse, {one.strip()}", sparse, VSPHERE, link_bps=parse_link_rate(one))
            for one in self.link_rate.split(",")
        ]
        return [
            case for name, cases in (("resident", [resident]), ("sparse", behind)) if name in asked for case in cases
        ]

    def times(self) -> Times:
        """Parse the windows; raises UsageError."""
        return Times(warmup_s=parse_duration(self.warmup), settle_s=parse_duration(self.settle))
