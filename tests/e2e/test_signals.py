"""Ctrl-C and SIGTERM: before the commit point they cancel and the guest is safe; after it whoever holds pages finishes first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import psutil
import pytest

from pagefire.scripts.daemons import DaemonProcess
from tests.e2e.host_pair import HostPair, assert_verified, finish, guest_arguments, run, start, until
from tests.e2e.place import Place

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

#: Each point of the script before the commit point, with the signals taken in turn.
BEFORE = [
    ("traced", signal.SIGINT),
    ("round", signal.SIGTERM),
    ("pausing", signal.SIGINT),
    ("ready", signal.SIGTERM),
]
GUEST = guest_arguments(vcpus=1)


def said(daemon: DaemonProcess) -> str:
    return daemon.log_path.read_text()


# -- before the commit point -------------------------------------------------------------------------------------------------


def test_a_signal_to_the_command_cancels_and_the_guest_can_migrate_later(place: Place) -> None:
    with HostPair(GUEST) as pair:
        for point, number in (("traced", signal.SIGINT), ("ready", signal.SIGTERM)):
            with pair.guest_unharmed(), pair.held_at(point) as stands, pair.migrating() as migration:
                stands()
                migration.send_signal(number)
                code, out, err = finish(migration)
            assert code == 3, (point, err)
            assert out == ""
            assert "the migration was cancelled: the guest runs on here" in err
            assert "Traceback" not in err
        assert pair.on_source("guest")["status"] == "cancelled"
        assert_verified(pair.migrate())
    place.assert_nothing_left()


def test_cancel_from_another_terminal(place: Place) -> None:
    with HostPair(GUEST) as pair:
        with pair.guest_unharmed():
            code, _, err = run("cancel", "--runtime-dir", str(pair.directory))
            assert (code, "is not migrating" in err) == (1, True)
            with pair.held_at("round") as stands, pair.migrating() as migration:
                stands()
                code, _, err = run("cancel", "--runtime-dir", str(pair.directory))
                assert (code, "the guest runs on at the source" in err) == (0, True)
                assert finish(migration)[0] == 3
        with pair.held_at("resumed") as stands, pair.migrating("--mode", "postcopy") as migration:
            stands()
            code, _, err = run("cancel", "--runtime-dir", str(pair.directory))
            assert code == 1
            assert re.search(r"too late to cancel: guest guest0 runs at 127\S+, [1-9]\d* pages are left to move", err)
            pair.release("resumed")
            assert finish(migration)[0] == 0
    place.assert_nothing_left()


@pytest.mark.parametrize(("point", "number"), BEFORE)
def test_a_signal_to_the_source_daemon_cancels(point: str, number: signal.Signals, place: Place) -> None:
    with HostPair(GUEST) as pair:
        with pair.held_at(point) as stands, pair.migrating() as migration:
            stands()
            pair.source.process.send_signal(number)
            code, _, err = finish(migration)
        assert code == 3, err
        assert pair.source.process.wait(30.0) == 0
        assert not place.processes("guest_workload")
        pair.nothing_at_destination()
    place.assert_nothing_left()


@pytest.mark.parametrize(("point", "number"), BEFORE)
def test_a_signal_to_the_destination_daemon_cancels(point: str, number: signal.Signals, place: Place) -> None:
    with HostPair(GUEST) as pair:
        with pair.held_at(point) as stands, pair.migrating() as migration:
            stands()
            before = pair.source_commits()
            pair.dest.process.send_signal(number)
            assert pair.dest.process.wait(30.0) == 0
            pair.release(point)
            code, _, err = finish(migration)
        assert code == 3, err
        assert "the destination is shutting down" in err
        status = pair.on_source("guest")
        assert (status["owner"], status["running"]) == (True, True)
        until(lambda: pair.source_commits() > before, "the guest does not run on")
        assert len(place.processes("guest_workload")) == 1
        assert not pair.traces_of_tracking()
    place.assert_nothing_left()


@pytest.mark.parametrize("role", ["source", "dest"])
def test_a_signal_while_a_guest_is_being_made_leaves_nothing(role: str, place: Place) -> None:
    """The guest's process is there, its daemon waits for it: whoever is told to end then ends both."""
    if role == "source":
        daemon = start("source", "--memory", "1GiB")
        until(lambda: bool(place.processes("guest_workload")), "no guest was started", 60.0)
        daemon.send_signal(signal.SIGTERM)
        code, _, err = finish(daemon)
        assert code in (0, 3), err  # 0: the guest was faster
        assert "Traceback" not in err
    else:
        with HostPair(GUEST) as pair, pair.migrating() as migration:
            until(lambda: len(place.processes("guest_workload")) == 2, "no shell was started", 60.0)
            pair.dest.process.send_signal(signal.SIGTERM)
            assert pair.dest.process.wait(30.0) == 0
            assert finish(migration)[0] in (1, 3)
            assert len(place.processes("guest_workload")) == 1
    place.assert_nothing_left()


# -- after the commit point --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["relinquished", "resumed"])
def test_the_command_cannot_cancel_any_more(point: str, place: Place) -> None:
    with HostPair(GUEST) as pair:
        with pair.held_at(point) as stands, pair.migrating("--mode", "postcopy") as migration:
            stands()
            migration.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert migration.poll() is None
            pair.release(point)
            code, _, err = finish(migration)
        assert code == 0, err
        assert re.search(r"too late to cancel: guest guest0 runs at \S+ [1-9]\d* pages are left to move", err)
    place.assert_nothing_left()


def test_a_second_signal_leaves_the_migration_to_its_daemons(place: Place) -> None:
    with HostPair(GUEST) as pair, pair.held_at("resumed") as stands, pair.migrating("--mode", "postcopy") as migration:
        stands()
        migration.send_signal(signal.SIGINT)
        read_until(migration, "A second signal")
        migration.send_signal(signal.SIGINT)
        assert finish(migration)[0] == 1
        pair.release("resumed")
        until(lambda: pair.on_source("guest")["status"] == "completed", "it did not go on")
    place.assert_nothing_left()


@pytest.mark.parametrize("point", ["relinquished", "resumed"])
def test_the_source_daemon_finishes_first(point: str, place: Place) -> None:
    with HostPair(GUEST) as pair:
        with pair.held_at(point) as stands, pair.migrating("--mode", "postcopy") as migration:
            stands()
            before = pair.on_source("remaining")["pages"]
            pair.source.process.send_signal(signal.SIGTERM)
            until(lambda: "finishing first" in said(pair.source), "the source says nothing")
            told = re.search(r"(\d+) of its pages are only here", said(pair.source))
            assert told
            # Nothing is pushed while it is held, but the guest that has been resumed fetches what it touches.
            assert before >= int(told[1]) > 0
            assert point == "resumed" or int(told[1]) == before
            time.sleep(0.3)
            assert pair.source.process.poll() is None
            pair.release(point)
            code, _, err = finish(migration)
            assert code == 0, err
            assert pair.source.process.wait(30.0) == 0
        (guest,) = pair.on_dest("status")["guests"]
        assert (guest["resident"], guest["owner"]) == (True, True)
    place.assert_nothing_left()


def test_the_destination_daemon_finishes_first(place: Place) -> None:
    with HostPair(GUEST) as pair, pair.held_at("resumed") as stands, pair.migrating("--mode", "postcopy") as migration:
        stands()
        pair.dest.process.send_signal(signal.SIGINT)
        until(lambda: "finishing first" in said(pair.dest), "the destination says nothing")
        assert re.search(r"[1-9]\d* pages are still at the source", said(pair.dest))
        time.sleep(0.3)
        assert pair.dest.process.poll() is None
        pair.release("resumed")
        code, _, err = finish(migration)
        assert code == 0, err
        assert pair.dest.process.wait(30.0) == 0
    place.assert_nothing_left()


def test_a_second_signal_forces_the_end_and_says_what_is_lost(place: Place) -> None:
    """First at the source; then the destination, which waits for pages that will never come, needs two as well."""
    with HostPair(GUEST) as pair:
        with pair.held_at("resumed") as stands, pair.migrating("--mode", "postcopy") as migration:
            stands()
            pair.source.process.send_signal(signal.SIGTERM)
            until(lambda: "a second signal loses the guest" in said(pair.source), "the source says nothing")
            pair.source.process.send_signal(signal.SIGTERM)
            assert pair.source.process.wait(30.0) == 1
            assert "guest guest0 is lost" in said(pair.source)
            assert finish(migration)[0] == 1
        until(lambda: pair.on_dest("status")["guests"][0]["status"] == "postcopy-paused", "post-copy is not paused")
        assert pair.on_dest("status")["guests"][0]["missing_pages"] > 0
        pair.dest.process.send_signal(signal.SIGTERM)
        until(lambda: "a second signal loses the guest" in said(pair.dest), "the destination says nothing")
        time.sleep(0.3)
        assert pair.dest.process.poll() is None
        pair.dest.process.send_signal(signal.SIGTERM)
        assert pair.dest.process.wait(30.0) == 1
        assert "guest guest0 is lost" in said(pair.dest)
    place.assert_nothing_left()


def test_a_source_whose_link_is_lost_keeps_the_only_copy(place: Place) -> None:
    """Post-copy is paused, but the pages are here: the first signal does not end the daemon."""
    with HostPair(GUEST) as pair, pair.held_at("resumed") as stands, pair.migrating("--mode", "postcopy") as migration:
        stands()
        pair.dest.process.kill()
        pair.dest.process.wait()
        for guest in place.processes("guest_workload"):
            if guest.pid != pair.on_source("guests").get(pair.name, {}).get("guest_pid"):
                guest.kill()
        pair.release("resumed")
        read_until(migration, "post-copy is paused")
        pair.source.process.send_signal(signal.SIGTERM)
        until(lambda: "finishing first" in said(pair.source), "the source says nothing")
        time.sleep(0.3)
        assert pair.source.process.poll() is None
        pair.source.process.send_signal(signal.SIGTERM)
        assert pair.source.process.wait(30.0) == 1
        assert "guest guest0 is lost" in said(pair.source)
        assert finish(migration)[0] == 1
    place.assert_nothing_left()


# -- the demo ------------------------------------------------------------------------------------------------------------------


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read the command's standard error up to a line with these words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"the command ended without saying {words!r}")


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("Starting two daemons", signal.SIGINT),
        ("Starting two daemons", signal.SIGTERM),
        ("pagefire source: guest", signal.SIGTERM),
        ("round 1", signal.SIGINT),
    ],
)
def test_a_demo_that_is_interrupted_leaves_nothing(moment: str, number: signal.Signals, place: Place) -> None:
    """While its daemons start, while the guest warms up, and during a migration that never converges; as a terminal does."""
    endless = [
        "--workload",
        "adversary",
        "--working-set",
        "100%",
        "--mode",
        "precopy",
        "--downtime-limit",
        "1us",
        "--max-rounds",
        "100000",
    ]
    warmup = "0s" if moment == "round 1" else "60s"
    demo = start("demo", "--memory", "64MiB", "--warmup", warmup, *endless)
    with demo:
        read_until(demo, moment)
        if number is signal.SIGINT:
            os.killpg(demo.pid, number)
        else:
            demo.send_signal(number)
        code, _, err = finish(demo)
    assert code == 3, err
    assert "Traceback" not in err
    place.assert_nothing_left()


def test_what_is_looked_for_would_be_found(place: Place) -> None:
    """The marks themselves: a guest that is left would be seen."""
    with HostPair(GUEST):
        assert len(place.processes("guest_workload")) == 1
        assert any("pagefire.scripts.cli source" in one for one in place.leftovers())
        assert all(isinstance(one, psutil.Process) for one in place.processes())
    place.assert_nothing_left()
