"""How a summary words the installation of tracing."""

from __future__ import annotations

from typing import Any

from pagefire.protocol.units import format_duration


def installed_words(installed: dict[str, Any]) -> str:
    """Say how tracing was installed and what the guest felt of it."""
    by = f" by {installed['tracer']}" if installed["policy"] == "loose" else ""
    took = (
        f"{installed['policy']}{by}, {installed['granularity']}: installed in {format_duration(installed['install_s'])}"
    )
    if installed.get("guest_gap_s") is None:
        return f"{took}, with the first round"
    return f"{took}; no vCPU committed for {format_duration(installed['guest_gap_s'])} in it"
