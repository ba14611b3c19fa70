"""`pagefire compare vsphere` in small: real guests over loopback and through a shaped link of which nothing is left."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pagefire.protocol.errors import FeatureMissing
from pagefire.scripts.shaped_link import ShapedLink
from tests.e2e.host_pair import finish, start
from tests.e2e.place import Place
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.root, pytest.mark.alone]

SMALL = (
    "compare", "vsphere", "--backing", "4k", "--memory", "64MiB", "--vcpus", "2", "--rate", "20%", "--no-ablation",
    "--sparse", "64GiB", "--resident", "64MiB", "--sparse-vcpus", "2", "--sparse-rate", "4k/s", "--repetitions", "1",
    "--warmup", "1.1s", "--settle", "300ms", "--link-rate", "1gbit",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _shaped_links() -> None:
    need_pagemap_scan()
    try:
        ShapedLink.require_possible()
    except FeatureMissing as missing:
        pytest.skip(str(missing))


def namespaces_of(pid: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"pf-{pid}-")]


def test_a_small_comparison_has_every_figure_and_leaves_nothing(tmp_path: Path, place: Place) -> None:
    folder = tmp_path / "report"
    process = start(*SMALL, "--json", "-", "--report", str(folder))
    code, out, err = finish(process)
    assert code == 0, err
    result = json.loads(out)
    resident, sparse = result["cases"]
    for case in (resident, sparse):
        assert [row["profile"] for row in case["rows"]] == ["6.7", "7", "ours"]
        assert [row["install"] for row in case["rows"]] == ["stop", "loose", "rolling"]
        assert {row["granularity"] for row in case["rows"]} == {"4K"}
        for row in case["rows"]:
            assert row["dip_lost"]["median"] <= row["dip_deepest"]["median"] <= 1
            assert 0 < row["stun_s"]["median"] < row["total_s"]["median"]
    # The raw bitmap is a bit a page, and the link carried it: 2 MiB at 1 Gbit/s.
    sizes = [row["bitmap_bytes"]["median"] for row in sparse["rows"]]
    assert sizes[0] == (64 << 30) // 4096 // 8
    assert max(sizes[1:]) < sizes[0] // 100
    assert 0.3e9 < sparse["link_measured_bps"] < 1e9
    stuns = [row["stun_s"]["median"] for row in sparse["rows"]]
    assert stuns[0] > sizes[0] * 8 / 1e9
    assert json.loads((folder / "compare.json").read_text()) == result
    assert (folder / "compare.png").stat().st_size > 30_000
    assert not namespaces_of(process.pid)
    place.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_leaves_no_namespace(number: signal.Signals, place: Place) -> None:
    process = start(*SMALL, "--guests", "sparse")
    deadline = time.monotonic() + 30.0
    while not place.processes("guest_workload") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert namespaces_of(process.pid)
    process.send_signal(number)
    code, _, _ = finish(process)
    assert code == 3
    assert not namespaces_of(process.pid)
    place.assert_nothing_left()
