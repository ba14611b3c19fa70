"""Doctor: every probe answers and leaves nothing behind, with privilege and without; the verdict follows from the answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pagefire.scripts import doctor
from pagefire.scripts.doctor import Finding, State, can_migrate, examine, exit_status, print_findings

FINE = Finding("Kernel", "userfaultfd", State.YES, "opened", "nothing works", "a kernel with it", essential=True)
SLOW = Finding("Kernel", "WP_ASYNC", State.NO, "not offered", "slow", "sudo modprobe " + "x" * 120)
DARK = Finding("Network lab", "tc netem", State.UNKNOWN, "unknown without root", "no delay", "run as root")


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return examine()


def printed(findings: list[Finding], width: int = 80) -> str:
    page = StringIO()
    print_findings(Console(file=page, width=width), findings)
    return page.getvalue()


def open_descriptors() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }


def network_namespace_leftovers() -> list[str]:
    return [line for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines() if "pagefire" in line]


def test_only_something_essential_that_is_missing_forbids_migration() -> None:
    assert can_migrate([FINE, SLOW, DARK])
    assert exit_status([FINE, SLOW, DARK]) == 0
    assert exit_status([FINE, SLOW, replace(FINE, state=State.UNKNOWN)]) == 0
    assert exit_status([replace(FINE, state=State.NO), SLOW]) == 1


def test_what_is_missing_is_printed_with_its_cost_and_a_line_to_copy() -> None:
    page = printed([FINE, SLOW, DARK])
    assert "nothing works" not in page
    assert "without it: slow" in page
    assert any(line.strip() == f"to enable: {SLOW.enable}" for line in page.splitlines())
    assert "Migration works here; 2 of 3 things are missing, limited or unknown." in page


def test_the_verdict_names_what_forbids_migration() -> None:
    assert "Migration cannot work here: userfaultfd is missing." in printed([replace(FINE, state=State.NO)])


@pytest.mark.kernel
def test_every_finding_can_be_read_and_what_is_missing_has_a_remedy(findings: list[Finding]) -> None:
    assert {one.topic for one in findings} == {"Kernel", "Memory", "Network lab", "Machine"}
    assert len({one.name for one in findings}) == len(findings)
    for one in findings:
        assert one.found, one
        assert one.state is State.YES or (one.without and one.enable), one
    assert not [one for one in findings if "probe itself failed" in one.found]
    assert printed(findings)


@pytest.mark.kernel
def test_examining_leaves_nothing_behind() -> None:
    before = open_descriptors(), network_namespace_leftovers(), os.listdir("/proc/self/task")
    examine()
    assert (open_descriptors(), network_namespace_leftovers(), os.listdir("/proc/self/task")) == before


@pytest.mark.kernel
def test_a_probe_that_fails_is_unknown_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken_thing() -> list[Finding]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(doctor, "_PROBES", {"Memory": (_broken_thing, doctor._memfd)})
    broken, memfd = examine()
    assert (broken.name, broken.state) == ("broken thing", State.UNKNOWN)
    assert "not permitted" in broken.found
    assert memfd.state is State.YES


def test_a_missing_userfaultfd_forbids_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    from pagefire.guest_workload.linux import userfaultfd

    def refuse() -> userfaultfd.Feature:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(userfaultfd, "supported_features", refuse)
    assert not can_migrate(doctor._userfaultfd())


def test_an_old_kernel_is_told_what_each_feature_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    from pagefire.guest_workload.linux.userfaultfd import DEMAND_PAGING, TRACK_SYNC

    monkeypatch.setattr(
        "pagefire.guest_workload.linux.userfaultfd.supported_features", lambda: TRACK_SYNC | DEMAND_PAGING
    )
    findings = doctor._userfaultfd()
    (slow,) = (one for one in findings if one.name.strip() == "WP_ASYNC")
    assert slow.state is State.NO
    assert "6.7" in slow.enable
    assert can_migrate(findings)


def test_a_failed_trial_of_the_tracker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [("a clean page reads clean", True, ""), ("a written page reads written", False, "lost [5]")]
    monkeypatch.setattr("pagefire.guest_workload.linux.selftest.tracking_self_test", lambda: trials)
    (finding,) = doctor._tracking_self_test()
    assert finding.state is State.LIMITED
    assert finding.found == "1 of 2 trials passed; FAILED a written page reads written: lost [5]"


def test_without_its_tools_the_network_lab_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (finding,) = doctor._network_lab()
    assert finding.state is State.NO
    assert "tc" in finding.found


def test_without_a_namespace_the_network_lab_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(doctor, "_try", lambda _: "unshare failed: Operation not permitted")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    findings = doctor._network_lab()
    assert {one.state for one in findings} == {State.UNKNOWN}
    assert all("unknown without root" in one.found for one in findings)


@pytest.mark.kernel
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: only root can become somebody else")
def test_somebody_without_privilege_can_migrate_too(findings: list[Finding]) -> None:
    missing = [one.name.strip() for one in findings if one.essential and one.state is State.NO]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: not even root can migrate here")
    # The interpreter may lie where that user cannot read, so everything is imported first; PR_SET_DUMPABLE (4) gives the process
    # its own /proc files back, which giving up root takes away.
    script = """
import ctypes, os
import pagefire.guest_workload.linux.selftest
from pagefire.scripts.doctor import examine, exit_status
os.setgroups([]), os.setgid(65534), os.setuid(65534), ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
findings = examine()
broken = [one.found for one in findings if "probe itself failed" in one.found]
raise SystemExit(exit_status(findings) or (str(broken) if broken else 0))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
