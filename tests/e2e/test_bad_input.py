"""Bad input gets a clear error and loses nothing: the guest runs on at the source at full speed, and can migrate afterwards.

One pair is used up to the end of the module: after all the failures that a guest survives, the last test migrates it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pagefire.guest_workload.linux.memfd import free_hugetlb_bytes, huge_pages_allowed
from pagefire.protocol.errors import Cancelled, PagefireError
from pagefire.protocol.messages import Failure
from pagefire.scripts.daemons import DaemonProcess
from tests.e2e import fake_peers
from tests.e2e.fake_peers import serving
from tests.e2e.host_pair import HostPair, assert_verified, finish, guest_arguments, run, until
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

FORBIDDING = Path(__file__).parents[1] / "support" / "forbidding.py"


def without(*features: str) -> list[str]:
    """Give the words that run a command on a kernel without these features."""
    return [sys.executable, str(FORBIDDING), *features, "--"]


@pytest.fixture(scope="module")
def pair() -> Iterator[HostPair]:
    need_pagemap_scan()
    with HostPair(guest_arguments(vcpus=1), ["--max-guest-memory", "128MiB"]) as one:
        yield one


def assert_refused(pair: HostPair, *words: str, **options: object) -> PagefireError:
    """Migrate in vain: the error names what, why and what to do, and nothing is lost."""
    with pair.guest_unharmed(), pytest.raises(PagefireError) as caught:
        pair.migrate(**options)
    error = caught.value
    for word in words:
        assert word in str(error)
    assert error.what
    assert error.why
    assert error.do
    assert error.exit_code == 1
    return error


# -- what is wrong with the arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["source", "--workload", "nonsense"], ["there is no workload 'nonsense'", "oltp", "module:Class"]),
        (["source", "--memory", "4XB"], ["4XB", "512M"]),
        (["source", "--memory", "8TiB"], ["do not fit into this host", "are available", "--memory"]),
        (["source", "--memory", "1MiB"], ["64 MiB to 16 TiB", "--memory"]),
        (["source", "--memory", "64MiB", "--vcpus", "257"], ["257 vCPUs", "1 to 256", "--vcpus"]),
        (["source", "--rate", "many/s"], ["many/s"]),
        (["source", "--name", "a/b"], ["'a/b'", "--name"]),
        (["source", "--cpus-guest", "0-"], ["0-"]),
        (["source", "--cpus-guest", "0,4095"], ["there is no CPU 4095", "online are 0"]),
        (["demo", "--cpus-dest", "4095"], ["there is no CPU 4095", "online are 0"]),
        (["dest", "--listen", "nowhere"], ["nowhere", "HOST:PORT"]),
        (["dest", "--max-guest-memory", "1b"], ["bits"]),
        (["migrate", "--to", "127.0.0.1:1", "--downtime-limit", "50"], ["50", "unit"]),
        (["migrate", "--to", "127.0.0.1:1", "--mode", "sideways"], ["sideways", "hybrid, precopy, postcopy"]),
        (["migrate", "--to", "127.0.0.1:1"], ["no guest lives here", "pagefire source"]),
        (["migrate"], ["--to"]),
        (["status", "nobody"], ["no guest named nobody"]),
        (["bench", "--streams", "1,x"], ["1,x", "--streams 1,2"]),
        (["bench", "--repetitions", "0"], ["measure nothing", "--repetitions 1"]),
        (["bitmap", "--scatter", "sideways"], ["sideways", "one-run, clustered, uniform"]),
        (["bitmap", "--guest", "1GiB", "--pages", "262145"], ["262,145", "has 262,144"]),
        (["demo", "--install", "loos"], ["--install loos is unknown", "stop, loose, rolling"]),
        (["demo", "--tracer", "guest"], ["--tracer guest is unknown", "vcpu, host"]),
        (["demo", "--install-step", "3M"], ["--install-step 3M is unknown", "2M, 1G, all"]),
        (["demo", "--install-loss", "much"], ["much", "share"]),
        (["demo", "--granularity", "1G"], ["--granularity 1G is unknown", "4K, 2M"]),
        (
            ["demo", "--granularity", "2M", "--tracker", "page-fire"],
            ["page-fire cannot protect this guest by 2M", "--granularity 4K"],
        ),
        (["demo", "--install-calls", "per-page", "--install", "rolling"], ["per-page goes with", "Leave it out"]),
        (["demo", "--backing", "swap"], ["--backing swap is unknown", "4k, thp, hugetlb"]),
        (["migrate", "--to", "127.0.0.1:1", "--backing", "swap"], ["--backing swap is unknown", "4k, thp, hugetlb"]),
        (["demo", "--backing", "hugetlb", "--granularity", "4K"], ["hugetlb cannot be protected by 4K", "2M"]),
        (["trace", "--backing", "4k,hugetlb", "--granularity", "4K,2M"], ["hugetlb cannot be protected by 4K"]),
        (["demo", "--backing", "hugetlb", "--memory", "101000KiB"], ["whole pages of 2 MiB", "--memory"]),
        (["demo", "--bitmap", "roaring"], ["--bitmap roaring is unknown", "raw, compacted"]),
        (["trace", "--install", "roll"], ["--install roll is unknown", "stop, loose, rolling"]),
        (["sideways"], ["sideways"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("source", "dest", "migrate", "status") else "",
)
def test_a_wrong_argument_is_a_usage_error_that_names_it(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEFIRE_RUNTIME_DIR", str(tmp_path / "run"))
    code, out, err = run(*arguments)
    assert code == 2, err
    assert out == ""
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.alone
def test_a_destination_without_a_pool_of_huge_pages_says_how_to_get_one(pair: HostPair) -> None:
    if free_hugetlb_bytes() >= 64 << 20:
        pytest.skip("this host has a pool of 2 MiB pages")
    assert_refused(pair, "pool of 2 MiB pages is too small", "nr_hugepages", backing="hugetlb")


def test_a_port_in_use_is_named_and_nothing_stays(pair: HostPair, tmp_path: Path) -> None:
    code, _, err = run("dest", "--listen", pair.destination, "--runtime-dir", str(tmp_path / "run"))
    assert code == 1
    assert f"cannot listen on {pair.destination}: Address already in use. Choose another port" in err
    assert not (tmp_path / "run").exists()


def test_a_second_source_daemon_of_one_name_is_refused(pair: HostPair) -> None:
    with pair.guest_unharmed():
        code, _, err = run("source", "--memory", "64MiB", "--runtime-dir", str(pair.directory))
    assert code == 1
    assert "a source daemon named guest0 is already running" in err


# -- who is at the other end -----------------------------------------------------------------------------------------------


def test_nobody_listens(pair: HostPair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pair.guest_unharmed():
        code, out, err = run("migrate", "--to", f"127.0.0.1:{port}", "--runtime-dir", str(pair.directory))
    assert code == 1
    assert out == ""
    assert f"cannot connect to 127.0.0.1:{port}" in err
    assert "Start `pagefire dest` there" in err


@pytest.mark.parametrize(
    ("converse", "words"),
    [
        (fake_peers.answers_http, ["HTTP"]),
        (fake_peers.answers_noise, ["is not a pagefire daemon"]),
        (fake_peers.speaks_tls, []),
        (fake_peers.says_nothing, ["no pagefire daemon answers", "silent"]),
        (fake_peers.hangs_up, ["no pagefire daemon answers"]),
    ],
)
def test_the_peer_is_not_a_pagefire(pair: HostPair, converse: fake_peers.Conversation, words: list[str]) -> None:
    with serving(converse) as port:
        assert_refused(pair, *words, "Check host and port", to=f"127.0.0.1:{port}", connect_timeout_s=1.0)


def test_the_peer_is_pythons_http_server(pair: HostPair) -> None:
    with fake_peers.http_server() as port:
        assert_refused(pair, "Check host and port", to=f"127.0.0.1:{port}", connect_timeout_s=1.0)


@pytest.mark.parametrize(
    ("converse", "words"),
    [
        (fake_peers.welcoming(version=99), ["version that this source does not speak", "99"]),
        (
            fake_peers.welcoming(capabilities=("zero-pages",)),
            ["the destination lacks capabilities", "compacted-bitmap"],
        ),
    ],
)
def test_an_incompatible_destination_is_refused_by_name(
    pair: HostPair, converse: fake_peers.Conversation, words: list[str]
) -> None:
    with serving(converse) as port:
        assert_refused(pair, *words, "Install the same pagefire", to=f"127.0.0.1:{port}", connect_timeout_s=5.0)


def test_an_incompatible_source_is_refused_by_name(pair: HostPair) -> None:
    with pair.guest_unharmed():
        answers = [
            fake_peers.call(pair.port, fake_peers.hello(versions=(98, 99))),
            fake_peers.call(pair.port, fake_peers.hello(capabilities=())),
        ]
    for answer, words in zip(answers, ("no common protocol version", "the source lacks capabilities"), strict=True):
        assert isinstance(answer, Failure)
        assert words in answer.what
        assert "same pagefire" in answer.do


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: there\r\n\r\n", bytes(range(256)) * 16, b"\x16\x03\x01" + bytes(64), b"PGF2", b""],
)
def test_a_caller_that_is_not_a_pagefire_is_told_and_dropped(pair: HostPair, said: bytes) -> None:
    before = len(pair.dest.log_path.read_text())
    with pair.guest_unharmed(), socket.create_connection(("127.0.0.1", pair.port), timeout=10.0) as sock:
        sock.sendall(said)
        # What the destination did not read resets the connection, and may take its answer along.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            answer = sock.recv(4096)
            assert answer.startswith(b"PGF2") or len(said) < 16
    until(
        lambda: "refused why=" in pair.dest.log_path.read_text()[before:],
        "the destination does not say whom it refused",
    )
    if len(said) >= 16:
        named = "began with a TLS record" if said[0] == 0x16 else "the peer is not a pagefire daemon"
        assert named in pair.dest.log_path.read_text()[before:]


def test_a_tls_client_calls(pair: HostPair) -> None:
    with pair.guest_unharmed(), socket.create_connection(("127.0.0.1", pair.port), timeout=10.0) as sock:
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(sock, server_hostname="localhost")
    assert "TLS record" in pair.dest.log_path.read_text()


# -- what may not come, and what cannot be -----------------------------------------------------------------------------------


def test_more_memory_than_the_destination_allows(pair: HostPair) -> None:
    with DaemonProcess(
        ["dest", "--listen", "127.0.0.1:0", "--max-guest-memory", "32MiB", "--runtime-dir", str(pair.directory)],
        pair.directory / "small.log",
    ) as small:
        to = small.ready_line.split("listening on ")[1].split(",")[0]
        assert_refused(pair, "too large for the destination", "32 MiB allowed there", "--max-guest-memory", to=to)


def test_a_second_migration_of_the_same_guest(pair: HostPair) -> None:
    first: list[BaseException] = []

    def migrate() -> None:
        try:
            pair.migrate()
        except PagefireError as error:
            first.append(error)

    with pair.guest_unharmed(), pair.held_at("round") as stands:
        migration = threading.Thread(target=migrate)
        migration.start()
        stands()
        with pytest.raises(PagefireError, match="guest guest0 is already migrating: to") as second:
            pair.migrate()
        assert second.value.exit_code == 1
        assert second.value.do
        pair.on_source("cancel")
        migration.join()
    assert isinstance(first[0], Cancelled)


def test_the_destination_cannot_page_on_demand(pair: HostPair) -> None:
    with DaemonProcess(
        ["dest", "--listen", "127.0.0.1:0", "--runtime-dir", str(pair.directory)],
        pair.directory / "poor.log",
        before=without("userfaultfd"),
    ) as poor:
        to = poor.ready_line.split("listening on ")[1].split(",")[0]
        assert_refused(pair, "userfaultfd", "pagefire doctor", to=to)
        assert not psutil.Process(poor.pid).children(recursive=True)


def test_the_source_cannot_track_writes() -> None:
    """Without userfaultfd nothing can be traced: said by name, and the modes that need no tracing still work."""
    need_pagemap_scan()
    with HostPair(guest_arguments(vcpus=1), source_before=without("userfaultfd")) as pair:
        assert_refused(pair, "this host has no userfaultfd", "Operation not permitted", "pagefire doctor")
        assert_verified(pair.migrate(mode="stop-and-copy"))


@pytest.mark.alone
def test_huge_pages_that_the_host_does_not_give_are_refused_with_the_line(tmp_path: Path) -> None:
    if huge_pages_allowed():
        pytest.skip("this host gives huge pages to shared memory")
    with pytest.raises(
        PagefireError, match=r"no transparent huge pages .* echo advise \| sudo tee /sys/.*shmem_enabled"
    ):
        DaemonProcess(
            ["source", "--memory", "64MiB", "--backing", "thp", "--runtime-dir", str(tmp_path)], tmp_path / "source.log"
        )


def test_a_kernel_before_pagemap_scan_takes_page_fires_by_itself() -> None:
    need_pagemap_scan()
    with HostPair(guest_arguments(vcpus=1), source_before=without("pagemap-scan")) as pair:
        error = assert_refused(pair, "PAGEMAP_SCAN", "pagefire doctor", tracker="pagemap-scan")
        assert "ioctl" in error.why
        report = pair.migrate()
    assert_verified(report)
    assert report["tracker"] == "page-fire"
    assert "PAGEMAP_SCAN" in report["tracker_reason"]


# -- guests that die -----------------------------------------------------------------------------------------------------------


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_the_guest_dies_while_nothing_happens() -> None:
    with HostPair(guest_arguments(vcpus=1)) as pair:
        kill(pair.on_source("guests")[pair.name]["guest_pid"])
        until(lambda: pair.on_source("guest")["error"] == "the guest process ended", "the death was not noticed")
        code, _, err = run("migrate", "--to", pair.destination, "--runtime-dir", str(pair.directory))
        assert code == 1
        assert "guest guest0 is dead: its process ended" in err
        pair.nothing_at_destination()
        assert pair.source.end() == 0
        assert pair.dest.end() == 0
        assert sorted(path.name for path in pair.directory.iterdir()) == ["dest.log", "source.log"]


@pytest.mark.parametrize(
    "workload", ["adversary", "idle"], ids=["another round follows", "the last collections follow"]
)
def test_the_guest_dies_during_pre_copy(workload: str) -> None:
    with HostPair(guest_arguments(workload=workload, vcpus=1)) as pair:
        with pair.held_at("round") as stands, pair.migrating() as migration:
            stands()
            kill(pair.on_source("guests")[pair.name]["guest_pid"])
            until(lambda: bool(pair.on_source("guest")["error"]), "the death was not noticed")
            pair.release("round")
            code, _, err = finish(migration)
        assert code == 1, err
        assert "guest process" in err
        pair.nothing_at_destination()
        assert pair.source.end() == 0


def test_the_guest_dies_when_it_stands_still() -> None:
    """Its memory is the daemon's too and its registers are at the destination: it lives on there, and nothing is lost."""
    with HostPair(guest_arguments(vcpus=1)) as pair:
        with pair.held_at("ready") as stands, pair.migrating("--json", "-") as migration:
            stands()
            kill(pair.on_source("guests")[pair.name]["guest_pid"])
            until(lambda: bool(pair.on_source("guest")["error"]), "the death was not noticed")
            pair.release("ready")
            code, out, err = finish(migration)
        assert code == 0, err
        assert_verified(json.loads(out))


def test_the_shell_at_the_destination_dies(pair: HostPair) -> None:
    with pair.guest_unharmed(), pair.held_at("round") as stands, pair.migrating() as migration:
        stands()
        kill(pair.on_dest("guests")[pair.name]["guest_pid"])
        until(lambda: not pair.on_dest("guests"), "the destination did not notice the death")
        pair.release("round")
        code, _, err = finish(migration)
    assert code == 1, err
    assert "pagefire: " in err
    assert "Traceback" not in err


# -- and then --------------------------------------------------------------------------------------------------------------------


def test_afterwards_the_same_guest_migrates(pair: HostPair) -> None:
    """Beside a caller that says nothing: it keeps nobody from coming."""
    with socket.create_connection(("127.0.0.1", pair.port)):
        report = pair.migrate(verify=True)
    assert_verified(report)
    assert report["verified"]["digest_match"] is True
