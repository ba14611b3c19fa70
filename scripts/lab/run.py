"""A migration in a lab: `run_in_lab` for `pagefire lab`, and `measured_lab` for whoever migrates in his own way, once or often.

One lab at a time on a machine: a second one waits until the first has ended, because two would spoil each other's timings.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.errors import PagefireError
from pagefire.scripts.demo import Place, run_demo
from pagefire.scripts.lab.link_words import link_lines
from pagefire.scripts.lab.measurement import measure_link, require_as_asked
from pagefire.scripts.lab.network import LabNetwork
from pagefire.scripts.lab.plan import DEST_ADDRESS
from pagefire.scripts.lab.shape import LinkShape
from pagefire.scripts.lab.shaper import Shaper, asked_of
from pagefire.source_host.options import MigrationOptions


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab whose link is what was asked. `place`: where its daemons live; `options`: with what its destination is reached."""

    place: Place
    options: MigrationOptions
    _shaper: Shaper

    @contextlib.contextmanager
    def counted(self) -> Iterator[dict[str, Any]]:
        """Count what the link does while this lasts, from the seed's beginning; gives a report's `link`, filled in at its end."""
        told: dict[str, Any] = {}
        self._shaper.begin_anew()
        yield told
        self._shaper.finish()
        told.update(dataclasses.asdict(self._shaper.link))


@contextlib.contextmanager
def measured_lab(shape: LinkShape, options: MigrationOptions, console: Console | None = None) -> Iterator[Lab]:
    """Make a lab, measure its link, and let one or several guests migrate in it; all of it is gone at the end.

    Encrypted with keys of the lab's own, unless the options name a folder of keys or say `insecure`. Raises FeatureMissing without
    root, PagefireError where the link is not what was asked. From the thread that ends last: daemons end with it.
    """
    screen = console if console is not None else Console(quiet=True)

    def waits() -> None:
        screen.print("Another lab runs on this machine: waiting for its end, two would spoil each other's timings.")

    with LabNetwork(shape, waits) as network, Shaper(network, shape) as shaper:
        shaper.link.measured = measure_link(network, shaper.shape)
        for line in link_lines(dataclasses.asdict(shaper.link)):
            screen.print(line, soft_wrap=True)
        # What was not asked is not held against the link: without a rate, the emulator's own is nobody's wish.
        require_as_asked(shape, shaper.link.measured)
        secured, dest_arguments = _secured(options, network.folder, screen)
        source, dest = (tuple(network.before(side)) for side in ("source", "dest"))
        yield Lab(Place(source, dest, DEST_ADDRESS, dest_arguments, network.folder), secured, shaper)


def run_in_lab(
    shape: LinkShape,
    config: GuestConfig,
    options: MigrationOptions,
    warmup_s: float,
    pins: dict[str, str | None],
    console: Console,
) -> dict[str, Any]:
    """Migrate one guest in a lab as a demo does; gives the report, with its `link`.

    `options.to` is the lab's to fill in. `pins` are those of PinningOptions.given(). Raises as `measured_lab` does, and where the
    migration fails, PagefireError.
    """
    with measured_lab(shape, options, console) as lab:
        with lab.counted() as link:
            report = run_demo(config, lab.options, warmup_s, pins, console, lab.place)
        report["link"] = link
    return report


def run_without_root(
    shape: LinkShape,
    config: GuestConfig,
    options: MigrationOptions,
    warmup_s: float,
    pins: dict[str, str | None],
    console: Console,
) -> dict[str, Any]:
    """Migrate over loopback where no namespace can be made, and say so; raises PagefireError where that is not what was asked."""
    if shape.shapes:
        raise PagefireError(
            "no network namespace can be made, so no link can be shaped",
            f"that needs root, and {shape.words()} was asked for",
            "run this as root (sudo), or leave out the options of the link to migrate over loopback",
        )
    reason = "no network namespace can be made without root: plain loopback"
    console.print(f"The link: {reason}.", soft_wrap=True)
    report = run_demo(config, options, warmup_s, pins, console)
    report["link"] = {"asked": dataclasses.asdict(asked_of(shape)), "shaper": "none", "reason": reason, "measured": None,
                      "emulator": None, "dropped": {}}  # fmt: skip
    return report


def _secured(options: MigrationOptions, folder: Path, console: Console) -> tuple[MigrationOptions, tuple[str, ...]]:
    """Give the options and the destination's arguments by which the connections are secured."""
    if options.insecure:
        console.print("Not encrypted and not authenticated (--insecure).")
        return options, ("--insecure",)
    if options.keys is not None:
        return options, ("--keys", options.keys)
    # Late: making keys is not what most who import this do.
    from pagefire.protocol.transport.key_making import make_ca, make_host

    ca = folder / "ca"
    make_ca(ca)
    for side in ("source", "dest"):
        make_host(ca, side, folder / f"keys-{side}")
    console.print("Encrypted (TLS 1.3) with keys made for this lab; --insecure leaves that out.")
    secured = dataclasses.replace(options, keys=str(folder / "keys-source"))
    return secured, ("--keys", str(folder / "keys-dest"))
