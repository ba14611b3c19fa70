"""The options of `pagefire trace`: lists, every combination of which is tried."""

from __future__ import annotations

import dataclasses
import itertools
import os
from dataclasses import dataclass
from typing import Annotated

import typer

from pagefire.guest_workload.guest_config import Backing
from pagefire.protocol.errors import UsageError
from pagefire.protocol.units import parse_duration, parse_share
from pagefire.scripts import options as o
from pagefire.scripts.shaped_link import parse_link_rate
from pagefire.scripts.trace import Shape, shapes_of, ways_to_install
from pagefire.source_host.trace_install import InstallOptions
from pagefire.source_host.trace_trial import TrialTimes
from pagefire.source_host.tracker_choice import granularity_of
from pagefire.source_host.tracking import Granularity


@dataclass(frozen=True)
class TrialOptions:
    """Guests, ways to install, and how long to look."""

    memory: Annotated[str, typer.Option("--memory", help="Guest memory.")] = "1GiB"
    resident: Annotated[str | None, typer.Option("--resident", help="How much of it has contents.")] = None
    vcpus: Annotated[str, typer.Option("--vcpus", help="Numbers of vCPUs: 1,2,4.")] = "2"
    workload: Annotated[str, typer.Option("--workload", help="What the guest does.")] = "random"
    touched: Annotated[
        str, typer.Option("--touched", help="Shares of the resident memory that it writes: 10%,30%.")
    ] = "10%"
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", help="Shares of the unpaced rate that the guest does: 10%,50%,100% \\[default: unpaced]."
        ),
    ] = None
    backing: Annotated[str, typer.Option("--backing", help="4k, thp, hugetlb.")] = "4k"
    install: Annotated[str, typer.Option("--install", help="stop, loose, rolling.")] = "stop,loose"
    tracer: Annotated[str, typer.Option("--tracer", help="Who does a loose install: vcpu, host.")] = "vcpu,host"
    granularity: Annotated[str, typer.Option("--granularity", help="4K, 2M, auto.")] = "4K"
    install_step: Annotated[str, typer.Option("--install-step", help="2M, 1G, all.")] = "2M"
    install_loss: o.InstallLoss = "3%"
    tracker: Annotated[str, typer.Option("--tracker", help="auto, pagemap-scan or page-fire.")] = "auto"
    repetitions: Annotated[int, typer.Option("--repetitions", help="Trials of each combination.")] = 3
    before: Annotated[str, typer.Option("--before", help="How long the guest runs untraced before each trial.")] = "1s"
    traced: Annotated[str, typer.Option("--traced", help="How long it runs traced.")] = "2s"
    period: Annotated[str, typer.Option("--period", help="From one collection of dirty pages to the next.")] = "500ms"
    after: Annotated[str, typer.Option("--after", help="How long it is watched afterwards.")] = "1s"
    seed: Annotated[int, typer.Option("--seed", help="Seed of the workload and of the memory's contents.")] = 1
    link_rate: Annotated[
        str,
        typer.Option(
            "--link-rate",
            help="What pages to send again are counted at, and how fast a rolling install goes; nothing is sent.",
        ),
    ] = "10gbit"
    cpus_source: o.CpusSource = None
    cpus_guest: o.CpusGuest = None

    def pin(self) -> None:
        """Pin this process, which is the tracing daemon here."""
        if cpus := o.cpus(self.cpus_source):
            os.sched_setaffinity(0, cpus)

    def shapes(self) -> list[Shape]:
        """Give the guests; raises UsageError before any is started."""
        counts = _list("--vcpus", self.vcpus)
        if not all(count.isdigit() for count in counts):
            raise UsageError(f"--vcpus {self.vcpus!r} is no list of numbers", "", "write --vcpus 1,2,4")
        base = o.GuestOptions(
            memory=self.memory, resident=self.resident, vcpus=1, workload=self.workload, seed=self.seed
        ).config()
        shapes = shapes_of(
            dataclasses.replace(base, cpus=o.guest_cpus(self.cpus_guest, self.cpus_source) or None),
            [int(count) for count in counts],
            [parse_share(share) for share in _list("--touched", self.touched)],
            self._backings(),
            [None]
            if self.rate is None
            else [share if share < 1 else None for share in map(parse_share, _list("--rate", self.rate))],
        )
        return list(shapes)

    def _backings(self) -> list[str]:
        backings = _list("--backing", self.backing)
        for one in backings:
            o.one_of("--backing", one, o.BACKINGS)
        return backings

    def ways(self) -> list[InstallOptions]:
        """Give the ways to install; raises UsageError."""
        lists = [
            _list("--install", self.install),
            _list("--tracer", self.tracer),
            _list("--granularity", self.granularity),
        ]
        steps = _list("--install-step", self.install_step)
        known = (o.INSTALLS, o.TRACERS, o.GRANULARITIES)
        for option, given, all_known in zip(("--install", "--tracer", "--granularity"), lists, known, strict=True):
            for one in given:
                o.one_of(option, one, all_known)
        for one in steps:
            o.one_of("--install-step", one, tuple(o.STEPS))
        o.one_of("--tracker", self.tracker, o.TRACKERS)
        for backing, granularity in itertools.product(self._backings(), lists[2]):
            granularity_of(Backing(backing), self.tracker, Granularity(granularity))
        if self.repetitions < 1:
            raise UsageError(f"{self.repetitions} repetitions measure nothing", "", "ask for --repetitions 1 or more")
        return ways_to_install(lists[0], lists[1], lists[2], [o.STEPS[one] for one in steps], o.loss(self.install_loss))

    @property
    def link_bps(self) -> float:
        """Parse the link's rate; raises UsageError."""
        return parse_link_rate(self.link_rate)

    def times(self) -> TrialTimes:
        """Parse the windows; raises UsageError."""
        return TrialTimes(
            before_s=parse_duration(self.before),
            traced_s=parse_duration(self.traced),
            after_s=parse_duration(self.after),
            period_s=parse_duration(self.period),
        )


def _list(option: str, given: str) -> list[str]:
    parts = [part.strip() for part in given.split(",")]
    if not all(parts):
        raise UsageError(f"{option} {given!r} has an empty entry", "", "separate what you ask for by single commas")
    return parts
