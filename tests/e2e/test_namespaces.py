"""Two network namespaces joined by a veth pair, the source in one and the destination in the other: the same proof."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.host_pair import HostPair, assert_verified, guest_arguments
from tests.e2e.place import Place

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.root]

SOURCE_ADDRESS, DEST_ADDRESS = "10.213.7.1", "10.213.7.2"


class Namespaces(NamedTuple):
    source: str
    dest: str

    def inside(self, namespace: str) -> list[str]:
        """Give the words that run a command in a namespace; `ip` becomes that command."""
        return ["ip", "netns", "exec", namespace]


def _ip(*arguments: str) -> None:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"network namespaces are missing: ip {' '.join(arguments)}: {ended.stderr.strip()}")


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Two namespaces of our own with a link between them; gone afterwards, whatever happens."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces are missing: they need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces are missing: there is no `ip` command (iproute2)")
    unique = uuid.uuid4().hex[:6]
    pair = Namespaces(f"pf-{unique}-s", f"pf-{unique}-d")
    try:
        for namespace in pair:
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("link", "add", pair.source, "netns", pair.source, "type", "veth", "peer", pair.dest, "netns", pair.dest)
        for namespace, address in zip(pair, (SOURCE_ADDRESS, DEST_ADDRESS), strict=True):
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", namespace)
            _ip("-n", namespace, "link", "set", namespace, "up")
        yield pair
    finally:
        # The link goes with its namespaces.
        for namespace in pair:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


@pytest.mark.parametrize("mode", ["hybrid", "postcopy"])
def test_a_guest_that_crossed_a_network_equals_its_twin(mode: str, namespaces: Namespaces, place: Place) -> None:
    shape = {"workload": "oltp", "vcpus": 2, "working_set": "16MiB", "seed": 77}
    crossing = HostPair(
        guest_arguments(**shape, rate=8000),
        ["--listen", f"{DEST_ADDRESS}:0"],
        source_before=namespaces.inside(namespaces.source),
        dest_before=namespaces.inside(namespaces.dest),
    )
    with crossing as pair:
        time.sleep(0.2)
        report = pair.migrate(to=f"{DEST_ADDRESS}:{pair.port}", mode=mode, verify=True)
        steps = pair.transactions(pair.dest_socket) + 1000
        pair.on_dest("run_to", steps=steps)
        migrated = pair.on_dest("digest")
    with HostPair(guest_arguments(**shape, stop_at=steps)) as pair:
        pair.on_source("run_to", steps=steps)
        stayed = pair.on_source("digest")
    assert migrated == stayed
    assert_verified(report)
    # In post-copy nothing has been sent at the stun, so that there is nothing to compare.
    assert report["verified"]["digest_match"] is (None if mode == "postcopy" else True)
    assert report["clock"]["shared"] is True
    place.assert_nothing_left()
