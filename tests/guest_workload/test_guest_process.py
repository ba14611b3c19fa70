"""The guest process and a host's hold on it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagefire.guest_workload.control_block import VcpuState
from pagefire.guest_workload.guest_config import GuestConfig
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.memfd import free_hugetlb_bytes
from pagefire.protocol.errors import FeatureMissing, GuestError, UsageError

pytestmark = pytest.mark.e2e
MIB = 1 << 20
EXAMPLE = "tests.guest_workload.example_workload:Counters"

Spawn = Callable[..., GuestProcess]


def config(**changes: object) -> GuestConfig:
    shape: dict[str, object] = {
        "name": "g0",
        "memory_bytes": 64 * MIB,
        "resident_bytes": 8 * MIB,
        "working_set_bytes": 4 * MIB,
        "vcpus": 2,
        "workload": "oltp",
    }
    return GuestConfig(**(shape | changes))  # type: ignore[arg-type]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    spawned: list[GuestProcess] = []

    def spawn_one(name: str = "g0", **changes: object) -> GuestProcess:
        spawned.append(GuestProcess.spawn(tmp_path / f"{name}.sock", config(name=name, **changes)))
        return spawned[-1]

    yield spawn_one
    for guest in spawned:
        guest.terminate()
    assert list(tmp_path.glob("*.sock")) == []


def pause(guest: GuestProcess) -> None:
    guest.control.request_pause()
    assert guest.control.wait_parked(30)


def test_a_guest_runs_pauses_and_is_checked(spawn: Spawn) -> None:
    guest = spawn()
    assert stat.S_IMODE(guest.socket_path.stat().st_mode) == 0o600
    assert guest.control.states() == [VcpuState.PARKED] * 2
    guest.control.resume()
    time.sleep(0.05)
    with pytest.raises(GuestError, match="it is running"):
        guest.check()
    pause(guest)
    check = guest.check()
    assert check.problems == []
    assert check.committed == guest.control.commits() > 0
    assert guest.digest() == guest.digest()
    assert guest.alive
    started, pid = guest.socket_path, guest.pid
    guest.terminate()
    assert not started.exists()
    assert not Path(f"/proc/{pid}").exists()
    guest.terminate()


def test_vcpu_threads_are_named_and_yield_to_daemons(spawn: Spawn) -> None:
    guest = spawn()
    threads = {
        (task / "comm").read_text().strip(): os.getpriority(os.PRIO_PROCESS, int(task.name))
        for task in Path(f"/proc/{guest.pid}/task").iterdir()
    }
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert threads["g0"] == own
    assert threads["vcpu0"] == threads["vcpu1"] == max(own, 10)
    assert os.getsid(guest.pid) == guest.pid
    os.kill(guest.pid, signal.SIGINT)
    time.sleep(0.05)
    assert guest.alive


def test_a_moved_guest_ends_as_one_that_stayed(spawn: Spawn) -> None:
    stayed = spawn("stayed", stop_at=20_000)
    first = spawn("first", stop_at=7_000)
    shell = spawn("shell", shell=True, stop_at=20_000)
    assert shell.digest()["registers"] == bytes(2 * 128).hex()
    for guest in (stayed, first):
        guest.control.resume()
        while not guest.control.all_finished():
            time.sleep(0.002)
    shell.memory.array[:] = first.memory.array
    shell.control.install_registers(first.control.checkpoint_registers())
    shell.control.resume()
    while not shell.control.all_finished():
        time.sleep(0.002)
    assert shell.digest() == stayed.digest()
    assert shell.control.commits() == 2 * 13_000


def test_a_users_workload_needs_leave(spawn: Spawn, tmp_path: Path) -> None:
    guest = spawn(workload=EXAMPLE, user_workloads=(EXAMPLE,))
    guest.control.resume()
    time.sleep(0.02)
    pause(guest)
    assert guest.check().problems == []
    assert guest.check().committed == guest.control.commits()
    with pytest.raises(UsageError, match="may not run here"):
        spawn("other", workload=EXAMPLE)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"workload": "oltpp"}, "known are"),
        ({"memory_bytes": 1 << 20}, "--memory"),
        ({"working_set_bytes": 65536, "vcpus": 16}, "--working-set"),
        ({"memory_bytes": 8 << 40, "resident_bytes": 8 << 40}, "--resident"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        GuestProcess.spawn(tmp_path / "g.sock", config(**changes))
    assert [path.name for path in tmp_path.iterdir()] == ["g.log"]


def test_a_pool_that_is_too_small_is_told_with_the_line_that_enlarges_it(tmp_path: Path) -> None:
    if free_hugetlb_bytes() >= 64 * MIB:
        pytest.skip("this host has a pool of 2 MiB pages")
    with pytest.raises(
        FeatureMissing, match=r"64 MiB are needed, .* MiB are free .*: echo 32 \| sudo tee .*nr_hugepages"
    ):
        GuestProcess.spawn(tmp_path / "g0.sock", config(backing="hugetlb"))
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]


def test_a_guest_that_dies_while_starting_tells_its_last_words(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("import os, sys\nprint('alas', file=sys.stderr, flush=True)\nos._exit(3)\n")
    name = f"{own}:Own"
    with pytest.raises(GuestError, match=r"(?s)status 3.*alas"):
        GuestProcess.spawn(tmp_path / "g.sock", config(workload=name, user_workloads=(name,)))


def test_a_step_that_raises_ends_the_guest(tmp_path: Path, spawn: Spawn) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import numpy as np\n"
        "from pagefire.guest_workload.workload import Workload, transaction\n"
        "@transaction\n"
        "def step(memory, registers, parameters):\n"
        "    if registers[0] == 5:\n"
        "        raise ValueError('five')\n"
        "class Own(Workload):\n"
        "    name = description = 'own'\n"
        "    step = step\n"
        "    def parameters(self, layout, vcpu):\n"
        "        return np.zeros(1, np.int64)\n"
    )
    name = f"{own}:Own"
    guest = spawn(workload=name, user_workloads=(name,))
    guest.control.resume()
    deadline = time.monotonic() + 10
    while guest.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(GuestError, match=r"(?s)status 70.*five"):
        guest.check()


def test_a_killed_guest_is_an_error_not_a_hang(spawn: Spawn) -> None:
    guest = spawn()
    os.kill(guest.pid, signal.SIGKILL)
    with pytest.raises(GuestError, match="status -9"):
        guest.check()
    assert not guest.alive


def test_a_guest_outlives_its_daemon_and_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    daemon = (
        "import os, sys; from pathlib import Path\n"
        "from pagefire.guest_workload.guest_process import GuestProcess\n"
        "from tests.guest_workload.test_guest_process import config\n"
        f"guest = GuestProcess.spawn(Path({str(path)!r}), config())\n"
        "kept = os.memfd_create('kept'); os.write(kept, b'ledger')\n"
        "guest.keep_fds('ledger', [kept]); guest.control.resume(); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", daemon], check=False)
    assert ended.returncode == -signal.SIGKILL
    guest = GuestProcess.adopt(path)
    try:
        assert guest.config == config()
        assert guest.kept == ("ledger",)
        (ledger,) = guest.kept_fds("ledger")
        assert os.pread(ledger, 10, 0) == b"ledger"
        os.close(ledger)
        before = guest.control.commits()
        time.sleep(0.05)
        assert guest.control.commits() > before
        guest.leave()
        guest = GuestProcess.adopt(path)
        pause(guest)
        assert guest.check().problems == []
    finally:
        guest.terminate()
    assert not path.exists()
    with pytest.raises(GuestError, match="no guest listens"):
        GuestProcess.adopt(path)


def test_a_guest_whose_daemon_dies_too_early_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    daemon = (
        "import os; from pathlib import Path\n"
        "from pagefire.guest_workload import guest_process as g\n"
        "import subprocess\n"
        f"listener = g._listen(Path({str(path)!r}))\n"
        "child = subprocess.Popen(g._command(listener.fileno(), 'g'), pass_fds=(listener.fileno(),), start_new_session=True)\n"
        f"g._connect(Path({str(path)!r})); print(child.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", daemon], check=False, stdout=subprocess.PIPE, text=True)
    pid = int(ended.stdout)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.kernel
@pytest.mark.parametrize("keep", [False, True])
def test_who_holds_the_userfaultfd(spawn: Spawn, keep: bool) -> None:
    try:
        userfaultfd.supported_features()
    except OSError as error:
        pytest.skip(f"userfaultfd is missing: {error}")
    guest = spawn()
    uffd = guest.open_uffd(userfaultfd.DEMAND_PAGING, keep=keep)
    guest.control.states()

    def held() -> int:
        # A round trip first: the guest closes its copy after it answered.
        guest.kept_fds("nothing")
        links = [os.readlink(link) for link in Path(f"/proc/{guest.pid}/fd").iterdir()]
        return links.count("anon_inode:[userfaultfd]")

    userfaultfd.register(uffd, guest.address, guest.memory.size_bytes, userfaultfd.Mode.MINOR)
    assert held() == int(keep)
    kept = guest.kept_fds("uffd")
    assert len(kept) == int(keep)
    for fd in kept:
        os.close(fd)
    guest.close_uffd()
    assert held() == 0
    os.close(uffd)


def test_two_guests_do_not_take_one_path(spawn: Spawn, tmp_path: Path) -> None:
    guest = spawn()
    with pytest.raises(GuestError, match="Address already in use"):
        GuestProcess.spawn(guest.socket_path, config())
    guest.check()


def test_a_dead_guests_path_is_taken_over(spawn: Spawn) -> None:
    guest = spawn()
    os.kill(guest.pid, signal.SIGKILL)
    while guest.alive:
        time.sleep(0.01)
    again = spawn()
    assert again.check().problems == []


def test_terminate_does_not_wait_for_a_request_under_way(tmp_path: Path) -> None:
    guest = GuestProcess.spawn(tmp_path / "g.sock", config(memory_bytes=1024 * MIB, resident_bytes=512 * MIB))
    outcome: list[BaseException] = []

    def digest() -> None:
        try:
            while True:
                guest.digest()
        except GuestError as error:
            outcome.append(error)

    thread = threading.Thread(target=digest)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    guest.terminate()
    assert time.monotonic() - began < 10
    thread.join(10)
    assert outcome
