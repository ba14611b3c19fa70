"""Where a migration of an experiment happens: this machine's loopback, or a link that it makes (lab_site.py).

`Site` is all that the runner knows of it. A further one makes its link and calls `run_at` (one_migration.py) with the place of its
daemons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pagefire.scripts.demo import LOOPBACK
from pagefire.scripts.experiment.job import Job
from pagefire.scripts.experiment.lab_site import InLab
from pagefire.scripts.experiment.one_migration import Ran, run_at


class Site(Protocol):
    """Runs one job and leaves nothing behind."""

    def require_possible(self, job: Job) -> None:
        """Raise FeatureMissing or UsageError, before anything is run, for a job that cannot be done here."""

    def run(self, job: Job) -> Ran:
        """Migrate; an error of the migration is part of what is given. Raises Cancelled when a person interrupts."""

    def command(self, job: Job, warmup: str) -> str:
        """Give the command line that repeats a job without a fault alone."""


class Loopback:
    """Both hosts on 127.0.0.1. Needs no rights."""

    def require_possible(self, job: Job) -> None:
        """Nothing more is needed than the job already is."""

    def run(self, job: Job) -> Ran:
        return run_at(job, job.options, LOOPBACK)

    def command(self, job: Job, warmup: str) -> str:
        return job.command("demo", warmup)


def site_of(link: Mapping[str, str]) -> Site:
    """Give the site for a link as it was asked for."""
    return InLab() if link else Loopback()
