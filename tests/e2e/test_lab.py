"""`pagefire lab`: two hosts and a wire in namespaces of their own, a link that is measured, a guest that crosses it, nothing left.

What needs netem is skipped by that name where the kernel has none; the emulator takes its place there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pagefire.protocol.errors import PagefireError
from pagefire.scripts.lab.inhabitants import note, undo_what_is_left
from pagefire.scripts.lab.keeper import LOCK
from pagefire.scripts.lab.measurement import measure_link, require_as_asked
from pagefire.scripts.lab.network import LabNetwork
from pagefire.scripts.lab.plan import (
    DEST_ADDRESS,
    HOST_INTERFACE,
    SOURCE_ADDRESS,
    WIRE_TO_DEST,
    WIRE_TO_SOURCE,
    command_lines,
    lines_for_a_machine,
)
from pagefire.scripts.lab.shape import LinkShape, parse_netem
from pagefire.scripts.lab.shaper import Shaper
from tests.e2e.host_pair import Json, assert_verified, finish, run, start, until
from tests.e2e.place import Place
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.root]

SMALL = ("--memory", "64MiB", "--warmup", "300ms", "--settle", "200ms")


@pytest.fixture(autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces are missing: they need root")


def netem_is_here() -> bool:
    with LabNetwork(LinkShape()) as network:
        return bool(network.keeper.ask({"netem": True})["offered"])


def said_by(network: LabNetwork, side: str, *command: str) -> str:
    """Run a command on a side; gives what it said."""
    ended = subprocess.run([*network.before(side), *command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.alone
def test_a_guest_crosses_a_link_that_is_as_asked(place: Place, tmp_path: Path) -> None:
    """Delay, loss and rate, in the kernel or emulated: measured before, told in the report, and the guest is what it was."""
    before = set(os.listdir("/sys/class/net"))
    link = ("--delay", "5ms", "--loss", "0.5%", "--link-rate", "200mbit")
    code, out, err = run(
        "lab",
        *link,
        *SMALL,
        "--rate",
        "3000/s",
        "--working-set",
        "8MiB",
        "--json",
        "-",
        "--report",
        str(tmp_path / "report"),
    )
    assert code == 0, err
    report = json.loads(out)
    assert_verified(report)
    assert_link_is_told(report["link"])
    assert "5 ms each way (10 ms RTT)" in err
    assert "Encrypted (TLS 1.3) with keys made for this lab" in err
    assert "5 ms each way (10 ms RTT)" in (tmp_path / "report" / "summary.txt").read_text()
    # What the hosts saw of it: the round trip by the kernel's own figures, and segments that had to go again.
    pages = next(one for one in report["tcp"] if one["role"] == "pages")
    assert pages["rtt_s"] > 0.0095
    assert pages["congestion"]
    assert pages["retransmits"] > 0
    assert report["destination"].startswith("10.213.9.6:")
    assert set(os.listdir("/sys/class/net")) == before
    place.assert_nothing_left()


def assert_link_is_told(link: Json) -> None:
    assert link["asked"]["rtt_s"] == 0.01
    measured = link["measured"]
    assert abs(measured["rtt_s"] - 0.01) < 0.0016
    assert abs(measured["rate_bps"] - 200e6) < 20e6
    low, high = measured["loss_interval"]
    assert low <= 0.005 <= high
    assert 0 < measured["tcp_goodput_bps"] < 200e6
    assert link["shaper"] in ("emulator", "netem")
    if link["shaper"] == "emulator":
        emulator = link["emulator"]
        assert "no netem" in link["reason"]
        assert emulator["share_of_ceiling"] == pytest.approx(200e6 / emulator["ceiling_bps"])
        assert 0 < emulator["cpu_share"] < 1
        assert emulator["missed"] == 0
        # 64 MiB of a random guest are some 45,000 packets, and half a percent of them is lost.
        assert emulator["forth"]["came"] > 40_000
        assert 0.003 < emulator["forth"]["lost"] / emulator["forth"]["came"] < 0.007


@pytest.mark.parametrize("alone", [True, *soaked(False)], ids=["the command", "the command and its keeper"])
def test_whoever_is_killed_leaves_nothing(alone: bool, place: Place) -> None:
    """The command dies by SIGKILL while its daemons run: keeper, namespaces, daemons, guest and folder are gone.

    Where the keeper dies with it the kernel asks the daemons to end, and the folder is there until the next lab.
    """
    with start("lab", *SMALL, "--warmup", "60s", "--insecure") as command:
        until(lambda: len(place.processes("guest_workload")) > 0, "there is no guest", patience_s=40.0)
        (keeper,) = place.processes("lab.keeper")
        assert {len(place.processes(words)) for words in ("scripts.cli dest", "scripts.cli source")} == {1}
        command.kill()
        if not alone:
            keeper.kill()
        finish(command)
    if not alone:
        until(lambda: not place.processes(), "a daemon outlives its lab")
        with LabNetwork(LinkShape()):
            pass
    place.assert_nothing_left()


@pytest.mark.soak
def test_ctrl_c_ends_a_lab(place: Place) -> None:
    with start("lab", *SMALL) as command:
        until(lambda: len(place.processes("lab.probe")) > 0, "nothing is measured", patience_s=40.0)
        command.send_signal(signal.SIGINT)
        code, _, err = finish(command)
    assert (code, "interrupted" in err) == (3, True)
    place.assert_nothing_left()


class GivesUpError(Exception):
    """Whoever waits for another lab does not want one any more."""


def test_one_lab_at_a_time(place: Place) -> None:
    """A second one waits, says so, and does not keep whoever gives up; when the first has ended there is no waiting."""

    def gives_up() -> None:
        raise GivesUpError

    with (
        LabNetwork(LinkShape()),
        pytest.raises(GivesUpError),
        LabNetwork(LinkShape(), gives_up),
    ):
        pytest.fail("two labs at once")
    with LabNetwork(LinkShape(), gives_up):
        pass
    place.assert_nothing_left()


@contextlib.contextmanager
def shaped(shape: LinkShape) -> Iterator[tuple[LabNetwork, Shaper]]:
    with LabNetwork(shape) as network, Shaper(network, shape) as shaper:
        yield network, shaper


@pytest.mark.soak
def test_a_rate_above_what_the_emulator_carries_is_refused(place: Place) -> None:
    if netem_is_here():
        pytest.skip("netem is here: nothing is emulated")
    with (
        pytest.raises(PagefireError, match=r"a link of 400 gbit/s cannot be emulated here.*70% of that") as refused,
        shaped(LinkShape(delay_s=0.001, rate_bps=400_000_000_000)),
    ):
        pytest.fail("it was not refused")
    assert "ask for --link-rate" in refused.value.do
    place.assert_nothing_left()


@pytest.mark.soak
def test_the_emulator_does_what_netem_does_beside_delay_and_loss(place: Place) -> None:
    """Jitter and reordering seen from outside; a link that was asked to be another is refused with both figures."""
    if netem_is_here():
        pytest.skip("netem is here: nothing is emulated")
    shape = parse_netem("delay 20ms 5ms reorder 10% rate 20mbit")
    with shaped(shape) as (network, shaper):
        measured = measure_link(network, shape)
        require_as_asked(shape, measured)
        shaper.finish()
        other = dataclasses.replace(shape, delay_s=0.03, rate_bps=30_000_000, loss=0.05)
        with pytest.raises(
            PagefireError, match=r"60 ms was asked for, .*30 mbit/s was asked for, .*5.0000% was asked for"
        ):
            require_as_asked(other, measured)
        emulator = shaper.link.emulator
        assert emulator is not None
        assert emulator.forth is not None
        assert emulator.forth.reordered / emulator.forth.came == pytest.approx(0.1, abs=0.02)
        assert emulator.forth.queue_full > 0
    place.assert_nothing_left()


def test_a_rate_alone_is_the_kernels_and_by_hand_it_is_the_same(place: Place) -> None:
    """The lines of --print-commands, run by a shell, make the interfaces, routes and qdiscs that the lab makes by netlink."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no `{tool}` command (iproute2)")
    shape = LinkShape(rate_bps=50_000_000)
    with shaped(shape) as (network, shaper):
        assert shaper.link.shaper == "tbf"
        show = ("tc", "-j", "qdisc", "show", "dev")
        ours = [json.loads(said_by(network, "wire", *show, dev)) for dev in (WIRE_TO_SOURCE, WIRE_TO_DEST)]
    lines = [line.replace("pf-", f"pf{os.getpid()}-") for line in command_lines(shape) if "ethtool" not in line]
    names = [line.split()[-1] for line in lines if line.startswith("ip netns add")]
    try:
        for line in lines:
            subprocess.run(line.split(), check=True, capture_output=True)
        show_there = ("tc", "-n", names[1], *show[1:])
        by_hand = [json.loads(_output(*show_there, dev)) for dev in (WIRE_TO_SOURCE, WIRE_TO_DEST)]
        (route,) = json.loads(_output("ip", "-n", names[0], "-j", "route", "get", DEST_ADDRESS))
        assert (route["gateway"], route["dev"]) == ("10.213.9.1", HOST_INTERFACE)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    assert by_hand == ours
    assert ours[0][0]["kind"] == "tbf"
    place.assert_nothing_left()


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.soak
def test_the_lines_for_two_real_machines_shape_what_is_received(place: Place) -> None:
    """Both hosts of an unshaped lab stand for the machines; a rate, because that is what every kernel shapes."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no `{tool}` command (iproute2)")
    shape = LinkShape(rate_bps=20_000_000)
    with LabNetwork(shape) as network:
        for side, peer in (("source", DEST_ADDRESS), ("dest", SOURCE_ADDRESS)):
            ethtool = f"{sys.executable} -m pagefire.scripts.lab.offload"
            lines = list(lines_for_a_machine(shape, HOST_INTERFACE, peer, ethtool))
            at = lines.index("# afterwards:")
            for line in lines[:at]:
                said_by(network, side, *line.split())
        require_as_asked(shape, measure_link(network, shape))
        for line in lines[at + 1 :]:
            said_by(network, "dest", *line.split())
        (left,) = json.loads(said_by(network, "dest", "tc", "-j", "qdisc", "show", "dev", HOST_INTERFACE))
        assert left["kind"] == "noqueue"
    place.assert_nothing_left()


def test_netem_shapes_where_the_kernel_has_it(place: Place) -> None:
    if not netem_is_here():
        pytest.skip("sch_netem is missing in this kernel: its requests are tested by their bytes only")
    shape = LinkShape(delay_s=0.01, loss=0.01, rate_bps=50_000_000)
    with shaped(shape) as (network, shaper):
        assert shaper.link.shaper == "netem"
        require_as_asked(shape, measure_link(network, shape))
    place.assert_nothing_left()


def test_the_host_keeps_no_process_of_a_lab(place: Place) -> None:
    """The keeper ends with its lab, and takes what was left running in its namespaces along."""
    with LabNetwork(LinkShape()) as network:
        left = lives_in(network)
    assert left.wait(10) == -signal.SIGKILL
    place.assert_nothing_left()


def test_what_a_killed_keeper_leaves_the_next_one_undoes(place: Place) -> None:
    with LabNetwork(LinkShape()) as network:
        left = lives_in(network)
        os.kill(network.keeper.pid, signal.SIGKILL)
        with pytest.raises(PagefireError, match="the lab's keeper has ended"):
            network.keeper.ask({"dropped": True})
    assert left.poll() is None
    with LabNetwork(LinkShape()):
        assert left.wait(10) == -signal.SIGKILL
    assert LOCK.read_text() == ""
    place.assert_nothing_left()


def test_a_namespace_that_is_no_labs_any_more_is_left_alone(place: Place, tmp_path: Path) -> None:
    """Its number may have been given out again since it was written down. A lab's folder goes, and no other."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` command (util-linux)")
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as other:
        until(lambda: psutil.Process(other.pid).name() == "sleep", "it did not begin")
        number = os.stat(f"/proc/{other.pid}/ns/net").st_ino
        assert number != os.stat("/proc/self/ns/net").st_ino
        for name, goes in (("pagefire-lab-x", True), ("somebody's", False)):
            folder = tmp_path / name
            folder.mkdir()
            with (tmp_path / "lock").open("a+") as lock:
                note(lock, [number], str(folder))
                undo_what_is_left(lock)
            assert folder.exists() != goes
        assert other.poll() is None
        other.kill()
    assert (tmp_path / "lock").read_text() == ""
    place.assert_nothing_left()


def lives_in(network: LabNetwork) -> subprocess.Popen[bytes]:
    """Start what does not end by itself at the destination."""
    left = subprocess.Popen([*network.before("dest"), "sleep", "600"], start_new_session=True)
    until(lambda: psutil.Process(left.pid).name() == "sleep", "it did not begin")
    return left
