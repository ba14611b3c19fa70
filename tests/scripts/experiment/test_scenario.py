"""Scenario files: what they say, and how what is wrong in one is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pagefire.protocol.errors import UsageError
from pagefire.scripts.experiment.scenario import load_scenario, parse_scenario

WHOLE = """
title = "T"
question = "Q?"
repetitions = 2
seeds = [1, 7]
warmup = "300ms"
warmup-migrations = 0
[guest]
memory = "64MiB"
[options]
foretell = false
[link]
link-rate = "1gbit"
[cpus]
guest = "0"
[sweep]
mode = ["precopy", "hybrid"]
vcpus = 2
[[figure]]
kind = "bars"
x = "mode"
y = "stun"
[quick]
repetitions = 1
guest = { resident = "32MiB" }
sweep = { mode = ["hybrid"] }
"""


def test_a_whole_file() -> None:
    said = parse_scenario(WHOLE, "whole", "whole.toml")
    assert (said.name, said.title, said.question) == ("whole", "T", "Q?")
    assert (said.repetitions, said.seeds, said.warmup, said.warmup_migrations) == (2, (1, 7), "300ms", 0)
    assert said.fixed == {"memory": "64MiB", "foretell": False, "link-rate": "1gbit", "cpus-guest": "0"}
    assert said.sweeps == ({"mode": ("precopy", "hybrid"), "vcpus": (2,)},)
    assert said.swept == ("mode", "vcpus")
    assert said.figures[0].title == "Stun by mode"


def test_quick_merges_sections_and_replaces_the_rest() -> None:
    quick = parse_scenario(WHOLE, "whole", "whole.toml", quick=True)
    assert quick.repetitions == 1
    assert quick.seeds == (1, 7)
    assert quick.fixed["memory"] == "64MiB"
    assert quick.fixed["resident"] == "32MiB"
    assert quick.sweeps == ({"mode": ("hybrid",)},)
    assert quick.as_json() != parse_scenario(WHOLE, "whole", "whole.toml").as_json()


def test_nothing_is_one_case() -> None:
    said = parse_scenario("", "empty", "empty.toml")
    assert (said.title, said.sweeps, said.repetitions) == ("empty", ({},), 1)


def test_quick_without_a_form_is_once_a_case() -> None:
    assert parse_scenario("repetitions = 9", "one", "one.toml", quick=True).repetitions == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "f.toml is not TOML"),
        ("titel = 'x'", "f.toml: `titel` is unknown: known are .*Write `title`"),
        (
            "mode = 'hybrid'",
            r"f.toml: `mode` stands outside of its section: it is one of \[options\]. Write it under \[options\]",
        ),
        ("[guest]\nmemroy = '1GiB'", r"f.toml: \[guest\]: `memroy` is unknown: known are memory.*Write `memory`"),
        ("[guest]\nmode = 'hybrid'", r"f.toml: \[guest\]: `mode` is unknown"),
        ("[guest]\nseed = 3", r"f.toml: \[guest\] `seed` is unknown.*seeds = \[1\]"),
        ("[guest]\nvcpus = '2'", r"f.toml: \[guest\]: `vcpus` cannot be '2': it takes a whole number"),
        ("[options]\nverify = 'yes'", r"f.toml: \[options\]: `verify` cannot be 'yes': it takes true or false"),
        ("[options]\nmode = true", r"f.toml: \[options\]: `mode` cannot be True: it takes words"),
        ("guest = 3", r"f.toml: \[guest\] is 3: it is a table"),
        ("[sweep]\nmdoe = ['hybrid']", r"f.toml: \[sweep\]: `mdoe` is unknown.*Write `mode`"),
        ("[sweep]\nmode = []", r"f.toml: \[sweep\] `mode` is empty"),
        ("[sweep]\nvcpus = [1, '2']", r"f.toml: \[sweep\]: `vcpus` cannot be '2'"),
        ("repetitions = 0", "f.toml: `repetitions` is 0: it takes a whole number, 1 or more"),
        ("warmup-migrations = true", "f.toml: `warmup-migrations` is True"),
        ("seeds = []", "f.toml: `seeds` is"),
        ("seeds = [1, 1]", "f.toml: `seeds` is"),
        ("title = 3", "f.toml: `title` is 3: it takes words"),
        ("[quick]\nfoo = 1", r"f.toml: \[quick\]: `foo` is unknown"),
        ("[[figure]]\nkind = 'pie'", r"f.toml: \[\[figure\]\] 1 has no kind that is known: known are timeline, .*bars"),
        ("[[figure]]\nkind = 'bars'\nx = 'mode'", r"figure\]\] 1: `y` is missing"),
        ("[[figure]]\nkind = 'bars'\nx = 'mode'\ny = 'stnu'", r"there is no quantity 'stnu'.*Write `stun`"),
        ("[[figure]]\nkind = 'bars'\nx = 'mdoe'\ny = 'stun'", r"`x`: `mdoe` is unknown"),
        ("[[figure]]\nkind = 'parts'\nx = 'mode'\nby = 'rate'", r"`by` is unknown: parts takes"),
    ],
)
def test_what_is_wrong_is_told_with_file_key_and_what_to_do(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_scenario(text, "f", "f.toml")
    assert re.search(said, str(raised.value)), str(raised.value)
    assert raised.value.do


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read as a scenario: No such file"):
        load_scenario(tmp_path / "none.toml")


def test_a_file_bears_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE)
    assert load_scenario(path).name == "mine"
