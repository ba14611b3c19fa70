"""`pagefire lab --source-host --dest-host`: hosts that ssh reaches: a lab's namespaces, each with an sshd."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagefire.scripts.lab.network import LabNetwork
from pagefire.scripts.lab.plan import DEST_ADDRESS, HOST_INTERFACE, SOURCE_ADDRESS
from pagefire.scripts.lab.shape import LinkShape
from tests.e2e.host_pair import assert_verified, run
from tests.e2e.place import Place

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.root, pytest.mark.soak]

PORT = 2222


@pytest.fixture
def sshd() -> str:
    if os.geteuid() != 0:
        pytest.skip("network namespaces are missing: they need root")
    for tool in ("ssh", "ssh-keygen", "ip", "tc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (openssh-client, iproute2)")
    found = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
    if found is None:
        pytest.skip("sshd is missing (openssh-server): nobody can be reached by ssh")
    return found


@contextlib.contextmanager
def reachable(network: LabNetwork, sshd: str, folder: Path) -> Iterator[Path]:
    """Run an sshd in both hosts' namespaces; gives the configuration with which ssh gets there."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPort {PORT}\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nPermitRootLogin yes\nAcceptEnv *\n"
    )
    config = folder / "ssh_config"
    config.write_text(
        f"Host *\nPort {PORT}\nIdentityFile {folder}/user\nIdentitiesOnly yes\nUser root\nLogLevel ERROR\n"
        f"StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nSendEnv PAGEFIRE_* XDG_* HOME\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        for side in ("source", "dest"):
            daemon = subprocess.Popen([*network.before(side), sshd, "-D", "-e", "-f", str(folder / "sshd_config")])
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        _until_it_answers(network)
        yield config


def _until_it_answers(network: LabNetwork) -> None:
    script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()"
    deadline = time.monotonic() + 10
    for address in (SOURCE_ADDRESS, DEST_ADDRESS):
        call = [*network.before("wire"), sys.executable, "-c", script, address, str(PORT)]
        while subprocess.run(call, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{socket.gethostname()}: no sshd at {address}"
            time.sleep(0.1)


def qdiscs(network: LabNetwork, side: str) -> list[str]:
    shown = [*network.before(side), "tc", "-j", "qdisc", "show", "dev", HOST_INTERFACE]
    return [one["kind"] for one in json.loads(subprocess.run(shown, capture_output=True, check=True).stdout)]


def test_a_guest_moves_between_machines_that_ssh_reaches(sshd: str, place: Place, tmp_path: Path) -> None:
    """Shaped, measured, migrated, and both machines are as they were."""
    with LabNetwork(LinkShape()) as network, reachable(network, sshd, tmp_path) as config:
        hosts = ("--source-host", SOURCE_ADDRESS, "--dest-host", DEST_ADDRESS, "--ssh", f"ssh -F {config}")
        lab = ("lab", *hosts, "--link-rate", "300mbit", "--insecure", "--memory", "64MiB", "--warmup", "300ms")
        command = (*network.before("wire"), sys.executable, "-m", "pagefire.scripts.cli")
        code, out, err = run(
            *lab, "--settle", "200ms", "--json", "-", "--report", str(tmp_path / "report"), command=command
        )
        assert code == 0, err
        report = json.loads(out)
        assert_verified(report)
        assert report["link"]["shaper"] == "tbf"
        assert abs(report["link"]["measured"]["rate_bps"] - 300e6) < 30e6
        assert report["destination"].startswith(f"{DEST_ADDRESS}:")
        assert [qdiscs(network, side) for side in ("source", "dest")] == [["noqueue"], ["noqueue"]]
        assert not place.processes("scripts.cli dest")
        code, _, err = run(*lab, "--workload", "json:Nothing", command=command)
        assert code == 1
        assert "json:Nothing" in err.splitlines()[-1]
    place.assert_nothing_left()
