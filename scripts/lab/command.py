"""`pagefire lab`: its options, and the command."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.errors import UsageError
from pagefire.protocol.units import parse_duration
from pagefire.scripts import options as o
from pagefire.scripts.delivering import SCREEN, deliver, require_writable
from pagefire.scripts.lab.shape import LinkShape, shape_of
from pagefire.scripts.move_options import MoveOptions
from pagefire.scripts.option_groups import takes_groups
from pagefire.scripts.security_options import SecurityOptions
from pagefire.source_host.options import MigrationOptions

_PANEL, _MACHINES = "Link", "Two machines"


@dataclass(frozen=True)
class LinkOptions:
    """What describes a link."""

    delay: Annotated[
        str | None,
        typer.Option("--delay", help="One way, and the same back: 25ms is an RTT of 50.", rich_help_panel=_PANEL),
    ] = None
    jitter: Annotated[
        str | None,
        typer.Option(
            "--jitter",
            help="What the delay varies by, either way; packets overtake each other.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    loss: Annotated[
        str | None, typer.Option("--loss", help="Packets lost, in each direction: 0.1%.", rich_help_panel=_PANEL)
    ] = None
    link_rate: Annotated[
        str | None,
        typer.Option("--link-rate", help="Of each direction, as tc writes it: 200mbit, 1gbit.", rich_help_panel=_PANEL),
    ] = None
    reorder: Annotated[
        str | None,
        typer.Option("--reorder", help="Packets that are not delayed, and so overtake: 1%.", rich_help_panel=_PANEL),
    ] = None
    netem: Annotated[
        str | None,
        typer.Option(
            "--netem", help="All of it in tc's grammar: 'delay 25ms loss 0.1% limit 100000'.", rich_help_panel=_PANEL
        ),
    ] = None
    link_seed: Annotated[
        int,
        typer.Option("--link-seed", help="Seed of what is lost, delayed and reordered.", min=0, rich_help_panel=_PANEL),
    ] = 1

    def shape(self) -> LinkShape:
        """Parse it; raises UsageError."""
        return shape_of(self.delay, self.jitter, self.loss, self.link_rate, self.reorder, self.netem, self.link_seed)


def add_lab(app: typer.Typer) -> None:
    """Give the command line its command `lab`."""

    @app.command()
    @takes_groups
    def lab(
        link: LinkOptions,
        guest: o.GuestOptions,
        move: MoveOptions,
        tracing: o.TracingOptions,
        security: SecurityOptions,
        pinning: o.PinningOptions,
        warmup: Annotated[str, typer.Option("--warmup", help="How long the guest runs before it migrates.")] = "2s",
        print_commands: Annotated[
            bool,
            typer.Option(
                "--print-commands",
                help="Print the ip, ethtool and tc lines that make this network by hand, and do nothing.",
                rich_help_panel=_PANEL,
            ),
        ] = False,
        interface: Annotated[
            str | None,
            typer.Option(
                "--interface",
                help="With --print-commands: the lines for one of two real machines, which receives on this interface.",
                rich_help_panel=_PANEL,
            ),
        ] = None,
        peer: Annotated[
            str | None,
            typer.Option("--peer", help="With --interface: the other machine's address.", rich_help_panel=_PANEL),
        ] = None,
        source_host: Annotated[
            str | None,
            typer.Option(
                "--source-host", help="A real machine, by ssh, instead of a namespace.", rich_help_panel=_MACHINES
            ),
        ] = None,
        dest_host: Annotated[
            str | None, typer.Option("--dest-host", help="The other one.", rich_help_panel=_MACHINES)
        ] = None,
        ssh: Annotated[
            str, typer.Option("--ssh", help="How ssh is called: 'ssh -F FILE'.", rich_help_panel=_MACHINES)
        ] = "ssh",
        json_file: o.JsonFile = None,
        report_dir: o.ReportDir = None,
    ) -> None:
        """Migrate a guest between two network namespaces of this machine, over a link that is as slow, far and lossy as asked."""
        from pagefire.scripts.lab.plan import command_lines, lines_for_a_machine
        from pagefire.scripts.report_folder import default_folder

        shape = link.shape()
        if (interface is None) != (peer is None) or (interface is not None and not print_commands):
            raise UsageError(
                "--interface, --peer and --print-commands go together",
                "they ask for the lines of a real machine",
                "give all three",
            )
        if print_commands:
            lines = command_lines(shape) if interface is None else lines_for_a_machine(shape, interface, peer or "")
            print("\n".join(lines))
            return
        from pagefire.scripts.lab.run import run_in_lab, run_without_root

        require_writable(json_file)
        config, pins = guest.config(), pinning.given()
        chosen = dataclasses.replace(move.migration("", tracing), **security.given())
        tracing.require_possible_for(config.backing)
        warmup_s = parse_duration(warmup)
        if source_host is not None or dest_host is not None:
            report = _on_machines(source_host, dest_host, ssh, shape, config, chosen, warmup_s, SCREEN)
        else:
            run = run_in_lab if os.geteuid() == 0 else run_without_root
            report = run(shape, config, chosen, warmup_s, pins, SCREEN)
        deliver(report, json_file, report_dir or default_folder(datetime.now()))


def _on_machines(
    source_host: str | None,
    dest_host: str | None,
    ssh: str,
    shape: LinkShape,
    config: GuestConfig,
    options: MigrationOptions,
    warmup_s: float,
    screen: Console,
) -> dict[str, Any]:
    from pagefire.scripts.lab.machines import Machine, Machines, run_on_machines

    if source_host is None or dest_host is None:
        raise UsageError(
            "one machine is named", "a guest moves from one to another", "give --source-host and --dest-host"
        )
    words = tuple(shlex.split(ssh))
    machines = Machines(Machine(words, source_host), Machine(words, dest_host))
    return run_on_machines(shape, config, options, warmup_s, machines, screen)
