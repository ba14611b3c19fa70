"""Two hosts that are network namespaces of this machine, joined by a veth pair; gone afterwards, whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

SOURCE_ADDRESS, DEST_ADDRESS = "10.213.7.1", "10.213.7.2"


class Namespaces(NamedTuple):
    """Their names, and how to run something inside."""

    source: str
    dest: str

    def inside(self, namespace: str) -> list[str]:
        """Give the words that run a command in a namespace; `ip` becomes that command."""
        return ["ip", "netns", "exec", namespace]


@contextmanager
def two_namespaces() -> Iterator[Namespaces]:
    """Make two namespaces of our own with a link between them; where they cannot be had, the test is skipped by name."""
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


def _ip(*arguments: str) -> None:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"network namespaces are missing: ip {' '.join(arguments)}: {ended.stderr.strip()}")
