"""The commands of README.md and docs/, run as a reader would run them: from a folder that looks like the checkout.

Ports are free ones, so that whoever runs the tests may have daemons of their own. A daemon is one that does not end by itself; the
next line follows when it has said that it is ready. Two hosts are two network namespaces with a name for each other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from tests.documentation import ROOT, Block, blocks
from tests.e2e.host_pair import assert_verified, finish
from tests.e2e.namespaces import DEST_ADDRESS, SOURCE_ADDRESS, Namespaces
from tests.e2e.place import Place
from tests.support.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

#: Ports that the pages use.
PORTS = ("7700", "9100", "9101")
#: The longest moves 1 GiB at 200 Mbit/s, which takes 43 s by itself.
BLOCK_PATIENCE_S = 110.0
#: What `make test` runs.
AT_ONCE = ("keys",)


def chosen(kind: str) -> list[ParameterSet]:
    """Give the blocks of a kind; those whose like is tested elsewhere are run by `make soak`."""
    marks = {name: [] if name in AT_ONCE else [pytest.mark.soak] for name in (block.name for block in blocks(kind))}
    return [pytest.param(block, id=block.name, marks=marks[block.name]) for block in blocks(kind)]


def checkout(folder: Path) -> Path:
    """Let commands find in a folder what they find in the checkout."""
    folder.mkdir(exist_ok=True)
    for name in ("Makefile", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("pyproject.toml", "requirements.lock"):
        # Older than any installation: make must not install what is not here.
        shutil.copyfile(ROOT / name, folder / name)
        os.utime(folder / name, (0, 0))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of the test's own."""
    return checkout(tmp_path)


class Host:
    """Where commands are run: in a folder that holds its keys, behind `before`, and with an environment of its own."""

    def __init__(self, folder: Path, before: Sequence[str] = (), **environment: str) -> None:
        self.folder = folder
        self._before = before
        self._environment = os.environ | {"PAGEFIRE_KEYS": str(folder / "keys")} | environment

    @contextmanager
    def shell(self, text: str) -> Iterator[subprocess.Popen[str]]:
        """Have commands run while this lasts."""
        with subprocess.Popen(
            [*self._before, "bash", "-euc", text], cwd=self.folder, env=self._environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def run(self, text: str) -> str:
        """Run commands to their end, all of them well; gives what they said."""
        with self.shell(text) as process:
            code, out, err = finish(process, BLOCK_PATIENCE_S)
        assert code == 0, (text, out, err)
        return out


class Terminals:
    """Lines as a reader would type them: daemons run on until all of it ends, in the order opposite to that of their beginning."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._daemons: list[subprocess.Popen[str]] = []

    def type(self, line: str, host: Host) -> None:
        """Type a line on a host; comes back when it has ended, or says that it is ready."""
        if not re.search(r"pagefire (dest|source)\b", line):
            host.run(line)
            return
        # exec: it is the daemon that is asked to end.
        daemon = self._open.enter_context(host.shell(f"exec {line}"))
        self._daemons.append(daemon)
        assert daemon.stdout is not None
        assert daemon.stdout.readline().startswith("pagefire "), daemon.communicate()

    def __enter__(self) -> Terminals:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._open:
            for daemon in reversed(self._daemons):
                daemon.terminate()
                code, out, err = finish(daemon)
                assert error is not None or code == 0, (out, err)


@pytest.mark.parametrize("block", chosen("run"))
def test_blocks_run_as_they_stand(block: Block, folder: Path, place: Place) -> None:
    if block.name == "lab" and os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for file in blocks("write"):
        if file.page == block.page:
            (folder / file.name).write_text(file.text)
    out = Host(folder).run(block.text)
    for report in folder.glob("*.json"):
        verified = json.loads(report.read_text())["verified"]
        assert (verified["commits_lost"], verified["commits_repeated"]) == (0, 0)
    if block.name == "first-experiment":
        assert re.search(r"hybrid +stun +[\d.]+ ms, total +[\d.]+ s, \d+ rounds\nprecopy +stun", out), out
    place.assert_nothing_left()


@pytest.mark.parametrize("block", chosen("terminals"))
def test_terminals(block: Block, folder: Path, place: Place) -> None:
    if "curl" in block.text and shutil.which("curl") is None:
        pytest.skip("curl is missing")
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    host = Host(folder)
    with Terminals() as terminals:
        for line in block.commands:
            terminals.type(re.sub("|".join(PORTS), lambda found: ports[found[0]], line), host)
    place.assert_nothing_left()


@pytest.mark.root
@pytest.mark.soak
def test_two_hosts(namespaces: Namespaces, tmp_path: Path, place: Place) -> None:
    """All of it in the order of the page, from the making of the keys to the way back."""
    names = tmp_path / "hosts"
    names.write_text(f"127.0.0.1 localhost\n{SOURCE_ADDRESS} here\n{DEST_ADDRESS} there\n")
    # `ip netns exec` gives a command mounts of its own: nobody else sees these names.
    named = ["sh", "-c", f'mount --bind {names} /etc/hosts; exec "$@"', "sh"]
    hosts = {
        name: Host(
            checkout(tmp_path / name), [*namespaces.inside(inside), *named], PAGEFIRE_RUNTIME_DIR=f"{place.runtime}-{name}"
        )
        for name, inside in zip(("here", "there"), namespaces, strict=True)
    }  # fmt: skip
    here, there = hosts.values()
    (keys,) = (block for block in blocks("run") if block.name == "keys")
    here.run(keys.text)
    shutil.copytree(here.folder / "keys" / "hosts" / "there", there.folder / "keys")
    with Terminals() as terminals:
        for block in (block for block in blocks("two hosts") if block.name in hosts):
            for line in block.commands:
                terminals.type(line, hosts[block.name])
        assert "guest0" in here.run(".venv/bin/pagefire status")
    report = json.loads((here.folder / "report.json").read_text())
    assert_verified(report)
    assert report["destination"] == "there:7700"
    assert (here.folder / "report" / "timeline.png").exists()
    assert not any(Path(f"{place.runtime}-{name}").exists() for name in hosts)
    place.assert_nothing_left()


def test_make_demo_is_the_demo() -> None:
    """What `make demo` runs is run by the blocks above; here, that it is that which it runs."""
    for block in blocks("make"):
        dry = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", "--directory", ROOT, block.name, "ARGS=--memory 64MiB"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert dry.splitlines()[-1] == f".venv/bin/pagefire {block.name} --memory 64MiB"


@pytest.mark.soak
def test_make_demo_as_it_stands(folder: Path, place: Place) -> None:
    out = Host(folder).run("make demo")
    assert "No commit was lost or repeated" in out
    assert list(folder.glob("pagefire-report-*/timeline.png"))
    place.assert_nothing_left()
