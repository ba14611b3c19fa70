"""An experiment's migrations in a lab: two hosts and a wire in network namespaces, over a link as `[link]` asks for it.

Every migration has a lab of its own, whose link is measured before: cases alternate, and so do links. One that is not what was
asked makes its migration fail. The seed of a guest is the seed of its link too: what is lost in one is lost in its repetition.
"""

from __future__ import annotations

from pagefire.protocol.errors import UsageError
from pagefire.scripts.experiment.job import Job
from pagefire.scripts.experiment.one_migration import Ran, run_at
from pagefire.scripts.lab.network import LabNetwork
from pagefire.scripts.lab.run import measured_lab
from pagefire.scripts.lab.shape import LinkShape, shape_of


class InLab:
    """Two network namespaces joined by a third, which shapes. Needs root."""

    def require_possible(self, job: Job) -> None:
        if job.fault is not None:
            raise UsageError(
                "a fault cannot be made on a shaped link",
                "they are made over loopback",
                "leave out [link], or the fault",
            )
        link_of(job)
        LabNetwork.require_possible()

    def run(self, job: Job) -> Ran:
        """Migrate; the report's `link` is there as `pagefire lab` has it."""
        with measured_lab(link_of(job), job.options) as lab:
            with lab.counted() as link:
                ran = run_at(job, lab.options, lab.place)
            if ran.report is not None:
                ran.report["link"] = link
            return ran

    def command(self, job: Job, warmup: str) -> str:
        return job.command("lab", warmup, "--link-seed", str(job.config.seed))


def link_of(job: Job) -> LinkShape:
    """Read what is asked of the link; raises UsageError."""
    asked = {name.replace("-", "_"): words for name, words in job.link.items()}
    return shape_of(**asked, seed=job.config.seed)
