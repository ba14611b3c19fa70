"""Making one migration of an experiment: from a task to its line in results.jsonl, here or on another machine.

Whatever ends a migration is a result. Its outcome is `completed` only where the guest arrived as it was: a migration whose proofs
do not hold has `failed`. The one thing that is no result is a person's interruption.
"""

from __future__ import annotations

import shlex
import socket
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pagefire.protocol.errors import Cancelled, PagefireError
from pagefire.scripts.experiment.job import Job, make_job
from pagefire.scripts.experiment.one_migration import Ran
from pagefire.scripts.experiment.site import Site, site_of
from pagefire.scripts.experiment.sweep import Task
from pagefire.scripts.experiment.turn import one_at_a_time

Json = dict[str, Any]

#: Experiments for which this process has made its warm-up migrations.
_warm: set[str] = set()


@dataclass(frozen=True, slots=True)
class Work:
    """A task and what it takes beside; `argument` is what `pagefire experiment run` was given, `quick` with it."""

    task: Task
    name: str
    argument: str
    quick: bool
    warmup: str
    warmup_migrations: int

    def job(self) -> Job:
        """Parse it; raises UsageError, FeatureMissing."""
        return make_job(self.task.case.values, self.task.seed, self.warmup, f"{self.name}: {self.task.case.label}")

    def command(self, job: Job, site: Site) -> str:
        """Give the command that repeats this migration alone."""
        if job.fault is None:
            return site.command(job, self.warmup)
        words = [
            "pagefire",
            "experiment",
            "run",
            self.argument,
            "--only",
            self.task.key,
            "--results",
            f"alone-{self.task.key}",
        ]
        return shlex.join([*words, "--quick"] if self.quick else words)


def require_possible(work: Work) -> None:
    """Raise, before anything is run, what this migration lacks here."""
    job = work.job()
    site_of(job.link).require_possible(job)


def do(work: Work) -> Json:
    """Make the migration, when it is this machine's turn; gives its line. Raises Cancelled when a person interrupts it."""
    with one_at_a_time():
        job = work.job()
        site = site_of(job.link)
        if work.name not in _warm:
            for _ in range(work.warmup_migrations):
                site.run(job)
            _warm.add(work.name)
        started_at, began_s = datetime.now().astimezone(), time.monotonic()
        try:
            ran = site.run(job)
        except Cancelled:
            raise
        except PagefireError as error:
            ran = Ran(None, error)
        took_s = time.monotonic() - began_s
    outcome, why = outcome_of(ran)
    return {
        "key": work.task.key,
        "case": dict(work.task.case.values),
        "repetition": work.task.repetition,
        "seed": work.task.seed,
        "command": work.command(job, site),
        "started_at": started_at.isoformat(timespec="seconds"),
        "took_s": round(took_s, 3),
        "machine": socket.gethostname(),
        "outcome": outcome,
        "error": why,
        "report": ran.report,
        "fault": ran.fault,
    }


def outcome_of(ran: Ran) -> tuple[str, Json | None]:
    """Say how it ended, completed, cancelled or failed, and {what, why, next} where it did not complete."""
    if ran.error is not None:
        error = {"what": ran.error.what, "why": ran.error.why, "next": ran.error.do}
        return ("cancelled" if isinstance(ran.error, Cancelled) else "failed"), error
    proofs = [ran.report["verified"] if ran.report is not None else None, (ran.fault or {}).get("verified")]
    problems = [problem for proof in proofs if proof is not None for problem in _problems(proof)]
    if problems:
        why = "; ".join(problems)
        return "failed", {
            "what": "the guest is not what it was",
            "why": why,
            "next": "keep the report: this is a defect of pagefire",
        }
    return "completed", None


def _problems(verified: Json) -> list[str]:
    problems = list(verified["problems"])
    if verified["commits_lost"] or verified["commits_repeated"]:
        problems.append(f"{verified['commits_lost']} commits were lost and {verified['commits_repeated']} repeated")
    if verified["invariant"] is False and not problems:
        problems.append("the workload's check does not hold")
    return problems
