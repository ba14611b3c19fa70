"""The experiments that come with pagefire: a TOML file each, found by its name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pagefire.protocol.errors import UsageError
from pagefire.scripts.experiment.parameters import meant
from pagefire.scripts.experiment.scenario import Scenario, load_scenario, parse_scenario

_ENDING = ".toml"
#: In the order in which they are listed and run: from one migration to what takes longest to read.
NAMES = (
    "timeline", "modes", "convergence", "size", "stuns", "wan", "compression", "auto-converge", "fault-latency", "faults",
    "vsphere",
)  # fmt: skip


def text_of(name: str) -> str:
    """Give a file of the catalogue as it is written; raises UsageError for a name that is not in it."""
    if name not in NAMES:
        raise UsageError(
            f"there is no experiment {name!r}",
            f"the catalogue has {', '.join(NAMES)}",
            f"{meant(name, NAMES)}, or name a file",
        )
    return resources.files(__package__).joinpath(name + _ENDING).read_text(encoding="utf-8")


def load(name_or_file: str, *, quick: bool) -> Scenario:
    """Load a scenario: of a file where it looks like one, else of the catalogue. Raises UsageError."""
    if name_or_file.endswith(_ENDING) or "/" in name_or_file:
        return load_scenario(Path(name_or_file), quick=quick)
    return parse_scenario(text_of(name_or_file), name_or_file, name_or_file + _ENDING, quick=quick)
