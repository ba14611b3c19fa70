"""A guest whose pages went compressed, there and back in every mode, is the guest that never was anywhere."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.codecs import CODECS
from pagefire.protocol.compression import MODES
from pagefire.protocol.pages import PAGE_BYTES
from tests.e2e.host_pair import HostPair, assert_verified, run
from tests.e2e.place import Place
from tests.e2e.replaying import arguments, assert_equals_its_twin
from tests.support.kernel import need_pagemap_scan
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

LISTENING = ["--listen", "127.0.0.1:0"]
#: In turn, there and back.
WAYS: list[dict[str, Any]] = [
    {"mode": "hybrid", "streams": 2, "checksum": True},
    {"mode": "postcopy"},
    {"mode": "precopy", "streams": 2, "verify": True},
    {"mode": "stop-and-copy"},
    {"mode": "hybrid", "install": "rolling"},
]


@pytest.fixture(autouse=True)
def _kernel() -> None:
    need_pagemap_scan()


def assert_adds_up(report: dict[str, Any], codec: str) -> None:
    """Check what is told of compression against what else is told."""
    compression = report["compression"]
    assert (compression["mode"], compression["codec"]) == (codec, codec)
    assert compression["compressed_pages"] * PAGE_BYTES == compression["raw_bytes"]
    assert compression["ratio"] == compression["raw_bytes"] / compression["sent_bytes"] > 1.5
    # The books and their like of the workload, which are half blank; the rest of memory does not compress.
    assert compression["compressed_pages"] > 0.25 * report["guest"]["working_set_bytes"] / PAGE_BYTES
    sent_bytes = compression["sent_bytes"] + compression["raw_pages"] * PAGE_BYTES
    fetched_bytes = report["postcopy"]["faulted_pages"] * PAGE_BYTES
    assert sent_bytes < report["wire_bytes"] < 1.02 * (sent_bytes + fetched_bytes) + 1_000_000
    for sent in report["rounds"]:
        assert sent["payload_bytes"] <= (sent["pages"] - sent["zero_pages"]) * PAGE_BYTES
        assert sent["payload_bytes"] < sent["wire_bytes"]


@pytest.mark.parametrize("codec", ["lz4", *soaked(*(codec for codec in CODECS if codec != "lz4"))])
def test_a_guest_equals_its_twin_wherever_its_pages_went_compressed(codec: str, place: Place) -> None:
    ways = random.sample(WAYS, len(WAYS))
    with HostPair([*arguments(), *LISTENING]) as pair:
        for index, way in enumerate(ways):
            report = (pair.migrate_back if index % 2 else pair.migrate)(compress=codec, **way)
            assert_verified(report)
            assert_adds_up(report, codec)
        assert_equals_its_twin(pair, "dest")
    place.assert_nothing_left()


def test_auto_tells_why_pages_go_as_they_are(place: Place, tmp_path: Path) -> None:
    demo = ("demo", "--memory", "64MiB", "--workload", "idle", "--warmup", "100ms", "--settle", "100ms", "--no-check")
    code, out, err = run(*demo, "--compress", "auto", "--json", "-", "--report", str(tmp_path / "report"))
    assert code == 0, err
    compression = json.loads(out)["compression"]
    assert (compression["mode"], compression["codec"], compression["compressed_pages"]) == ("auto", None, 0)
    assert compression["reason"].startswith("the pages do not compress: ")
    assert "the pages do not compress" in err
    place.assert_nothing_left()


def test_another_mode_is_a_usage_error() -> None:
    code, _, err = run("demo", "--compress", "best")
    assert code == 2
    assert "--compress best is unknown" in err
    assert ", ".join(MODES) in err
