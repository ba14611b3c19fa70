"""What daemons tell to whoever watches them: figures that Prometheus reads, health, events that fit their schema, a log as JSON."""

from __future__ import annotations

import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

import pagefire.protocol
from pagefire.scripts.daemons import DaemonProcess
from tests.e2e.host_pair import HostPair, Json, assert_verified, finish, guest_arguments, run, start, until
from tests.e2e.place import Place

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

SCHEMA = json.loads((Path(pagefire.protocol.__file__).parent / "events.schema.json").read_text())
GUEST = guest_arguments(vcpus=1, rate="2k/s")
METRICS = ("--metrics", "0")
#: A name and its labels -> value.
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def url_of(daemon: DaemonProcess) -> str:
    return daemon.ready_line.rpartition(", metrics at ")[2]


def fetch(url: str, accept: str = "text/plain") -> tuple[int, str]:
    """Give the status and the body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health(daemon: DaemonProcess) -> tuple[int, str]:
    return fetch(url_of(daemon).replace("/metrics", "/healthz"))


def scrape(daemon: DaemonProcess) -> Figures:
    """Read a daemon's figures as Prometheus does, by its own parser."""
    status, text = fetch(url_of(daemon))
    assert status == 200
    figures: Figures = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in figures, key
            figures[key] = sample.value
    return figures


def one(figures: Figures, name: str, **labels: str) -> float:
    return figures[name, frozenset(labels.items())]


def phase(figures: Figures, side: str) -> str | None:
    (*phases,) = [
        dict(labels)["phase"]
        for (name, labels), value in figures.items()
        if name == "pagefire_migration_phase" and dict(labels)["side"] == side and value
    ]
    return phases[0] if phases else None


def counters(figures: Figures) -> Figures:
    return {
        key: value for key, value in figures.items() if key[0].startswith("pagefire_") and key[0].endswith("_total")
    }


@contextmanager
def scraped_all_the_time(daemon: DaemonProcess) -> Iterator[list[Figures]]:
    """Scrape as often as it goes while this lasts."""
    seen: list[Figures] = []
    over = threading.Event()

    def scrape_on() -> None:
        while not over.is_set():
            seen.append(scrape(daemon))
            time.sleep(0.01)

    thread = threading.Thread(target=scrape_on)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def lines_of(path: Path) -> list[Json]:
    """Read events and validate each against the schema."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        errors = [error.message for error in validator.iter_errors(line)]
        assert not errors, (line, errors)
    times = [line["monotonic_ns"] for line in lines]
    assert times == sorted(times)
    return lines


def names(lines: list[Json], side: str) -> list[str]:
    """Give a side's events in their order, those that repeat once."""
    found: list[str] = []
    for line in lines:
        name = line["fields"].get("phase") or line["event"]
        if line["side"] == side and (not found or found[-1] != name):
            found.append(name)
    return found


def test_figures_and_events_of_a_migration(place: Place, tmp_path: Path) -> None:
    """One round by a policy of the test's own: what is written while that is held has to move after the resume."""
    here, there, policy = tmp_path / "source.jsonl", tmp_path / "dest.jsonl", tmp_path / "mine.py"
    policy.write_text(
        "from pagefire.source_host.convergence import Verdict\n"
        "def one(rounds, limits, elapsed_s):\n"
        "    return Verdict(True, 'postcopy', f'{len(rounds)} is enough')\n"
    )
    told = ("--log-format", "json", "--events", str(here))
    with HostPair([*GUEST, *METRICS, *told], [*METRICS, "--events", str(there)]) as pair:
        assert_nothing_yet(scrape(pair.source), scrape(pair.dest))
        for point in ("quiesced", "resumed"):
            pair.on_source("point", action="hold", name=point)
        pair.on_dest("point", action="hold", name="dest-switchover")
        options = ("--json", str(tmp_path / "report"), "--policy", f"{policy}:one")
        with (
            scraped_all_the_time(pair.source) as seen,
            pair.held_at("round") as stands,
            pair.migrating(*options) as moving,
        ):
            stands()
            assert_in_a_round(scrape(pair.source), scrape(pair.dest))
            pair.release("round")
            scrape_waits_at(pair.on_source, "quiesced", pair.source)
            scrape_waits_at(pair.on_dest, "dest-switchover", pair.dest)
            pair.on_source("point", action="wait", name="resumed")
            assert_after_the_resume(scrape(pair.source), scrape(pair.dest))
            assert health(pair.source) == health(pair.dest) == (200, "ok\n")
            pair.release("resumed")
            code, _, err = finish(moving)
        assert code == 0, err
        report = json.loads((tmp_path / "report").read_text())
        assert_verified(report)
        assert (report["policy"], report["stop_reason"], len(report["rounds"])) == (f"{policy}:one", "1 is enough", 1)
        for earlier, later in itertools.pairwise(seen):
            for key, value in counters(earlier).items():
                if "commits" not in key[0]:
                    assert counters(later)[key] >= value, key
        after, arrived = scrape(pair.source), scrape(pair.dest)
        assert_is_told(report, after)
        assert one(arrived, "pagefire_resident_guests") == 1
        assert one(arrived, "pagefire_guest_owner", guest="guest0") == 1
        assert one(arrived, "pagefire_migrations_total", side="destination", outcome="completed") == 1
        minor = one(arrived, "pagefire_faults_served_total", kind="minor")
        # The last ones come while the destination already says that no page is missing.
        assert minor >= report["postcopy"]["minor_faults"]
        assert list(parse_openmetrics(fetch(url_of(pair.dest), "application/openmetrics-text; version=1.0.0")[1]))
        logged = [json.loads(line) for line in pair.source.log_path.read_text().splitlines()]
    assert_told_by_events(report, lines_of(here), lines_of(there))
    (round_,) = (line["fields"] for line in logged if "round" in line["fields"])
    assert round_ == {"guest": "guest0", "round": 1, "pages": report["rounds"][0]["pages"], "left": round_["left"]}
    place.assert_nothing_left()


def assert_nothing_yet(here: Figures, there: Figures) -> None:
    assert (one(here, "pagefire_resident_guests"), one(there, "pagefire_resident_guests")) == (1, 0)
    assert one(here, "pagefire_guest_owner", guest="guest0") == 1
    assert one(here, "pagefire_migrations_total", side="source", outcome="completed") == 0
    assert one(here, "process_cpu_seconds_total") > 0
    assert (phase(here, "source"), phase(there, "destination")) == ("none", None)


def assert_in_a_round(here: Figures, there: Figures) -> None:
    assert (phase(here, "source"), phase(there, "destination")) == ("active", "active")
    assert one(here, "pagefire_migrations_in_progress", side="source") == 1
    assert one(there, "pagefire_migrations_in_progress", side="destination") == 1
    assert one(here, "pagefire_migration_pages_sent_total") > 0
    assert one(here, "pagefire_migration_wire_bytes_total") > 4096
    assert one(here, "pagefire_migration_dirty_pages_per_second", guest="guest0") > 0
    assert one(here, "pagefire_guest_owner", guest="guest0") == 1


def assert_after_the_resume(here: Figures, there: Figures) -> None:
    assert (phase(here, "source"), phase(there, "destination")) == ("postcopy-active", "postcopy-active")
    left = one(there, "pagefire_migration_remaining_pages", guest="guest0", side="destination")
    assert 0 < left <= one(here, "pagefire_migration_remaining_pages", guest="guest0", side="source")
    assert one(here, "pagefire_guest_owner", guest="guest0") == 0


def scrape_waits_at(operation: Callable[..., Json], point: str, daemon: DaemonProcess) -> None:
    """Wait until a script stands at a point of the stun, and check that a scrape is answered once it goes on."""
    operation("point", action="wait", name=point)
    told: list[Figures] = []
    asking = threading.Thread(target=lambda: told.append(scrape(daemon)))
    asking.start()
    asking.join(0.2)
    assert not told
    operation("point", action="release", name=point)
    asking.join()
    assert told


def assert_is_told(report: Json, figures: Figures) -> None:
    """Check that a source's figures are those of the report of its only migration."""
    assert one(figures, "pagefire_migrations_total", side="source", outcome="completed") == 1
    # The source's last word, that it has freed its copy, follows the report's reading.
    assert 0 <= one(figures, "pagefire_migration_wire_bytes_total") - report["wire_bytes"] < 256
    assert one(figures, "pagefire_migration_rounds_total") == len(report["rounds"])
    assert one(figures, "pagefire_last_stun_seconds", guest="guest0") == report["stun_s"]
    rounds = sum(round_["pages"] for round_ in report["rounds"])
    pushed = report["postcopy"]["pushed_pages"] + report["postcopy"]["duplicate_pages"]
    sent = one(figures, "pagefire_migration_pages_sent_total")
    assert rounds + report["stun_pages"] <= sent <= rounds + report["stun_pages"] + pushed
    assert one(figures, "pagefire_resident_guests") == 0
    assert phase(figures, "source") == "completed"


def assert_told_by_events(report: Json, here: list[Json], there: list[Json]) -> None:
    source = names(here, "source")
    turns = [name for name in source if name not in ("progress", "round", "moving")]
    assert turns == ["requested", "setup", "active", "device", "postcopy-active", "resumed", "ended"]
    assert names(there, "destination") == ["setup", "active", "device", "postcopy-active", "resident", "ended"]
    assert names(here, "daemon") == ["guest", "started", "stopped"]
    assert [line["fields"]["state"] for line in there if line["event"] == "guest"] == ["arrived"]
    sessions = {line["session"] for line in [*here, *there]} - {None}
    assert len(sessions) == 1
    (ended,) = (line["fields"] for line in here if line["event"] == "ended")
    for field in ("outcome", "owner", "total_s", "downtime_s", "stun_s", "wire_bytes"):
        assert ended[field] == report[field], field
    assert [line["fields"]["pages"] for line in here if line["event"] == "round"] == [
        round_["pages"] for round_ in report["rounds"]
    ]
    assert Counter(line["event"] for line in here)["progress"] >= len(report["rounds"])


def test_health_names_what_is_wrong(place: Place, tmp_path: Path) -> None:
    events = tmp_path / "events"
    with HostPair([*GUEST, *METRICS, "--events", str(events)], [*METRICS]) as pair:
        with pair.held_at("resumed") as stands, pair.migrating("--mode", "postcopy") as migration:
            stands()
            pair.kill("dest")
            pair.release("resumed")
            until(lambda: health(pair.source)[0] == 503, "a paused post-copy is well")
            assert "guest guest0: post-copy is paused, " in health(pair.source)[1]
            assert phase(scrape(pair.source), "source") in ("postcopy-paused", "postcopy-recover")
            pair.restart("dest")
            code, _, err = finish(migration)
            assert code == 0, err
        assert health(pair.source) == health(pair.dest) == (200, "ok\n")
        assert one(scrape(pair.source), "pagefire_migration_recoveries_total") >= 1
        pair.kill_guest("dest")
        until(lambda: health(pair.dest)[0] == 503, "a dead guest is well")
        assert health(pair.dest)[1] == "guest guest0 is dead: its process ended\n"
        assert one(scrape(pair.dest), "pagefire_guest_running", guest="guest0") == 0
    told = names(lines_of(events), "source")
    assert ("paused" in told, "recovered" in told, told[-1]) == (True, True, "ended")


@pytest.mark.soak
def test_events_on_standard_output_and_a_log_as_json(place: Place) -> None:
    with start("source", *GUEST, "--events", "-", "--log-format", "json", *METRICS) as daemon:
        try:
            assert daemon.stderr is not None
            ready = daemon.stderr.readline()
            assert "pagefire source: guest guest0 runs" in ready
            code, _, err = run("migrate", "--to", "127.0.0.1:1")
            assert (code, "cannot" in err or "no" in err) == (1, True)
        finally:
            daemon.terminate()
            code, out, err = finish(daemon)
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    for event in events:
        jsonschema.validate(event, SCHEMA, jsonschema.Draft202012Validator)
    assert [event["event"] for event in events if event["side"] == "daemon"] == ["guest", "started", "stopped"]
    assert events[-2]["fields"]["outcome"] == "failed"
    logged = [json.loads(line) for line in err.splitlines()]
    (failed,) = (line for line in logged if line["fields"].get("status") == "failed")
    assert (failed["level"], failed["logger"], failed["fields"]["guest"]) == ("warning", "pagefire.source", "guest0")
    place.assert_nothing_left()


@pytest.mark.soak
def test_a_policy_of_ones_own_decides(place: Place, tmp_path: Path) -> None:
    policy = tmp_path / "mine.py"
    policy.write_text(
        "from pagefire.source_host.convergence import Verdict\n"
        "def three(rounds, limits, elapsed_s):\n"
        "    return Verdict(len(rounds) >= 3, 'postcopy', f'round {len(rounds)} of three')\n"
        "def broken(rounds, limits, elapsed_s):\n"
        "    raise RuntimeError('no idea')\n"
    )
    with HostPair(GUEST) as pair:
        with pair.guest_unharmed(), pair.migrating("--policy", f"{policy}:broken") as migration:
            code, _, err = finish(migration)
            assert (code, "broken failed: RuntimeError: no idea" in err) == (1, True)
        with pair.migrating("--policy", f"{policy}:three", "--json", str(tmp_path / "report")) as migration:
            code, _, err = finish(migration)
        assert code == 0, err
    report = json.loads((tmp_path / "report").read_text())
    assert_verified(report)
    assert (len(report["rounds"]), report["stop_reason"]) == (3, "round 3 of three")
    assert report["policy"] == f"{policy}:three"
    place.assert_nothing_left()
