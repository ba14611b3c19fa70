"""What this program calls itself to a peer and in a report."""

from __future__ import annotations

import importlib.metadata
import platform

import pagefire
from pagefire.protocol.report import Versions


def software_name() -> str:
    return f"pagefire {pagefire.__version__}"


def versions() -> Versions:
    return Versions(pagefire.__version__, platform.python_version(), importlib.metadata.version("uvloop"))
