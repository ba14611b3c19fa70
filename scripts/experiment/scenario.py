"""A scenario: what an experiment migrates, how, over what, how often. A TOML file, parsed into frozen dataclasses.

    title, question      what it shows, and what it answers
    repetitions          of every case (1)          seeds             of the guest; every case is run with each ([1])
    warmup               how long a guest runs before it migrates ("2s")
    warmup-migrations    thrown away before the first that counts, whenever the experiment is started or resumed (1)
    [guest] [options] [link] [cpus]      parameters that are the same in all cases (parameters.py)
    [sweep]              parameter = list: every combination; [[sweep]] several times: one after another (explicit cases)
    [[figure]]           what is drawn (figures/wanted.py)
    [quick]              any of the above for `--quick`: sections are merged, everything else is replaced

What is not a scenario is refused with the file and the key, what is known instead, and what to write.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagefire.protocol.errors import UsageError
from pagefire.scripts.experiment.parameters import PARAMETERS, SECTIONS, Value, meant, parameter
from pagefire.scripts.figures.wanted import Wanted, parse_wanted

Json = dict[str, Any]

_COUNTS = {"repetitions": 1, "warmup-migrations": 1}
_KEYS = ("title", "question", *_COUNTS, "seeds", "warmup", *SECTIONS, "sweep", "figure", "quick")


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a file says. `fixed` parameters are the same in all cases but for what a sweep names; each of `sweeps` names values.

    `name` is the file's, without its ending.
    """

    name: str
    title: str
    question: str
    fixed: Mapping[str, Value]
    sweeps: tuple[Mapping[str, tuple[Value, ...]], ...]
    repetitions: int = 1
    seeds: tuple[int, ...] = (1,)
    warmup: str = "2s"
    warmup_migrations: int = 1
    figures: tuple[Wanted, ...] = field(default=())
    quick: bool = False

    @property
    def swept(self) -> tuple[str, ...]:
        """The parameters that are swept, in the order in which they are first named."""
        return tuple(dict.fromkeys(name for sweep in self.sweeps for name in sweep))

    def as_json(self) -> Json:
        """Give all that decides what is run: equal for scenarios whose results belong together."""
        return {
            "name": self.name,
            "fixed": dict(self.fixed),
            "sweeps": [{name: list(values) for name, values in sweep.items()} for sweep in self.sweeps],
            "repetitions": self.repetitions,
            "seeds": list(self.seeds),
            "warmup": self.warmup,
            "warmup_migrations": self.warmup_migrations,
            "quick": self.quick,
        }


def load_scenario(path: Path, *, quick: bool = False) -> Scenario:
    """Read a file; raises UsageError where it cannot be read or is no scenario."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"{path} cannot be read as a scenario", why, "name a file, or one of `pagefire experiment list`"
        ) from error
    return parse_scenario(text, path.stem, path.name, quick=quick)


def parse_scenario(text: str, name: str, file: str, *, quick: bool = False) -> Scenario:
    """Parse a file's text; `file` is what errors call it."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not TOML", str(error), "mend that line") from error
    _refuse_unknown(said, file)
    # A file without a short form is run once a case.
    over = _table(said.get("quick", {"repetitions": 1}), f"{file}: [quick]")
    _refuse_unknown(over, f"{file}: [quick]")
    if quick:
        said = _merged(said, over, file)
    fixed: dict[str, Value] = {}
    for section in SECTIONS:
        table = _table(said.get(section, {}), f"{file}: [{section}]")
        for key, value in table.items():
            one = f"cpus-{key}" if section == "cpus" else key
            known = [name for name, found in PARAMETERS.items() if found.section == section]
            if section == "guest" and key == "seed":
                raise UsageError(
                    f"{file}: [guest] `seed` is unknown", "a scenario has several", "write `seeds = [1]` at the top"
                )
            fixed[one] = parameter(one, f"{file}: [{section}]", known).read(value, f"{file}: [{section}]")
    counts = {
        key: _count(said.get(key, least), least if key == "repetitions" else 0, f"{file}: `{key}`")
        for key, least in _COUNTS.items()
    }
    sweeps = _sweeps(said.get("sweep", []), file)
    return Scenario(
        name=name,
        title=_words(said.get("title", name), f"{file}: `title`"),
        question=_words(said.get("question", ""), f"{file}: `question`"),
        fixed=fixed,
        sweeps=sweeps,
        repetitions=counts["repetitions"],
        seeds=_seeds(said.get("seeds", [1]), file),
        warmup=_words(said.get("warmup", "2s"), f"{file}: `warmup`"),
        warmup_migrations=counts["warmup-migrations"],
        figures=tuple(
            parse_wanted(one, f"{file}: [[figure]] {index + 1}")
            for index, one in enumerate(_list(said.get("figure", []), f"{file}: [[figure]]"))
        ),
        quick=quick,
    )


def _merged(said: Json, over: Json, file: str) -> Json:
    """Lay `[quick]` over the rest."""
    merged = dict(said)
    for key, value in over.items():
        if key in SECTIONS:
            merged[key] = {**_table(said.get(key, {}), f"{file}: [{key}]"), **_table(value, f"{file}: [quick.{key}]")}
        else:
            merged[key] = value
    return merged


def _refuse_unknown(said: Json, where: str) -> None:
    for key in said:
        if key in _KEYS:
            continue
        if key in PARAMETERS:
            section = PARAMETERS[key].section
            raise UsageError(
                f"{where}: `{key}` stands outside of its section",
                f"it is one of [{section}]",
                f"write it under [{section}]",
            )
        raise UsageError(f"{where}: `{key}` is unknown", f"known are {', '.join(_KEYS)}", meant(key, _KEYS))


def _sweeps(said: Any, file: str) -> tuple[dict[str, tuple[Value, ...]], ...]:
    """Read one `[sweep]` or several `[[sweep]]`; none of them is one case. A value that stands alone is a list of one."""
    tables = [said] if isinstance(said, dict) else _list(said, f"{file}: [[sweep]]")
    found: list[dict[str, tuple[Value, ...]]] = []
    for table in tables or [{}]:
        values: dict[str, tuple[Value, ...]] = {}
        for key, given in _table(table, f"{file}: [sweep]").items():
            one = parameter(key, f"{file}: [sweep]")
            listed = given if isinstance(given, list) else [given]
            if not listed:
                raise UsageError(
                    f"{file}: [sweep] `{key}` is empty", "a sweep takes each of a list", "name a value, or take it out"
                )
            values[key] = tuple(one.read(value, f"{file}: [sweep]") for value in listed)
        found.append(values)
    return tuple(found)


def _seeds(said: Any, file: str) -> tuple[int, ...]:
    seeds = tuple(_count(seed, 0, f"{file}: `seeds`") for seed in _list(said, f"{file}: `seeds`"))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{file}: `seeds` is {said!r}", "each seed makes a guest of its own", "name one or more, each once"
        )
    return seeds


def _count(said: Any, least: int, where: str) -> int:
    if not isinstance(said, int) or isinstance(said, bool) or said < least:
        raise UsageError(f"{where} is {said!r}", f"it takes a whole number, {least} or more", "change it")
    return said


def _words(said: Any, where: str) -> str:
    if not isinstance(said, str):
        raise UsageError(f"{where} is {said!r}", "it takes words", "put them in quotes")
    return said


def _table(said: Any, where: str) -> Json:
    if not isinstance(said, dict):
        raise UsageError(f"{where} is {said!r}", "it is a table of keys and values", "write it as a section")
    return said


def _list(said: Any, where: str) -> list[Any]:
    if not isinstance(said, list):
        raise UsageError(f"{where} is {said!r}", "it is a list", "put it into [ ]")
    return said
