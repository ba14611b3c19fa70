"""What this host offers to migrations, found by trying it, and the line that enables what is missing.

Every probe does the thing itself, as the user who asks: it opens a userfaultfd, scans a page map, maps a huge page, adds a queueing
discipline to a scratch network namespace. Versions are printed, never believed. What cannot be tried without privilege is
`unknown`, not `no`. Whatever a probe creates ends with its descriptor or with the child process that holds the namespace, also
when the probe fails; only a kernel module that the kernel loads in order to answer stays loaded.

Whether the tracker is sound is not decided here: the tracking self-test is guest_workload's.
"""

from __future__ import annotations

import enum
import mmap
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagefire.protocol.pages import GRANULE_BYTES, PAGE_BYTES
from pagefire.protocol.units import format_count, format_size


class State(enum.Enum):
    YES = "yes"
    LIMITED = "limited"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a migration uses.

    found: what the probe saw. without: what stops working where it is missing. enable: the line to type, or what to change.
    essential: no migration at all can work here without it.
    """

    topic: str
    name: str
    state: State
    found: str
    without: str = ""
    enable: str = ""
    essential: bool = False


def examine() -> list[Finding]:
    """Try everything, in a second or two; leaves nothing behind. A probe that the system refuses to run is `unknown`."""
    findings: list[Finding] = []
    for topic, probes in _PROBES.items():
        for probe in probes:
            try:
                findings += probe()
            except (OSError, subprocess.SubprocessError) as error:
                name = probe.__name__.strip("_").replace("_", " ")
                findings.append(Finding(topic, name, State.UNKNOWN, f"the probe itself failed: {error}"))
    return findings


def can_migrate(findings: Iterable[Finding]) -> bool:
    """Tell whether migration can work here at all: nothing essential is missing."""
    return not any(one.essential and one.state is State.NO for one in findings)


def exit_status(findings: Iterable[Finding]) -> int:
    """Give doctor's exit status: 0 if migration can work here at all, else 1."""
    return 0 if can_migrate(findings) else 1


def print_findings(console: Console, findings: Iterable[Finding] | None = None) -> list[Finding]:
    """Print the findings by topic, with the cost and the remedy of whatever is not `yes`; examines first when given none."""
    examined = examine() if findings is None else list(findings)
    for topic in dict.fromkeys(one.topic for one in examined):
        console.print(Text(f"\n{topic}" if topic != examined[0].topic else topic, style="bold"))
        for one in examined:
            if one.topic == topic:
                _print_finding(console, one)
    console.print(Text(f"\n{_verdict(examined)}", style="bold"))
    return examined


# -- kernel --------------------------------------------------------------------------------------------------------------

_KERNEL, _MEMORY, _NETWORK, _MACHINE = "Kernel", "Memory", "Network lab", "Machine"


def _versions() -> list[Finding]:
    system, machine = platform.system(), platform.machine()
    supported = system == "Linux" and machine in {"x86_64", "aarch64"}
    return [
        Finding(
            _KERNEL, "kernel", State.YES if supported else State.NO, f"{system} {platform.release()} on {machine}",
            "userfaultfd and PAGEMAP_SCAN are Linux's; system call numbers are known for x86_64 and aarch64 only",
            "use Linux 6.7 or newer on one of these", essential=True,
        ),
        Finding(_KERNEL, "Python", State.YES, f"{platform.python_implementation()} {platform.python_version()}"),
    ]  # fmt: skip


def _userfaultfd() -> list[Finding]:
    from pagefire.guest_workload.linux import userfaultfd
    from pagefire.guest_workload.linux.userfaultfd import Feature

    without = "no page can be tracked and none can be fetched on demand"
    try:
        offered = userfaultfd.supported_features()
    except OSError as error:
        enable = "a kernel with CONFIG_USERFAULTFD=y; in a container, a seccomp profile that allows userfaultfd"
        return [
            Finding(_KERNEL, "userfaultfd", State.NO, error.strerror or str(error), without, enable, essential=True)
        ]
    tracing = "no write can be traced in shared memory: this host cannot be a source"
    demand = "missing pages cannot wait for their content: this host cannot be a destination"
    wanted = (
        (Feature.WP_ASYNC, "each first write waits for the daemon: tens of microseconds, not one", "6.7", False),
        (Feature.PAGEFAULT_FLAG_WP, tracing, "5.7", True),
        (Feature.WP_HUGETLBFS_SHMEM, tracing, "5.19", True),
        (Feature.WP_UNPOPULATED, tracing, "6.4", True),
        (Feature.MISSING_SHMEM, demand, "4.11", True),
        (Feature.MINOR_SHMEM, demand, "5.14", True),
        (Feature.MISSING_HUGETLBFS, "guests on hugetlb cannot arrive here", "4.11", False),
        (Feature.MINOR_HUGETLBFS, "guests on hugetlb cannot arrive here", "5.13", False),
    )
    named = {feature for feature, *_ in wanted}
    others = ", ".join(str(feature.name) for feature in Feature if feature in offered and feature not in named)
    findings = [
        Finding(
            _KERNEL, "userfaultfd", State.YES, f"opened for user-mode faults; features {offered:#x}", without, essential=True
        )
    ]  # fmt: skip
    findings += [
        Finding(
            _KERNEL, f"  {feature.name}", State.YES if feature in offered else State.NO,
            "offered" if feature in offered else "not offered",
            loss, f"a kernel from {since} on", essential,
        )
        for feature, loss, since, essential in wanted
    ]  # fmt: skip
    return [*findings, Finding(_KERNEL, "  not needed", State.YES, others or "none")]


def _faults_in_system_calls() -> list[Finding]:
    # Never a limit: a guest of pagefire touches its memory from user code, and the daemons through mappings of their own.
    setting = _line("/proc/sys/vm/unprivileged_userfaultfd") or "absent"
    found = f"vm.unprivileged_userfaultfd = {setting}; not needed: user-mode faults only"
    return [Finding(_KERNEL, "faults in syscalls", State.YES, found)]


def _pagemap_scan() -> list[Finding]:
    from pagefire.guest_workload.linux import pagemap

    touched = np.ones(PAGE_BYTES, np.uint8)
    page = touched.ctypes.data // PAGE_BYTES * PAGE_BYTES
    without = "dirty pages cannot be collected and protected in one call: only synchronous page fire is left"
    enable = "a kernel from 6.7 on, with CONFIG_PROC_PAGE_MONITOR=y"
    fd = pagemap.open_pagemap(os.getpid())
    try:
        regions = pagemap.Scanner(fd, 16).scan(page, page + PAGE_BYTES, give=pagemap.Category.PRESENT)
    except OSError as error:
        return [Finding(_KERNEL, "PAGEMAP_SCAN", State.NO, error.strerror or str(error), without, enable)]
    finally:
        os.close(fd)
    seen = bool(len(regions)) and bool(int(regions[0, 2]) & pagemap.Category.PRESENT)
    found = "scanned a page of this process" if seen else "a page that is present was not reported"
    return [Finding(_KERNEL, "PAGEMAP_SCAN", State.YES if seen else State.NO, found, without, enable)]


def _tracking_self_test() -> list[Finding]:
    from pagefire.guest_workload.linux.selftest import tracking_self_test

    trials = tracking_self_test()
    failed = [f"{name}: {detail}" if detail else name for name, passed, detail in trials if not passed]
    found = f"{len(trials) - len(failed)} of {len(trials)} trials passed" + "".join(f"; FAILED {one}" for one in failed)
    return [
        Finding(
            _KERNEL, "tracking self-test", State.LIMITED if failed else State.YES, found,
            "asynchronous tracking would lose writes: synchronous page fire is used, slower for the guest",
            "a newer kernel of this series: the fixes are in the stable releases",
        )
    ]  # fmt: skip


# -- memory --------------------------------------------------------------------------------------------------------------


def _memfd() -> list[Finding]:
    try:
        with _mapped_memfd(PAGE_BYTES) as mapping:
            mapping[:] = b"\x5a" * PAGE_BYTES
    except OSError as error:
        why = error.strerror or str(error)
        enable = "a sandbox that allows memfd_create"
        return [Finding(_MEMORY, "memfd", State.NO, why, "no guest can have memory", enable, essential=True)]
    return [Finding(_MEMORY, "memfd", State.YES, "created, mapped and written", essential=True)]


def _transparent_huge_pages() -> list[Finding]:
    path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    setting = _line(path)
    before_kib = _pmd_mapped_kib()
    with _mapped_memfd(4 * GRANULE_BYTES) as mapping:
        # EINVAL where the kernel was built without THP; the count below then says no by itself.
        with suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        mapping[::PAGE_BYTES] = b"\x5a" * (len(mapping) // PAGE_BYTES)
        huge = _pmd_mapped_kib() > before_kib
    return [
        Finding(
            _MEMORY, "THP for memfd", State.YES if huge else State.NO,
            f"shmem_enabled = {_chosen(setting)}; a memfd {'was' if huge else 'was not'} mapped by 2 MiB pages",
            "guest memory is mapped by 4 KiB pages only: tracing takes some 20 times longer to install",
            f"echo advise | sudo tee {path}",
        )
    ]  # fmt: skip


def _hugetlb() -> list[Finding]:
    findings = []
    for name, size_bytes, size_flag, pages, lacking in (
        ("hugetlb 2 MiB", 2 << 20, os.MFD_HUGE_2MB, 1024, "no guest on hugetlb (--backing hugetlb)"),
        ("hugetlb 1 GiB", 1 << 30, os.MFD_HUGE_1GB, 4, "nothing: no guest is made of such pages"),
    ):
        pool = f"/sys/kernel/mm/hugepages/hugepages-{size_bytes // 1024}kB"
        reserved = f"{_line(f'{pool}/free_hugepages') or 'no'} free of {_line(f'{pool}/nr_hugepages') or 'no'} reserved"
        try:
            # The mapping is not touched: mmap alone reserves the page or fails.
            with _mapped_memfd(size_bytes, os.MFD_HUGETLB | size_flag):
                state, found = State.YES, f"{reserved}; mapped one"
        except OSError as error:
            state, found = State.NO, f"{reserved}; mapping one failed: {error.strerror}"
        enable = f"echo {pages} | sudo tee {pool}/nr_hugepages"
        findings.append(Finding(_MEMORY, name, state, found, lacking, enable))
    return findings


def _swap() -> list[Finding]:
    swap = psutil.swap_memory()
    zram = Path("/sys/block/zram0").exists()
    enable = "sudo sh -c 'echo 1G > /sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0'"
    return [
        Finding(
            _MEMORY, "swap", State.YES if swap.total else State.NO,
            f"{format_size(swap.total)}, {format_size(swap.used)} used; zram device {'present' if zram else 'absent'}",
            "guests have no swapped-out pages: the swap bitmap stays empty",
            enable if zram else f"sudo modprobe zram, then {enable}",
        )
    ]  # fmt: skip


# -- network lab ---------------------------------------------------------------------------------------------------------

#: What is tried in a scratch namespace: name, command, the kernel's module, what is lost without it.
_LAB = (
    ("veth", "ip link add pagefire0 type veth peer name pagefire1", "veth", "no link between two namespaces"),
    ("TUN", "ip tuntap add dev pagefire0 mode tun", "tun", "no link through a user-space shaper"),
    ("tc netem", "tc qdisc add dev lo root netem delay 1ms", "sch_netem", "delay and loss must be made in user space"),
    (
        "tc tbf", "tc qdisc add dev lo root tbf rate 1gbit burst 128kb latency 50ms",
        "sch_tbf", "no link of a given rate (token bucket)",
    ),
    ("tc htb", "tc qdisc add dev lo root handle 1: htb", "sch_htb", "no shares of a link"),
)  # fmt: skip


_DENIED = re.compile("not permitted|permission denied", re.IGNORECASE)


def _network_lab() -> list[Finding]:
    privileged = os.geteuid() == 0
    # The namespace lives as long as the one command in it: nothing is left to undo, however the command ends.
    scratch = ("unshare", "--net") if privileged else ("unshare", "--user", "--map-root-user", "--net")
    without = "no impaired or shaped link: demonstrations over loopback only"
    missing = [tool for tool in ("unshare", "ip", "tc") if shutil.which(tool) is None]
    if missing:
        enable = "sudo apt install iproute2 util-linux"
        return [Finding(_NETWORK, "tools", State.NO, f"{', '.join(missing)} not found", without, enable)]
    refused = _try((*scratch, "true"))
    if refused:
        found = refused if privileged else f"unknown without root; a user namespace was refused: {refused}"
        state = State.NO if privileged else State.UNKNOWN
        findings = [Finding(_NETWORK, "network namespaces", state, found, without, "run as root")]
        for name, _, module, loss in _LAB:
            hint = "its module is here" if _module_present(module) else "its module was not found"
            findings.append(_unknown(name, hint, loss))
        return findings
    state, found = State.YES, "one was made and left"
    if not privileged:
        state, found = State.LIMITED, "in a user namespace of one's own only"
    findings = [Finding(_NETWORK, "network namespaces", state, found, without, "run as root")]
    for name, command, module, loss in _LAB:
        refused = _try((*scratch, *command.split()))
        state, found = State.NO if refused else State.YES, refused or f"tried: {command}"
        if not privileged and _DENIED.search(refused):
            findings.append(_unknown(name, refused, loss))
        else:
            findings.append(Finding(_NETWORK, name, state, found, loss, _load(module)))
    return findings


def _unknown(name: str, hint: str, loss: str) -> Finding:
    found = f"unknown without root ({hint})"
    return Finding(_NETWORK, name, State.UNKNOWN, found, loss, "run `pagefire doctor` as root to know")


def _congestion_control() -> list[Finding]:
    default, available = (_line(f"/proc/sys/net/ipv4/tcp_{name}") for name in _CONGESTION_SETTINGS)
    chosen, refused = [], []
    for name in available.split():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
            try:
                tried.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
                chosen.append(name)
            except OSError:
                refused.append(name)
    found = f"default {default or 'unknown'}; may choose {', '.join(chosen) or 'none'}"
    found += f"; refused {', '.join(refused)}" if refused else ""
    return [
        Finding(
            _NETWORK, "TCP congestion", State.YES if "cubic" in chosen else State.LIMITED, found,
            "connections use the default: loopback is some 20% slower with bbr than with cubic",
            f'sudo sysctl -w net.ipv4.tcp_allowed_congestion_control="{" ".join([*chosen, "cubic"])}"',
        )
    ]  # fmt: skip


# -- machine -------------------------------------------------------------------------------------------------------------


def _machine() -> list[Finding]:
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    available_bytes, clock = psutil.virtual_memory().available, _line(f"{_CLOCKS}/current_clocksource")
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    autogroup = _line("/proc/sys/kernel/sched_autogroup_enabled")
    grouped = (
        "on: a guest in its own session lowers the session as well" if autogroup == "1" else "off: niceness decides"
    )
    return [
        Finding(
            _MACHINE, "CPUs", State.YES if usable > 1 else State.LIMITED, f"{usable} usable of {present}",
            "vCPUs and daemons share one core: the stun holds context switches", "give this machine a second CPU",
        ),
        Finding(
            _MACHINE, "memory", State.YES if available_bytes >= _ROOM_BYTES else State.LIMITED,
            f"{format_size(available_bytes)} available; both ends on one machine need twice the guest",
            "only small guests fit", "end other programs",
        ),
        Finding(
            _MACHINE, "clock source", State.YES if clock in _FAST_CLOCKS else State.LIMITED, clock or "unknown",
            "reading the clock is a system call: guests commit slower and figures are coarser",
            f"echo tsc | sudo tee {_CLOCKS}/current_clocksource",
        ),
        Finding(_MACHINE, "sched autogroup", State.YES, grouped if autogroup else "not in this kernel: niceness decides"),
        Finding(
            _MACHINE, "open files", State.YES if files >= _FEW_FILES else State.LIMITED,
            f"{format_count(files)}, may be raised to {format_count(most_files)}",
            "a daemon with many guests runs out of descriptors", f"ulimit -n {_FEW_FILES}",
        ),
    ]  # fmt: skip


_CLOCKS = "/sys/devices/system/clocksource/clocksource0"
#: Clocks that are read without a system call (vDSO).
_FAST_CLOCKS = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"}
_CONGESTION_SETTINGS = ("congestion_control", "available_congestion_control")
_ROOM_BYTES = 1 << 30
_FEW_FILES = 1024

_PROBES: dict[str, tuple[Callable[[], list[Finding]], ...]] = {
    _KERNEL: (_versions, _userfaultfd, _faults_in_system_calls, _pagemap_scan, _tracking_self_test),
    _MEMORY: (_memfd, _transparent_huge_pages, _hugetlb, _swap),
    _NETWORK: (_network_lab, _congestion_control),
    _MACHINE: (_machine,),
}


# -- tools and printing --------------------------------------------------------------------------------------------------


def _line(path: str) -> str:
    """Read the one line of a kernel setting; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _chosen(setting: str) -> str:
    """Give the chosen one of a setting that lists its choices: `always [advise] never`."""
    return next((word.strip("[]") for word in setting.split() if word.startswith("[")), setting or "absent")


@contextmanager
def _mapped_memfd(size_bytes: int, flags: int = 0) -> Iterator[mmap.mmap]:
    fd = os.memfd_create("pagefire-doctor", os.MFD_CLOEXEC | flags)
    try:
        os.ftruncate(fd, size_bytes)
        with mmap.mmap(fd, size_bytes) as mapping:
            yield mapping
    finally:
        os.close(fd)


def _pmd_mapped_kib() -> int:
    sizes = (line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines())
    return next((int(words[1]) for words in sizes if words[0] == "ShmemPmdMapped:"), 0)


def _try(command: tuple[str, ...]) -> str:
    """Run a command; gives its last words where it fails, nothing where it succeeds."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if ended.returncode == 0:
        return ""
    return (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]


def _module_present(module: str) -> bool:
    loaded = Path(f"/sys/module/{module}").exists()
    return loaded or (shutil.which("modprobe") is not None and not _try(("modprobe", "--dry-run", module)))


def _load(module: str) -> str:
    """Say how to get a module: load it, or where there is none, which option builds it."""
    option = "CONFIG_" + module.upper().replace("SCH_", "NET_SCH_")
    return (
        f"sudo modprobe {module}" if _module_present(module) else f"a kernel with {option} (its module was not found)"
    )


_COLUMNS = (9, 20, None)
_REMEDY_INDENT = " " * 33
_STYLES = {State.YES: "green", State.LIMITED: "yellow", State.NO: "red", State.UNKNOWN: "magenta"}


def _print_finding(console: Console, finding: Finding) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for width in _COLUMNS:
        table.add_column(width=width)
    lines = [finding.found]
    missing = finding.state is not State.YES
    if missing and finding.without:
        lines.append(f"without it: {finding.without}")
    state = Text(f"  {finding.state.value}", _STYLES[finding.state])
    table.add_row(state, Text(finding.name), Text("\n".join(lines)))
    console.print(table, highlight=False)
    if missing and finding.enable:
        # Never wrapped by us, so that it can be copied as one line.
        console.print(Text(f"{_REMEDY_INDENT}to enable: {finding.enable}"), soft_wrap=True, highlight=False)


def _verdict(findings: list[Finding]) -> str:
    stopped = [one.name.strip() for one in findings if one.essential and one.state is State.NO]
    if stopped:
        return f"Migration cannot work here: {', '.join(stopped)} {'is' if len(stopped) == 1 else 'are'} missing."
    short = sum(one.state is not State.YES for one in findings)
    return "Migration works here" + (
        f"; {short} of {len(findings)} things are missing, limited or unknown." if short else "."
    )
