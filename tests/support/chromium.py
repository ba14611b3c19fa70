"""A headless Chromium that opens one page, without a network: what became of it, and what its console said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Opened:
    """The document when its scripts had run, and the lines of the console."""

    document: str
    console: list[str]


def need_chromium() -> str:
    """Give the browser's path; skips the test by name where there is none."""
    for name in (os.environ.get("CHROMIUM", ""), *_NAMES):
        if name and (found := shutil.which(name)):
            return found
    pytest.skip(f"no Chromium: none of {', '.join(_NAMES)} is in PATH (Debian: apt install chromium)")


def open_page(page: Path, screenshot: Path | None = None, size: str = "1100,900") -> Opened:
    """Open a file; every name that it would look up is unknown, so that whatever it fetched would fail and be told."""
    with tempfile.TemporaryDirectory(prefix="pf-chromium-") as profile:
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", "--disable-extensions", "--enable-logging=stderr", "--v=0",
            f"--window-size={size}", "--virtual-time-budget=20000", "--hide-scrollbars",
        ]  # fmt: skip
        wanted = [f"--screenshot={screenshot}"] if screenshot is not None else ["--dump-dom"]
        done = subprocess.run(
            [need_chromium(), *flags, *wanted, page.absolute().as_uri()],
            capture_output=True, text=True, check=True, timeout=_PATIENCE_S,
        )  # fmt: skip
    return Opened(done.stdout, re.findall(r":CONSOLE[:(]\d+\)?\]? (.*)", done.stderr))
