"""What a scenario may set and sweep: the options of `pagefire demo` by their names there, the link's, the CPUs, and two of our own.

A parameter belongs to one section of the file (`guest`, `options`, `link`, `cpus`), and its name is unique, so that a sweep names
it alone. A value stays as it was written (`"256MiB"`, `2`, `true`): it is parsed by the command line's own code when a case is made
(job.py), so that a file and the command line cannot mean different things. `default` leaves a parameter out.

Not from the command line: `profile`, a way to migrate as a whole (profiles.py), and `fault`, what goes wrong (faults.py).
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pagefire.protocol.errors import UsageError
from pagefire.scripts import options as o
from pagefire.scripts.move_options import MoveOptions
from pagefire.scripts.profiles import PROFILES, Profile

Value = str | int | float | bool
Values = Mapping[str, Value]

SECTIONS = ("guest", "options", "link", "cpus")
LINK = ("link-rate", "delay", "jitter", "loss", "reorder", "netem")
CPUS = ("source", "dest", "guest")
PROFILE, FAULT, DEFAULT = "profile", "fault", "default"
#: Options of the command line that a scenario says otherwise: its seeds, and the guest's name, which is of no consequence.
_SAID_OTHERWISE = ("seed", "name")
#: Flags that are on unless they are switched off.
_ON_BY_DEFAULT = ("check", "foretell")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its section, its option on the command line, and what it takes: words, a whole number (count), or a flag."""

    name: str
    section: str
    option: str
    takes: str

    def read(self, value: Any, where: str) -> Value:
        """Check the type of a value of a file; raises UsageError that begins with `where`."""
        right = {
            "flag": isinstance(value, bool),
            "count": isinstance(value, int) and not isinstance(value, bool),
            "words": isinstance(value, str | int | float) and not isinstance(value, bool),
        }[self.takes]
        if not right and value != DEFAULT:
            wanted = {"flag": "true or false", "count": "a whole number", "words": 'words in quotes, such as "64MiB"'}
            raise UsageError(
                f"{where}: `{self.name}` cannot be {value!r}", f"it takes {wanted[self.takes]}", "change the value"
            )
        return typing.cast(Value, value)


def _parameters() -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for section, group in (("guest", o.GuestOptions), ("options", MoveOptions), ("options", o.TracingOptions)):
        hints = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            name = field.name.replace("_", "-")
            if name not in _SAID_OTHERWISE:
                takes = {bool: "flag", int: "count"}.get(hints[field.name], "words")
                found[name] = Parameter(name, section, f"--{name}", takes)
    for name in (PROFILE, FAULT):
        found[name] = Parameter(name, "options", "", "words")
    found |= {name: Parameter(name, "link", f"--{name}", "words") for name in LINK}
    found |= {f"cpus-{name}": Parameter(f"cpus-{name}", "cpus", f"--cpus-{name}", "words") for name in CPUS}
    return found


#: Every parameter by its name, in the order in which a command line gives them.
PARAMETERS = _parameters()


def parameter(name: str, where: str, among: Iterable[str] | None = None) -> Parameter:
    """Give the parameter of this name; raises UsageError that says which are known and which is meant."""
    known = list(PARAMETERS if among is None else among)
    if name in known:
        return PARAMETERS[name]
    raise UsageError(f"{where}: `{name}` is unknown", f"known are {', '.join(known)}", meant(name, known))


def meant(name: str, known: Iterable[str]) -> str:
    """Say what to do about a name that is unknown."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"write `{close[0]}`" if close else "take it out"


def words_of(value: Value) -> str:
    """Write a value as a person would."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def label_of(values: Values) -> str:
    """Name a case by what is swept in it."""
    return ", ".join(f"{name} {words_of(value)}" for name, value in values.items()) or "the only case"


def given(values: Values) -> dict[str, Value]:
    """Leave out what is `default`, and put the options of a profile in its place; raises UsageError for an unknown profile.

    An option that is given beside the profile counts.
    """
    said = {name: value for name, value in values.items() if value != DEFAULT and name != PROFILE}
    profile = values.get(PROFILE, DEFAULT)
    if profile == DEFAULT:
        return said
    if profile not in PROFILES:
        raise UsageError(
            f"there is no profile {profile!r}", f"known are {', '.join(PROFILES)}", meant(str(profile), PROFILES)
        )
    return profile_options(PROFILES[str(profile)]) | said


def profile_options(profile: Profile) -> dict[str, Value]:
    """Give a profile by the names of the command line."""
    chosen = profile.options(settle_s=0.0)
    step = next(name for name, pages in o.STEPS.items() if pages == chosen.install_step_pages)
    loss = chosen.install_most_loss
    return {
        "mode": chosen.mode,
        "install": chosen.install,
        "tracer": chosen.tracer,
        "granularity": chosen.granularity,
        "install-step": step,
        "install-loss": "any" if loss is None else f"{loss * 100:g}%",
        "bitmap": chosen.bitmap,
        "foretell": chosen.foretell,
    }


def option_words(values: Values) -> list[str]:
    """Give the words of a command line that say the same."""
    said, words = given(values), list[str]()
    for name, one in PARAMETERS.items():
        if name not in said or not one.option:
            continue
        if one.takes != "flag":
            words += [one.option, words_of(said[name])]
        elif said[name] != (name in _ON_BY_DEFAULT):
            words.append(one.option if said[name] else f"--no-{name}")
    return words
