"""One migration of an experiment, at a place: a pair of daemons and a guest of its own, tied to this process, and gone afterwards.

Where the place comes from is a site's affair (site.py).
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pagefire.protocol.errors import Cancelled, PagefireError
from pagefire.scripts.daemons import Pair
from pagefire.scripts.demo import Place, pair_for
from pagefire.scripts.experiment.faults import daemon_arguments, strike
from pagefire.scripts.experiment.job import Job
from pagefire.scripts.experiment.tied import tied_to_us
from pagefire.scripts.migrating import Migration
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a migration ended: its report, as far as there is one; the error that ended it; what became of a fault that was made."""

    report: Json | None
    error: PagefireError | None = None
    fault: Json | None = None


def run_at(job: Job, options: MigrationOptions, place: Place) -> Ran:
    """Start the daemons of a job where `place` says, migrate with `options`, make its fault.

    An error of the migration is part of what is given. Raises Cancelled when a person interrupts.
    """
    tied = tied_to_us()
    with tempfile.TemporaryDirectory(prefix=folder_prefix(os.getpid())) as folder:
        here = dataclasses.replace(
            place,
            source_before=(*tied, *place.source_before),
            dest_before=(*tied, *place.dest_before),
            within=place.within or Path(folder),
        )
        both = daemon_arguments(options) if job.fault is not None else []
        with pair_for(job.config, job.pins, here, both, comes_back=job.fault is not None) as pair:
            time.sleep(job.warmup_s)
            if job.fault is None:
                return _migrate(pair, options)
            ended, fault = strike(pair, options, job.fault)
            return Ran(ended.report, ended.error, fault)


def _migrate(pair: Pair, options: MigrationOptions) -> Ran:
    chosen = dataclasses.asdict(dataclasses.replace(options, to=pair.destination))
    migration = Migration(pair.source_socket, pair.name, chosen, Console(quiet=True))
    report, failure = None, None
    try:
        report = migration.run()
    except PagefireError as error:
        report, failure = migration.report_of_failure, error
    if migration.cancel_wanted:
        raise Cancelled("the experiment was interrupted", "what was finished is kept", "run it again to go on")
    return Ran(report, failure)


def folder_prefix(pid: int) -> str:
    """Give how the folders begin in which an experiment's process has its daemons', by which those of a killed one are found."""
    return f"pagefire-x{pid}-"
