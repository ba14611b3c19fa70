"""A guest that has come leaves again, and comes back, any number of times: nothing is lost, and neither daemon grows."""

from __future__ import annotations

import os
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host_pair import HostPair, assert_verified, until
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

LISTENING = ["--listen", "127.0.0.1:0"]


def own_bytes(pid: int) -> int:
    """Read what a daemon has for itself: neither guest memory, which it maps, nor files."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def descriptors(pair: HostPair) -> int:
    """Count what both daemons hold open; a connection that has just asked for something may be among it."""
    return sum(len(os.listdir(f"/proc/{daemon.pid}/fd")) for daemon in (pair.source, pair.dest))


def back_and_forth(migrations: int) -> dict[str, Any]:
    """Migrate one guest under load from host to host so often; gives each migration's figures."""
    stuns, memory, fds = list[float](), list[int](), list[int]()
    with HostPair([*arguments(), *LISTENING]) as pair:
        for index in range(migrations):
            report = pair.migrate() if index % 2 == 0 else pair.migrate_back()
            assert_verified(report)
            stuns.append(report["stun_s"])
            memory.append(own_bytes(pair.source.pid) + own_bytes(pair.dest.pid))
            fds.append(descriptors(pair))
        # Each daemon has been both by the third: from then on nothing may be added.
        until(lambda: descriptors(pair) <= fds[2], "descriptors are kept after a migration")
        where = "source" if migrations % 2 == 0 else "dest"
        entries = pair.on_source("status")["guests"] + pair.on_dest("status")["guests"]
        assert sum(one["owner"] for one in entries) == 1
        assert_equals_its_twin(pair, where)
    return {"stuns": stuns, "memory": memory, "fds": fds}


def test_six_migrations_back_and_forth(place: Place) -> None:
    need_pagemap_scan()
    back_and_forth(6)
    place.assert_nothing_left()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_hundred_migrations_back_and_forth(record_property: pytest.RecordProperty) -> None:
    """Must show: 100 migrations without a restart; memory and descriptors of both daemons, and the stun, first 10 and last 10."""
    need_pagemap_scan()
    found = back_and_forth(100)
    for name, values in found.items():
        first, last = statistics.median(values[:10]), statistics.median(values[-10:])
        record_property(name, f"first 10 {first:g}, last 10 {last:g}, range {min(values):g} to {max(values):g}")
        print(
            f"{name}: median of the first 10 {first:g}, of the last 10 {last:g}, range {min(values):g} to {max(values):g}"
        )
    assert max(found["fds"][-10:]) <= max(found["fds"][:10])
    # A leak of a page's worth of bookkeeping for each migration would be some MiB; the heap of two Pythons moves by less.
    assert statistics.median(found["memory"][-10:]) - statistics.median(found["memory"][:10]) < 8 << 20


def test_a_guest_cannot_leave_while_its_pages_arrive(place: Place) -> None:
    need_pagemap_scan()
    with HostPair([*arguments(), *LISTENING]) as pair:
        with pair.held_at("resumed") as stands, pair.migrating("--mode", "postcopy"):
            stands()
            with pytest.raises(Exception, match="still arriving"):
                pair.migrate_back()
            pair.release("resumed")
            until(lambda: bool(pair.on_dest("status")["guests"][0]["resident"]), "it does not arrive")
        assert_verified(pair.migrate_back())
    place.assert_nothing_left()
