"""What an experiment ran on, as far as figures depend on it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pagefire.protocol.transport.software import versions
from pagefire.scripts.bench import plan

Json = dict[str, Any]


def describe_host() -> Json:
    """Describe this machine as it is now: name, kernel, CPUs, memory, load, and the versions of what runs."""
    return {
        **plan.host(),
        "name": platform.node(),
        "cpu_model": _cpu_model(),
        "machine": platform.machine(),
        "versions": asdict(versions()),
    }


def _cpu_model() -> str:
    """Give what the kernel calls the first CPU; not every architecture says."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
