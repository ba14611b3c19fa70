"""What a person reads of a link, and the lines that make one by hand."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.link_report import Emulator, LinkMeasured
from pagefire.scripts.cli import app
from pagefire.scripts.lab.link_words import link_lines, link_rows
from pagefire.scripts.lab.plan import buffer_bytes, command_lines, lines_for_a_machine
from pagefire.scripts.lab.run import run_without_root
from pagefire.scripts.lab.shape import LinkShape
from pagefire.scripts.lab.shaper import Ceiling, Link, asked_of, carried
from pagefire.source_host.options import MigrationOptions

SHAPE = LinkShape(delay_s=0.025, loss=0.001, rate_bps=200_000_000)
COUNTERS = {
    "came": 90_000, "lost": 88, "queue_full": 12, "duplicated": 0, "corrupted": 0, "reordered": 0, "left": 89_900,
    "left_bytes": 100, "refused": 0, "late_ns": 89_900 * 3000, "latest_ns": 90_000,
}  # fmt: skip


def test_a_link_in_words() -> None:
    measured = LinkMeasured(0.0501, 199.4e6, 0.00107, [0.00075, 0.0015], 30_000, 1, 120e6)
    emulator = Emulator(120_000, 1e9, 200_000_000, 0.2, "fifo", 0.31, 0, carried(COUNTERS))
    link = dataclasses.asdict(Link(asked_of(SHAPE), "emulator", "no netem", measured, emulator))
    assert list(link_lines(link)) == [
        "The link: 25 ms each way (50 ms RTT), 0.1% loss, 200 mbit/s, a queue of 1.19 MiB.",
        "  shaped by emulator: no netem; it carries 1 gbit/s (120,000 packets/s) at most here, 20% of which are used; "
        "it took 31% of a CPU",
        "  measured: RTT 50.1 ms, UDP 199.4 mbit/s, TCP 120 mbit/s, loss 0.107% (95%: 0.075% to 0.150%, of 30,000 packets)",
    ]
    rows = dict(link_rows(link))
    assert rows["link carried"] == "90,000 packets there (88 lost, 12 dropped by a full queue)"
    assert (link["emulator"]["forth"]["late_mean_us"], link["emulator"]["forth"]["late_max_us"]) == (3.0, 90.0)


def test_what_was_not_measured_is_said() -> None:
    link = dataclasses.asdict(Link(asked_of(LinkShape()), measured=LinkMeasured(), dropped={"tbf 2": 5}))
    rows = dict(link_rows(link))
    assert rows["link"] == "nothing is shaped"
    assert rows["link measured"] == "RTT not measured, UDP not measured, TCP not measured"
    assert rows["link dropped"] == "5 by tbf 2"
    assert link_rows(None) == []


def test_a_ceiling_refuses_what_is_above_70_percent_of_it() -> None:
    ceiling = Ceiling(100_000, 1e9)
    ceiling.require(700_000_000)
    with pytest.raises(PagefireError, match="a link of 701 mbit/s cannot be emulated here") as refused:
        ceiling.require(701_000_000)
    assert refused.value.do.startswith("ask for --link-rate 700mbit or less")


def test_a_shape_without_root_is_an_error_that_says_what_to_do() -> None:
    config, options = GuestConfig("g", 1 << 26, 1 << 26, 1 << 24, 1, "idle", 1), MigrationOptions("")
    with pytest.raises(PagefireError, match="that needs root, and 25 ms each way") as refused:
        run_without_root(SHAPE, config, options, 0.1, {}, Console(quiet=True))
    assert "run this as root" in refused.value.do


def test_the_lines_by_hand_shape_both_directions_on_the_wire() -> None:
    lines = list(command_lines(SHAPE))
    tc = [line for line in lines if line.startswith("tc ")]
    assert [line.split(" dev ")[1].split()[0] for line in tc] == ["to-source", "to-source", "to-dest", "to-dest"]
    assert all(line.startswith("tc -n pf-wire qdisc add ") for line in tc)
    assert "loss 0.1%" in tc[0]
    assert "rate 200000000bit" in tc[1]
    assert sum("tso off gso off gro off" in line for line in lines) == 4


def test_a_real_machine_shapes_what_it_receives() -> None:
    lines = list(lines_for_a_machine(SHAPE, "eth0", "192.0.2.7"))
    at = lines.index("# afterwards:")
    assert [line.split(" limit ")[0] for line in lines[3:5]] == [
        "tc qdisc add dev pf-ifb0 root handle 1: netem",
        "tc qdisc add dev pf-ifb0 parent 1:1 handle 2: tbf rate 200000000bit burst 25000",
    ]
    assert "match ip src 192.0.2.7/32" in lines[at - 1]
    # What was added is removed: the ingress qdisc takes the filter along, the device its own qdiscs.
    assert len(lines[at + 1 :]) == 3


def test_the_command_prints_them_and_does_nothing() -> None:
    lab = ["lab", "--delay", "25ms", "--loss", "0.1%", "--link-rate", "200mbit", "--print-commands"]
    assert CliRunner().invoke(app, lab).stdout.splitlines() == list(command_lines(SHAPE))
    machine = ["--interface", "eth0", "--peer", "192.0.2.7"]
    assert CliRunner().invoke(app, [*lab, *machine]).stdout.splitlines() == list(
        lines_for_a_machine(SHAPE, "eth0", "192.0.2.7")
    )
    refused = CliRunner().invoke(app, [*lab, "--peer", "192.0.2.7"])
    assert "--interface, --peer and --print-commands go together" in str(refused.exception)


def test_buffers_do_not_bound_a_long_link() -> None:
    assert buffer_bytes(LinkShape(delay_s=0.075, rate_bps=200_000_000)) >= 2 * 2 * 200e6 / 8 * 0.15
    assert buffer_bytes(LinkShape()) == 0
