"""One migration of an experiment, ready to run: what its parameters mean, parsed by the command line's own code."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.protocol.errors import UsageError
from pagefire.protocol.units import parse_duration
from pagefire.scripts import options as o
from pagefire.scripts.compare import require_backing
from pagefire.scripts.experiment.faults import Fault, parse_fault
from pagefire.scripts.experiment.parameters import FAULT, LINK, Value, Values, given, option_words, words_of
from pagefire.scripts.move_options import MoveOptions
from pagefire.source_host.options import MigrationOptions


@dataclass(frozen=True, slots=True)
class Job:
    """A guest, how it migrates, over which link (as asked, by the names of `LINK`; empty: loopback), and what goes wrong.

    `options` has no destination yet. `values` are the parameters as they were written; `seed` is in `config`.
    """

    config: GuestConfig
    options: MigrationOptions
    pins: Mapping[str, str | None]
    warmup_s: float
    link: Mapping[str, str]
    fault: Fault | None
    values: Values

    def command(self, verb: str, warmup: str, *more: str) -> str:
        """Give the command line that repeats it alone; `verb` is demo, or what else takes all options of demo."""
        seed = ["--seed", str(self.config.seed)]
        return shlex.join(["pagefire", verb, *option_words(self.values), *seed, "--warmup", warmup, *more])


def make_job(values: Values, seed: int, warmup: str, where: str) -> Job:
    """Parse what was written; raises UsageError that begins with `where`, FeatureMissing for what this host does not have."""
    said = given(values)
    try:
        tracing = _group(o.TracingOptions, said)
        config = _group(o.GuestOptions, {**said, "seed": seed}).config()
        options = _group(MoveOptions, said).migration("", tracing)
        tracing.require_possible_for(config.backing)
        pins = _group(o.PinningOptions, said).given()
        fault = parse_fault(words_of(said[FAULT])) if FAULT in said else None
        warmup_s = parse_duration(warmup)
    except UsageError as error:
        raise UsageError(f"{where}: {error.what}", error.why, error.do) from error
    require_backing(config.backing)
    link = {name: words_of(said[name]) for name in LINK if name in said}
    return Job(config, options, pins, warmup_s, link, fault, values)


def _group(group: type[Any], said: Mapping[str, Value]) -> Any:
    """Fill in a group of options with those of `said` that it has."""
    fill: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        name = field.name.replace("_", "-")
        if name in said:
            # Flags and counts are what they are; whatever else the command line takes is words.
            fill[field.name] = said[name] if isinstance(field.default, bool | int) else words_of(said[name])
    return group(**fill)
