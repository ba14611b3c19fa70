"""Proof 3: at the stun the bitmap names exactly the pages whose copy at the destination is missing or differs."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import time

import numpy as np
import pytest

from pagefire.guest_workload.linux import memfd
from pagefire.guest_workload.linux.memfd import data_extents
from pagefire.guest_workload.observation import open_memory
from pagefire.protocol.bitmap import decode_bitmap
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from tests.e2e.host_pair import HostPair, guest_arguments

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

WORKLOADS = ("idle", "sequential", "random", "hotspot", "phased", "adversary", "oltp")


def differing_pages(pair: HostPair) -> PageSet:
    """Compare both memories byte by byte over whatever either has; a page that one lacks is zero there."""
    here = open_memory(pair.on_source("guests")[pair.name])
    there = open_memory(pair.on_dest("guests")[pair.name])
    try:
        differing = []
        held = data_extents(here.fd), data_extents(there.fd)
        for batch in (held[0] | held[1]).batches(4096):
            # A hole must not be read through the mapping, which would allocate it.
            contents = []
            for mapping, extents in zip((here, there), held, strict=True):
                numbers = batch.page_numbers()
                rows = np.zeros((batch.pages, PAGE_BYTES), np.uint8)
                mine = (batch & extents).page_numbers()
                rows[np.searchsorted(numbers, mine)] = mapping.array.reshape(-1, PAGE_BYTES)[mine]
                contents.append(rows)
            differing.append(batch.page_numbers()[(contents[0] != contents[1]).any(axis=1)])
        return PageSet.of_pages(np.concatenate(differing)) if differing else PageSet.empty()
    finally:
        here.close()
        there.close()


@pytest.mark.parametrize("mode", ["hybrid", "precopy", "postcopy"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_bitmap_is_exact_at_the_stun(workload: str, mode: str, record_property: pytest.RecordProperty) -> None:
    arguments = guest_arguments(memory="128MiB", workload=workload, working_set="32MiB", resident="96MiB")
    with HostPair(arguments) as pair:
        time.sleep(0.3)
        pair.on_source("point", action="hold", name="ready")
        reports: list[dict[str, object]] = []
        # An adversary never lets pre-copy converge: what is left after three rounds is then cancelled or moved by the mode's rule.
        options = {"mode": mode, "max_rounds": 3, "on_limit": "postcopy"}
        migration = threading.Thread(target=lambda: reports.append(pair.migrate(**options)))
        migration.start()
        pair.on_source("point", action="wait", name="ready")
        answer = pair.on_source("remaining")
        bitmap = decode_bitmap("compacted", base64.b64decode(answer["bitmap"]), 128 * 256)
        differing = differing_pages(pair)
        pair.on_source("point", action="release", name="ready")
        migration.join()
    forgotten, equal = differing - bitmap, bitmap - differing
    record_property("rewritten_with_equal_content", equal.pages)
    print(f"workload={workload} mode={mode} bitmap={bitmap.pages} differing={differing.pages} equal={equal.pages}")
    assert not forgotten
    # Named although equal: written since it was sent, with what it held before. More than the bitmap's own pages cannot be.
    assert equal.pages <= bitmap.pages
    report = reports[0]
    assert report["outcome"] == "completed"
    postcopy = report["postcopy"]
    assert isinstance(postcopy, dict)
    assert postcopy["pushed_pages"] + postcopy["faulted_pages"] == bitmap.pages


@pytest.mark.parametrize("mode", ["postcopy", "stop-and-copy"])
def test_what_gets_contents_just_before_the_stun_is_not_left_behind(mode: str) -> None:
    """Nothing is traced in these modes: what was a hole at the first look is asked for again when the guest stands still."""
    late = PageSet.of_pages([60 * 256 + 7, 120 * 256, 120 * 256 + 1])
    with HostPair(guest_arguments(memory="128MiB", working_set="32MiB", resident="96MiB")) as pair:
        described = pair.on_source("guests")[pair.name]
        opened = os.open(f"/proc/{described['pid']}/fd/{described['memory_fd']}", os.O_RDWR)
        with contextlib.closing(memfd.Mapping(opened)) as memory:
            pair.on_source("point", action="hold", name="traced")
            reports: list[dict[str, object]] = []
            migration = threading.Thread(target=lambda: reports.append(pair.migrate(mode=mode)))
            migration.start()
            pair.on_source("point", action="wait", name="traced")
            assert not data_extents(memory.fd) & late
            for page in late.page_numbers().tolist():
                memory.array[page * PAGE_BYTES] = 77
            pair.on_source("point", action="release", name="traced")
            migration.join()
        assert reports[0]["outcome"] == "completed"
        there = open_memory(pair.on_dest("guests")[pair.name])
        assert data_extents(there.fd) & late == late
        assert [int(there.array[page * PAGE_BYTES]) for page in late.page_numbers().tolist()] == [77, 77, 77]
        there.close()
