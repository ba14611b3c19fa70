"""A convergence policy of one's own, as docs/convergence.md shows it."""

from __future__ import annotations

from pagefire.protocol.report import Round
from pagefire.source_host import convergence
from pagefire.source_host.convergence import Limits, Verdict


def patient(rounds: list[Round], limits: Limits, elapsed_s: float) -> Verdict:
    """Go on as long as a round leaves less than the best one before it, whatever the built-in rule would say of gains."""
    verdict = convergence.judge(rounds, limits, elapsed_s)
    left = [one.dirty_pages_after for one in rounds]
    if verdict.stop and "gained nothing" in verdict.reason and left[-1] < min(left[:-1]):
        return Verdict(False, "", f"Going on after round {rounds[-1].round}: {left[-1]} pages left, fewer than ever")
    return verdict
