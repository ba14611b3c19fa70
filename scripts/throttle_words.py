"""What auto-converge did, in a sentence for the summary of a migration."""

from __future__ import annotations

from typing import Any

from pagefire.protocol.units import format_duration


def throttle_words(throttle: dict[str, Any]) -> str:
    """Say how much the guest was slowed (a report's `throttle`), or why it was not; figures that are missing are left out."""
    if reason := throttle.get("reason"):
        return f"not used: {reason}"
    slept_s = throttle.get("slept_s") or []
    if not any(slept_s):
        return "not needed: nothing was taken from the guest"
    words = (
        f"the vCPUs slept {format_duration(sum(slept_s) / len(slept_s))} each, {format_duration(max(slept_s))} at most"
    )
    rounds = [one for one in throttle.get("rounds") or [] if one.get("mean") is not None]
    if not rounds:
        return words
    most = max(rounds, key=lambda one: float(one["mean"]))
    return f"{words}: in round {most['round']} {most['mean']:.0%} of the time, one of them {most['max']:.0%}"
