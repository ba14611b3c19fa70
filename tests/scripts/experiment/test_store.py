"""The results folder: whole lines only, one scenario, one writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.scripts.experiment.store import RESULTS, opened, read_experiment, read_lines

EXPERIMENT: dict[str, Any] = {"name": "s", "scenario": {"name": "s", "repetitions": 1, "sweeps": [{"vcpus": [1]}]}}


def line(key: str) -> dict[str, Any]:
    return {"key": key, "outcome": "completed"}


def test_lines_are_there_again(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "folder", EXPERIMENT) as store:
        store.add(line("a"))
        # On the disk before the next migration begins, not when the folder is closed.
        assert len((store.folder / RESULTS).read_text().splitlines()) == 1
        store.add(line("b"))
    with opened(tmp_path / "new" / "folder", EXPERIMENT) as store:
        assert store.keys == {"a", "b"}
        assert read_experiment(store.folder) == EXPERIMENT


@pytest.mark.parametrize("cut", range(1, 35))
def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path, EXPERIMENT) as store:
        store.add(line("a"))
        store.add(line("b"))
    path = tmp_path / RESULTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with opened(tmp_path, EXPERIMENT) as store:
        assert store.keys == {"a"}
        store.add(line("b"))
    assert path.read_bytes() == whole


def test_a_last_line_of_zeros_is_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path, EXPERIMENT) as store:
        store.add(line("a"))
    with (tmp_path / RESULTS).open("ab") as file:
        file.write(b"\0" * 40 + b"\n")
    with opened(tmp_path, EXPERIMENT) as store:
        assert store.keys == {"a"}


def test_a_line_in_the_middle_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    path.write_text('{"key": "a", "outcome": "completed"}\nnonsense\n{"key": "b", "outcome": "completed"}\n')
    with pytest.raises(PagefireError, match=r"line 2 of .* is no result"):
        read_lines(path)


def test_a_migration_counts_once(tmp_path: Path) -> None:
    with opened(tmp_path, EXPERIMENT) as store:
        store.add(line("a"))
        with pytest.raises(PagefireError, match="already"):
            store.add(line("a"))
    (tmp_path / RESULTS).write_text((json.dumps(line("a")) + "\n") * 2)
    with pytest.raises(PagefireError, match="has a twice"):
        read_lines(tmp_path / RESULTS)


def test_another_scenario_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path, EXPERIMENT) as store:
        store.add(line("a"))
    changed = {**EXPERIMENT, "scenario": {**EXPERIMENT["scenario"], "repetitions": 5}}
    with (
        pytest.raises(UsageError, match=r"another form of `s`: `repetitions` was 1 and is 5"),
        opened(tmp_path, changed),
    ):
        pass
    assert read_experiment(tmp_path) == EXPERIMENT


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"it holds something else: thesis\.tex"), opened(tmp_path, EXPERIMENT):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_cannot_write_one_folder(tmp_path: Path) -> None:
    with (
        opened(tmp_path, EXPERIMENT),
        pytest.raises(UsageError, match="is being written"),
        opened(tmp_path, EXPERIMENT),
    ):
        pass


def test_what_is_described_stays_once_there_are_results(tmp_path: Path) -> None:
    with opened(tmp_path, EXPERIMENT) as store:
        store.describe({**EXPERIMENT, "left_out": "no root"})
    with opened(tmp_path, EXPERIMENT) as store:
        assert "left_out" not in read_experiment(tmp_path)
        store.add(line("a"))
        store.describe({**EXPERIMENT, "host": "another"})
    assert read_experiment(tmp_path) == EXPERIMENT


def test_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no experiment"):
        read_experiment(tmp_path)
