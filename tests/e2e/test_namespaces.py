"""Two network namespaces joined by a veth pair, the source in one and the destination in the other: the same proof.

Off loopback: encrypted, unless both ends were told otherwise.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from pagefire.protocol.errors import PagefireError, UsageError
from tests.e2e.host_pair import HostPair, assert_verified, guest_arguments
from tests.e2e.namespaces import DEST_ADDRESS, SOURCE_ADDRESS, Namespaces
from tests.e2e.place import Place
from tests.support.secured import KeyRing
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.root]


def across(namespaces: Namespaces, dest_arguments: list[str], **shape: Any) -> HostPair:
    """Make a source in one namespace and a destination in the other."""
    return HostPair(
        guest_arguments(**shape),
        ["--listen", f"{DEST_ADDRESS}:0", *dest_arguments],
        source_before=namespaces.inside(namespaces.source),
        dest_before=namespaces.inside(namespaces.dest),
    )


@pytest.mark.parametrize(("mode", "secured"), [("postcopy", True), ("hybrid", False), *soaked(("hybrid", True))])
def test_a_guest_that_crossed_a_network_equals_its_twin(
    mode: str, secured: bool, namespaces: Namespaces, place: Place, ring: KeyRing
) -> None:
    dest_arguments = ["--keys", str(ring.good.folder)] if secured else ["--insecure"]
    options: dict[str, Any] = {"keys": str(ring.also_good.folder)} if secured else {"insecure": True}
    shape = {"workload": "oltp", "vcpus": 2, "working_set": "16MiB", "seed": 77}
    with across(namespaces, dest_arguments, **shape, rate=8000) as pair:
        time.sleep(0.2)
        report = pair.migrate(to=f"{DEST_ADDRESS}:{pair.port}", mode=mode, verify=True, **options)
        steps = pair.transactions(pair.dest_socket) + 1000
        pair.on_dest("run_to", steps=steps)
        migrated = pair.on_dest("digest")
        assert ("(--insecure)" in pair.dest.log_path.read_text()) is not secured
        assert ("(--insecure)" in pair.source.log_path.read_text()) is not secured
    with HostPair(guest_arguments(**shape, stop_at=steps)) as pair:
        pair.on_source("run_to", steps=steps)
        stayed = pair.on_source("digest")
    assert migrated == stayed
    assert_verified(report)
    # In post-copy nothing has been sent at the stun, so that there is nothing to compare.
    assert report["verified"]["digest_match"] is (None if mode == "postcopy" else True)
    assert report["clock"]["shared"] is True
    place.assert_nothing_left()


def test_who_may_not_cross_a_network(namespaces: Namespaces, ring: KeyRing, place: Place) -> None:
    """A plain connection is told by name, and so is whoever has no key or a wrong one; the last has the right one."""
    with across(namespaces, ["--keys", str(ring.good.folder)], vcpus=1) as pair:
        to = f"{DEST_ADDRESS}:{pair.port}"
        refusals: list[tuple[dict[str, Any], str, str]] = [
            ({"insecure": True}, "takes only TLS from other hosts", f"plain connection came from {SOURCE_ADDRESS}"),
            ({"keys": str(ring.of_another_ca.folder)}, "the destination's key is not of this host's CA", "not of its CA"),
            ({"keys": str(ring.expired.folder)}, "refused this host's key, which has expired", "the source's key has expired"),
        ]  # fmt: skip
        for options, here, there in refusals:
            with pair.guest_unharmed(), pytest.raises(PagefireError, match=here):
                pair.migrate(to=to, **options)
            assert there in pair.dest.log_path.read_text()
        with pair.guest_unharmed(), pytest.raises(UsageError, match="is another host, and this one has no keys"):
            pair.migrate(to=to)
        with pair.guest_unharmed():
            assert b"this destination takes only TLS from other hosts" in _answer_to_nc(namespaces, pair.port)
        assert_verified(pair.migrate(to=to, keys=str(ring.also_good.folder)))
    place.assert_nothing_left()


def _answer_to_nc(namespaces: Namespaces, port: int) -> bytes:
    """Call as a plain TCP client does that knows nothing of pagefire; gives what it is told."""
    client = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); "
    client += "s.sendall(b'hello there\\n' * 1000); sys.stdout.buffer.write(s.makefile('rb').read())"
    command = [*namespaces.inside(namespaces.source), sys.executable, "-c", client, DEST_ADDRESS, str(port)]
    return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
