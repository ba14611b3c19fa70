"""`pagefire predict`: told before anything moves, and whatever ends it the guest goes on as fast as before, and nothing is left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.prediction import Prediction
from pagefire.scripts.relay import Relay
from pagefire.source_host.options import MigrationOptions
from tests.e2e.host_pair import HostPair, Json, assert_verified, finish, guest_arguments, run, start, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.huge_pages import huge_pages, hugetlb_pool
from tests.support.kernel import need_pagemap_scan
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

QUICK = ("--for", "300ms")


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


@contextlib.contextmanager
def predicting(pair: HostPair, *options: str, to: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run `pagefire predict` beside what is done within; `finish` waits for it."""
    here = ("--runtime-dir", str(pair.directory))
    with start("predict", pair.name, "--to", to or pair.destination, *options, *here) as command:
        try:
            yield command
        finally:
            command.kill()


def predicted(pair: HostPair, *options: str) -> tuple[Json, str]:
    """Predict; gives the prediction and what was said beside it."""
    with predicting(pair, *QUICK, "--json", "-", *options) as command:
        code, out, err = finish(command)
    assert code == 0, err
    told: Json = json.loads(out)
    assert told.keys() == {field.name for field in dataclasses.fields(Prediction)}
    return told, err


@pytest.mark.parametrize("mode", ["hybrid", "postcopy", *soaked("precopy", "stop-and-copy")])
def test_it_is_told_and_nothing_is_left_and_the_migration_follows(mode: str, place: Place) -> None:
    with HostPair(arguments()) as pair:
        with pair.guest_unharmed():
            told, err = predicted(pair, "--mode", mode, "--streams", "2")
        assert pair.on_source("guest")["status"] == "none"
        assert told["verdict"] in err
        assert "Sending a sample of its pages" in err
        traced = mode in ("hybrid", "precopy")
        assert ("Watching what the guest writes" in err, bool(told["dirty"]), bool(told["rounds"])) == (traced,) * 3
        assert told["resident_pages"] * 4096 == 64 << 20
        report = pair.migrate(mode=mode, streams=2)
        assert_verified(report)
        # Nothing is timed here: how good predictions are is for test_predict_proof.py.
        assert told["total_s"] > told["setup_s"] > 0
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_a_migration_may_follow_at_once(place: Place) -> None:
    """To end the shell of a guest takes the destination some moments, and its name must not stand in the way meanwhile."""
    with HostPair(guest_arguments("256MiB", "random", 2, rate="4000")) as pair:
        options = dataclasses.asdict(MigrationOptions(to=pair.destination))
        for _ in range(3):
            pair.on_source("predict", name=pair.name, watch_s=0.1, **options)
        assert_verified(pair.migrate())
    place.assert_nothing_left()


def test_what_a_person_reads(place: Place) -> None:
    with HostPair(arguments()) as pair:
        here = ("--runtime-dir", str(pair.directory))
        bounded = ("--max-bandwidth", "100MB/s")
        code, out, err = run("predict", "--to", pair.destination, *QUICK, *bounded, *here)
        assert code == 0, err
        for words in (
            "It converges in",
            "total",
            "setup",
            "pre-copy",
            "stun",
            "resident after",
            "Different pages written",
        ):
            assert words in out
        assert "Stopping pre-copy after round" in out
        code, _, err = run("predict", "--to", pair.destination, "--for", "1h", *here)
        assert (code, "no time to watch a guest" in err) == (2, True)
    place.assert_nothing_left()


@pytest.mark.parametrize("backing", ["thp", "hugetlb"])
def test_huge_pages_are_given_back(backing: str, place: Place) -> None:
    shape = guest_arguments("64MiB", "random", 2, working_set="16MiB", rate="4000", backing=backing)
    given = huge_pages() if backing == "thp" else hugetlb_pool(2 * (64 << 20) + (8 << 20))
    with given, HostPair(shape) as pair:
        with pair.guest_unharmed():
            told, _ = predicted(pair)
        assert told["rounds"]
        assert_verified(pair.migrate())
    place.assert_nothing_left()


@pytest.mark.parametrize(
    "way",
    [
        ["--install", "rolling", "--compress", "lz4", "--checksum"],
        ["--mode", "precopy", "--auto-converge"],
        *soaked(["--install", "stop"], ["--tracker", "page-fire"], ["--populate", "--verify"]),
    ],
    ids=" ".join,
)
def test_other_ways_of_a_migration_are_its_ways_too(way: list[str], place: Place) -> None:
    with HostPair(arguments()) as pair:
        with pair.guest_unharmed():
            told, _ = predicted(pair, *way)
        assert told["outcome"] == "completed"
        assert_verified(pair.migrate())
    place.assert_nothing_left()


def test_what_would_refuse_the_migration_refuses_its_prediction(place: Place) -> None:
    with HostPair(arguments(), ["--max-guest-memory", "32MiB"]) as pair:
        with pair.guest_unharmed(), predicting(pair) as command:
            code, _, err = finish(command)
        assert (code, "too large for the destination" in err) == (1, True), err
        with pair.guest_unharmed(), predicting(pair, to="127.0.0.1:1") as command:
            code, _, err = finish(command)
        assert (code, "cannot connect to 127.0.0.1:1" in err) == (1, True), err
    place.assert_nothing_left()


def test_one_at_a_time(place: Place) -> None:
    with HostPair(arguments()) as pair:
        with pair.held_at("predict-watched") as stands, predicting(pair, *QUICK) as command:
            stands()
            assert pair.on_source("guest")["predicting"] == pair.destination
            with pytest.raises(PagefireError, match="is being looked at"):
                pair.migrate()
            with predicting(pair) as second:
                code, _, err = finish(second)
            assert (code, "is being looked at: to predict its migration" in err) == (1, True)
            with pytest.raises(PagefireError, match="is not migrating"):
                pair.on_source("set", changes={"max_rounds": 3})
            pair.release("predict-watched")
            assert finish(command)[0] == 0
        with pair.held_at("round") as stands, pair.migrating() as migration:
            stands()
            with predicting(pair) as command:
                code, _, err = finish(command)
            assert (code, "is already migrating" in err) == (1, True)
            pair.release("round")
            assert finish(migration)[0] == 0
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


POINTS = ("predict-negotiated", "predict-traced", "predict-watched", "predict-sampled")


@pytest.mark.parametrize("by", ["command", *soaked("signal")])
def test_cancelled_at_every_point(by: str, place: Place) -> None:
    with HostPair(arguments()) as pair:
        for point in POINTS:
            with pair.guest_unharmed(), pair.held_at(point) as stands, predicting(pair, *QUICK) as command:
                stands()
                if by == "command":
                    pair.on_source("cancel")
                else:
                    command.send_signal(signal.SIGINT)
                code, _, err = finish(command)
                assert (code, "the prediction was cancelled" in err) == (3, True), (point, err)
        # In the middle of a long watch.
        with pair.guest_unharmed(), predicting(pair, "--for", "60s") as command:
            until(
                lambda: "predicting" in pair.on_source("guest") and bool(pair.traces_of_tracking()), "it does not begin"
            )
            pair.on_source("cancel")
            assert finish(command)[0] == 3
        with pytest.raises(PagefireError, match="is not migrating"):
            pair.on_source("cancel")
        assert_verified(pair.migrate())
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


@pytest.mark.parametrize("point", ["predict-watched", *soaked(*sorted(set(POINTS) - {"predict-watched"}))])
def test_the_destination_goes(point: str, place: Place) -> None:
    with HostPair(arguments()) as pair, Relay(pair.port) as relay:
        with (
            pair.guest_unharmed(),
            pair.held_at(point) as stands,
            predicting(pair, *QUICK, "--link-timeout", "1s", to=relay.address) as command,
        ):
            stands()
            relay.cut()
            pair.release(point)
            code, _, err = finish(command)
            assert code == 1, err
            # The link is needed for nothing more than its end, once the samples are sent.
        assert_verified(pair.migrate())
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_the_destination_dies_while_the_guest_is_watched(place: Place) -> None:
    with HostPair(arguments()) as pair:
        with predicting(pair, "--for", "60s") as command:
            until(lambda: bool(pair.traces_of_tracking()), "it does not begin")
            pair.kill("dest")
            code, _, err = finish(command)
            assert (code, "the peer closed the connection" in err) == (1, True), err
        until(lambda: not pair.traces_of_tracking(), "the source daemon still holds a userfaultfd")
        pair.restart("dest")
        assert_verified(pair.migrate())
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


@pytest.mark.parametrize("point", ["predict-watched", *soaked("predict-traced")])
def test_the_guest_dies(point: str, place: Place) -> None:
    with HostPair(arguments()) as pair:
        with pair.held_at(point) as stands, predicting(pair, *QUICK) as command:
            stands()
            pair.kill_guest("source")
            pair.release(point)
            code, _, err = finish(command)
            assert (code, "the guest process" in err) == (1, True), err
        pair.nothing_at_destination()
        with predicting(pair) as command:
            code, _, err = finish(command)
        assert (code, "is dead" in err) == (1, True), err
    place.assert_nothing_left()


def test_its_own_daemon_dies(place: Place) -> None:
    """Tracing ends with the descriptor of who has died, and whoever adopts the guest finds it as it was."""
    with HostPair(arguments()) as pair:
        with pair.held_at("predict-watched") as stands, predicting(pair, *QUICK) as command:
            stands()
            pair.kill("source")
            assert finish(command)[0] == 1
        pair.restart("source")
        assert pair.on_source("guest")["running"]
        pair.nothing_at_destination()
        predicted(pair)
        assert_verified(pair.migrate())
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_a_daemon_that_is_told_to_end_does_not_wait_for_it(place: Place) -> None:
    with HostPair(arguments()) as pair:
        with predicting(pair, "--for", "60s") as command:
            until(lambda: bool(pair.traces_of_tracking()), "it does not begin")
            assert pair.source.end() == 0
            assert finish(command)[0] in (1, 3)
        pair.nothing_at_destination()
    place.assert_nothing_left()
