"""The demo, and the lab, as a user without any privilege: uid 65534, with a home and a temporary directory and nothing else.

What that user could not reach (an interpreter or a checkout below a home that is closed to others) is bound into a private
mount namespace at its own path; no file's rights are changed and nothing is copied.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host_pair import assert_verified, run
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.root]

NOBODY = 65534
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of that user's own, where it can get at it."""
    if os.geteuid() != 0:
        pytest.skip("root is missing: only root can become another user")
    for needed in ("unshare", "setpriv"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is missing (util-linux)")
    with tempfile.TemporaryDirectory(prefix="pf-", dir="/tmp") as name:
        root = Path(name)
        (root / "tmp").mkdir()
        for directory in (root, root / "tmp"):
            os.chown(directory, NOBODY, NOBODY)
        yield root


def closed_ancestor(path: Path) -> Path | None:
    """Find the first directory above a path that others may not pass."""
    above = reversed(path.resolve().parents)
    return next((directory for directory in above if not directory.stat().st_mode & 0o001), None)


def opening(paths: list[Path]) -> str:
    """Give the shell lines that make paths reachable in this mount namespace: their closed ancestors become empty open ones."""
    closed: dict[Path, list[Path]] = {}
    for path in paths:
        if (ancestor := closed_ancestor(path)) is not None:
            closed.setdefault(ancestor, []).append(path.resolve())
    lines = ["keep=$(mktemp -d -p /dev/shm)", 'mount -t tmpfs none "$keep"']
    for ancestor, within in closed.items():
        for number, path in enumerate(within):
            lines += [f'mkdir -p "$keep/{number}"', f'mount --bind {shlex.quote(str(path))} "$keep/{number}"']
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(ancestor))}")
        for number, path in enumerate(within):
            lines += [f"mkdir -p {shlex.quote(str(path))}", f'mount --bind "$keep/{number}" {shlex.quote(str(path))}']
            lines.append(f'umount "$keep/{number}"')
    return "\n".join([*lines, 'umount "$keep"', 'rmdir "$keep"'])


@pytest.mark.parametrize("command", ["demo", *soaked("lab")])
def test_it_needs_no_privilege(command: str, home: Path) -> None:
    """A lab goes over loopback then, and says so."""
    environment = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    demo = [
        sys.executable,
        "-m",
        "pagefire.scripts.cli",
        command,
        "--memory",
        "64MiB",
        "--warmup",
        "300ms",
        "--json",
        "-",
    ]
    become = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--inh-caps=-all",
        "--no-new-privs",
    ]
    variables = [f"{name}={value}" for name, value in environment.items()]
    lines = [
        opening([Path(sys.base_prefix), Path(sys.prefix), CHECKOUT]),
        f"cd {shlex.quote(str(home))}",
        f"exec {shlex.join([*become, 'env', '-i', *variables, *demo])}",
    ]
    in_private = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")
    code, out, err = run("\n".join(lines), command=in_private)
    assert code == 0, err
    report = json.loads(out)
    assert_verified(report)
    assert report["tracker"] == "pagemap-scan"
    if command == "lab":
        assert "no network namespace can be made without root: plain loopback" in err
        assert report["link"]["shaper"] == "none"
    assert not list((home / "tmp").iterdir())
    (folder,) = home.glob("pagefire-report-*")
    assert {path.name for path in folder.iterdir()} == {"report.json", "summary.txt", "timeline.png"}
    assert {path.stat().st_uid for path in folder.iterdir()} == {NOBODY}
