"""A convergence policy of one's own: found by name, guarded, and the built-in rule where none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.report import Round
from pagefire.source_host import convergence
from pagefire.source_host.convergence import Limits
from pagefire.source_host.policy import judge_named

LIMITS = Limits("hybrid", 0.05, 30, 300.0, "postcopy")
ROUNDS = [Round(1, 1000, 0, 4096_000, 1.0, 900, 0, 900.0, 4096_000)]

SOURCE = """
from pagefire.source_host.convergence import Verdict

def two_rounds(rounds, limits, elapsed_s):
    return Verdict(len(rounds) >= 2, "postcopy", f"{len(rounds)} rounds in {elapsed_s:g} s, {limits.mode}")

def broken(rounds, limits, elapsed_s):
    raise ValueError("no idea")

def silent(rounds, limits, elapsed_s):
    pass

def astray(rounds, limits, elapsed_s):
    return Verdict(True, "elsewhere", "")

NUMBER = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policies.py"
    path.write_text(SOURCE)
    return path


def test_without_a_name_it_is_the_built_in_one() -> None:
    assert judge_named(None) is convergence.judge


def test_one_of_ones_own_by_file(file: Path) -> None:
    judge = judge_named(f"{file}:two_rounds")
    verdict = judge(ROUNDS, LIMITS, 1.5)
    assert (verdict.stop, verdict.reason) == (False, "1 rounds in 1.5 s, hybrid")
    assert judge(ROUNDS * 2, LIMITS, 2.0).stop


def test_one_of_ones_own_by_module() -> None:
    judge = judge_named("pagefire.source_host.convergence:judge")
    assert judge(ROUNDS, LIMITS, 1.0) == convergence.judge(ROUNDS, LIMITS, 1.0)


@pytest.mark.parametrize(
    ("function", "words"),
    [("broken", "failed: ValueError: no idea"), ("silent", "gave no verdict: None"), ("astray", "gave no verdict")],
)
def test_what_it_does_wrong_is_an_error_with_its_name(file: Path, function: str, words: str) -> None:
    judge = judge_named(f"{file}:{function}")
    with pytest.raises(PagefireError, match=f"{function} {words}"):
        judge(ROUNDS, LIMITS, 1.0)


@pytest.mark.parametrize("name", ["missing", "NUMBER"])
def test_what_is_no_policy_is_refused(file: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be loaded|is no policy"):
        judge_named(f"{file}:{name}")


@pytest.mark.parametrize("name", ["no_such_module:judge", "/no/such/file.py:judge", "nothing"])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be loaded"):
        judge_named(name)
