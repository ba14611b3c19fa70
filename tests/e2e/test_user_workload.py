"""A workload of one's own, as docs/own-workload.md shows it: it migrates where both hosts allow it, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pagefire.protocol.errors import PagefireError
from tests.e2e.host_pair import HostPair, assert_verified, guest_arguments, run
from tests.e2e.place import Place

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

EXAMPLE = Path(__file__).parents[1] / "guest_workload" / "example_workload.py"
BY_MODULE = "tests.guest_workload.example_workload:Counters"
BY_FILE = f"{EXAMPLE}:Counters"


@pytest.mark.parametrize("workload", [BY_MODULE, BY_FILE], ids=["by module", "by file"])
def test_it_migrates_where_it_is_allowed(workload: str, place: Place) -> None:
    with HostPair(guest_arguments(workload=workload), ["--allow-workload", workload]) as pair:
        report = pair.migrate()
    assert_verified(report)
    assert report["guest"]["workload"] == workload
    place.assert_nothing_left()


def test_it_is_refused_where_it_is_not_allowed(place: Place) -> None:
    """A peer's word is no permission: what the destination was not started with is not imported there."""
    with HostPair(guest_arguments(workload=BY_MODULE), ["--allow-workload", "tests.something:Else"]) as pair:
        with pair.guest_unharmed(), pytest.raises(PagefireError, match="may not run here") as refused:
            pair.migrate()
        assert refused.value.exit_code == 1
        assert refused.value.why
        assert "Allow it where the daemon is started" in str(refused.value)
    place.assert_nothing_left()


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ("tests.guest_workload.example_workload:Missing", "cannot be loaded"),
        ("no_such_module:Counters", "cannot be loaded"),
        ("no_such_file.py:Counters", "cannot be loaded"),
        ("pathlib:Path", "is no workload"),
    ],
)
def test_what_is_no_workload_is_a_usage_error(workload: str, words: str, place: Place) -> None:
    code, _, err = run("source", "--memory", "64MiB", "--workload", workload)
    assert code == 2, err
    assert words in err
    assert workload in err
    assert "Traceback" not in err
    place.assert_nothing_left()


def test_a_demo_of_it_needs_no_further_option(place: Place, tmp_path: Path) -> None:
    demo = ("demo", "--memory", "64MiB", "--warmup", "200ms", "--settle", "200ms", "--report", str(tmp_path / "report"))
    code, out, err = run(*demo, "--workload", BY_FILE, "--json", "-")
    assert code == 0, err
    assert_verified(json.loads(out))
    place.assert_nothing_left()
