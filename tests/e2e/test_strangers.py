"""Who may move guests: real daemons with keys, and everybody who is refused, by name at both ends."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.frames import HEADER_BYTES, encode_head
from pagefire.protocol.messages import Hello, encode
from pagefire.protocol.negotiation import VERSIONS, source_capabilities
from pagefire.protocol.transport.software import software_name
from pagefire.scripts.daemons import DaemonProcess
from tests.e2e import fake_peers
from tests.e2e.damage import damaging
from tests.e2e.host_pair import HostPair, assert_verified, guest_arguments, open_files, run, until
from tests.e2e.test_replay import replay
from tests.support.secured import KeyRing
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]


@pytest.fixture(scope="module")
def pair(ring: KeyRing) -> Iterator[HostPair]:
    """A destination that has keys, and a source that may be told which to use: on loopback, where those who are named count."""
    with HostPair(guest_arguments(vcpus=1), ["--keys", str(ring.good.folder)]) as made:
        yield made


def assert_refused(pair: HostPair, here: str, there: str, **options: object) -> None:
    """Check that a migration with these options is refused in these words, `here` by its error and `there` by the log."""
    before = len(pair.dest.log_path.read_text())
    with pair.guest_unharmed():
        with pytest.raises(PagefireError, match=here) as error:
            pair.migrate(**options)
        assert error.value.exit_code == 1
        assert error.value.do
        until(
            lambda: there in pair.dest.log_path.read_text()[before:],
            f"the destination did not say {there!r}",
        )


# -- refused ---------------------------------------------------------------------------------------------------------------


def test_a_key_of_another_ca(pair: HostPair, ring: KeyRing) -> None:
    words = "refused this host's key, which is not of its CA"
    assert_refused(pair, "the destination's key is not of this host's CA", words, keys=str(ring.of_another_ca.folder))


def test_a_key_of_another_ca_that_would_take_the_destinations(pair: HostPair, ring: KeyRing, tmp_path: Path) -> None:
    """What the source trusts is its own affair: it is the destination that looks at the source's key."""
    for name, origin in (("host.pem", ring.of_another_ca), ("host.key", ring.of_another_ca), ("ca.pem", ring.good)):
        (tmp_path / name).write_bytes((origin.folder / name).read_bytes())
    (tmp_path / "host.key").chmod(0o600)
    here = "the destination refused this host's key, which is not of its CA"
    assert_refused(pair, here, "the source's key is not of this host's CA", keys=str(tmp_path))


def test_an_expired_key(pair: HostPair, ring: KeyRing) -> None:
    here = "the destination refused this host's key, which has expired"
    assert_refused(pair, here, "the source's key has expired", keys=str(ring.expired.folder))


def test_an_expired_key_of_the_destination(pair: HostPair, ring: KeyRing) -> None:
    log = pair.directory / "expired.log"
    arguments = [
        "dest",
        "--listen",
        "127.0.0.1:0",
        "--keys",
        str(ring.expired.folder),
        "--runtime-dir",
        str(pair.directory),
    ]
    with DaemonProcess(arguments, log) as dest, pair.guest_unharmed():
        to = dest.ready_line.split("listening on ")[1].split(",")[0]
        with pytest.raises(
            PagefireError, match=r"the destination's key has expired: .*pagefire keys host NAME --force"
        ):
            pair.migrate(to=to, keys=str(ring.good.folder))
        until(lambda: "the source refused this host's key, which has expired" in log.read_text(), "not named there")


def test_no_key(pair: HostPair, ring: KeyRing) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ring.good.ca)
    with pair.guest_unharmed():
        with (
            socket.create_connection(("127.0.0.1", pair.port), timeout=10.0) as sock,
            context.wrap_socket(sock) as client,
            # Its own handshake was done before the destination had looked at what it did not send.
            pytest.raises(ssl.SSLError, match="certificate required"),
        ):
            client.recv(1)
        until(
            lambda: "the source has no key" in pair.dest.log_path.read_text(),
            "the destination does not say whom it refused",
        )


def test_keys_for_a_destination_that_has_none(ring: KeyRing) -> None:
    with HostPair(guest_arguments(vcpus=1)) as keyless:
        assert_refused(keyless, "this destination has no keys", "began with a TLS record", keys=str(ring.good.folder))
        assert_verified(keyless.migrate())


@pytest.mark.parametrize("converse", [fake_peers.answers_http, fake_peers.hangs_up, fake_peers.says_nothing])
def test_what_is_called_by_tls_is_no_pagefire(pair: HostPair, ring: KeyRing, converse: fake_peers.Conversation) -> None:
    with fake_peers.serving(converse) as port, pair.guest_unharmed(), pytest.raises(PagefireError, match=r"(?i)check"):
        pair.migrate(to=f"127.0.0.1:{port}", keys=str(ring.good.folder), connect_timeout_s=1.0)


# -- what is a usage error, before anything is done ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dest", "--listen", "0.0.0.0:0"], ["can be reached from other hosts", "pagefire keys init", "--insecure"]),
        (["dest", "--keys", "/nowhere"], ["the keys in /nowhere cannot be used", "pagefire keys init"]),
        (["keys", "host", "a/b"], ["no name for a host"]),
        (["keys", "host", "b"], ["there is no CA in", "pagefire keys init"]),
    ],
)
def test_usage_errors(arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEFIRE_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("PAGEFIRE_RUNTIME_DIR", str(tmp_path / "run"))
    code, _, err = run(*arguments)
    assert code == 2, err
    for word in words:
        assert word in " ".join(err.split())


def test_a_source_without_keys_calls_another_host() -> None:
    with HostPair(guest_arguments(vcpus=1)) as keyless, keyless.guest_unharmed():
        code, _, err = run("migrate", "--to", "192.0.2.1:7700", "--runtime-dir", str(keyless.directory))
        assert code == 2, err
        assert "192.0.2.1 is another host, and this one has no keys" in err
        assert "pagefire keys init" in err


def test_keys_are_made_by_the_command_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "keys"
    monkeypatch.setenv("PAGEFIRE_KEYS", str(folder))
    assert run("keys", "init")[0] == 0
    assert run("keys", "host", "there")[0] == 0
    assert stat.S_IMODE((folder / "hosts" / "there" / "host.key").stat().st_mode) == 0o600
    code, _, err = run("keys", "init")
    assert code == 2
    assert "already" in err
    assert "--force" in err
    with HostPair(guest_arguments(vcpus=1), ["--keys", str(folder / "hosts" / "there")]) as made:
        assert_verified(made.migrate(keys=str(folder)))


# -- those who only take up room ----------------------------------------------------------------------------------------------


def test_slow_callers_cost_themselves(pair: HostPair) -> None:
    """More of them than may wait: each holds one connection, the oldest lose theirs, and the daemon goes on."""
    with contextlib.ExitStack() as stack:
        for number in range(150):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", pair.port), timeout=10.0))
            sock.sendall((b"", b"P", b"\x16\x03\x01")[number % 3])
        assert pair.on_dest("status")["guests"] == []
        until(
            lambda: sum("socket:" in name for name in open_files(pair.dest.pid)) < 80,
            "the destination holds more connections than it may",
        )
        assert "too many callers have not said who they are" in pair.dest.log_path.read_text()
        with pytest.raises(PagefireError):  # by its own limit, not for lack of room
            pair.migrate(streams=17)
    until(lambda: sum("socket:" in name for name in open_files(pair.dest.pid)) < 10, "connections are left")


# -- and those who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hybrid", *soaked("precopy", "postcopy")])
def test_a_guest_that_moved_encrypted_equals_its_twin(mode: str, ring: KeyRing) -> None:
    replay(
        mode, 2, "oltp", seed=random.randrange(1 << 30), streams=2,
        dest_arguments=["--keys", str(ring.good.folder)], keys=str(ring.also_good.folder),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["postcopy", *soaked("hybrid")])
def test_a_guest_that_moved_with_checksums_equals_its_twin(mode: str) -> None:
    replay(mode, 2, "oltp", seed=random.randrange(1 << 30), streams=2, checksum=True)


def hello_bytes(role: str) -> int:
    """Give how long the first frame of a connection is when checksums are wanted."""
    session = b"" if role == "control" else bytes(16)
    hello = Hello(
        list(VERSIONS), source_capabilities(checksum=True), role, 0, session, session, software_name(), "guest0", 10.0
    )
    return len(encode_head(hello.kind, encode(hello), 0))


@pytest.mark.parametrize(
    ("connection", "role", "behind_hello"),
    [
        pytest.param(0, "control", HEADER_BYTES + 60, id="a number in the offer"),
        # The map, its key, the pair and the first binary's head come before it.
        pytest.param(1, "pages", HEADER_BYTES + 10, id="the number of the first page", marks=pytest.mark.soak),
        pytest.param(1, "pages", 5_000_000, id="a page"),
    ],
)
def test_a_byte_that_is_changed_on_its_way_is_found(connection: int, role: str, behind_hello: int) -> None:
    at_byte = hello_bytes(role) + behind_hello
    with HostPair(guest_arguments(vcpus=1)) as pair, damaging(pair.port, connection, at_byte) as to:
        with pair.guest_unharmed(), pytest.raises(PagefireError, match="a frame was damaged on its way"):
            pair.migrate(to=to, checksum=True)
        assert_verified(pair.migrate(checksum=True, verify=True))


def test_afterwards_the_guest_migrates(pair: HostPair, ring: KeyRing) -> None:
    report = pair.migrate(keys=str(ring.also_good.folder), verify=True)
    assert_verified(report)
    assert report["verified"]["digest_match"] is True
