"""Proof 1: a guest that was migrated at a random moment is, at step N, the guest that never was."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from typing import Any

import pytest

from pagefire.protocol.codecs import CODECS
from tests.e2e.host_pair import HostPair, guest_arguments
from tests.e2e.replaying import twin_digest
from tests.support.huge_pages import huge_pages, hugetlb_pool
from tests.support.soaked import soaked

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

MODES = ("hybrid", "precopy", "postcopy", "stop-and-copy")
WORKLOADS = ("sequential", "random", "hotspot", "phased", "oltp")


def replay(
    mode: str,
    vcpus: int,
    workload: str,
    seed: int,
    streams: int = 1,
    backing: str = "4k",
    dest_backing: str | None = None,
    scattered: int = 0,
    dest_arguments: list[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Migrate one guest at a random moment, run it to step N; run its twin there without migrating; compare all of memory.

    N lies beyond what any vCPU has done by the end of the migration, so that both guests have to write after it.
    """
    # Paced, so that N is near; sequential stores wrap around the working set several times.
    rate = 4000 * vcpus if workload == "oltp" else 10000 * vcpus
    shape = {"workload": workload, "vcpus": vcpus, "seed": seed, "working_set": "16MiB", "backing": backing}
    if scattered:
        shape |= {"memory": "8GiB", "resident": "32MiB", "scattered": scattered}
    arguments = guest_arguments(**shape, rate=rate)
    moment = random.Random(seed)
    with HostPair(arguments, dest_arguments) as pair:
        time.sleep(moment.uniform(0.02, 0.4))
        report = pair.migrate(mode=mode, streams=streams, backing=dest_backing, check=True, **options)
        steps = 2 * pair.transactions(pair.dest_socket) // vcpus + 1000
        pair.on_dest("run_to", steps=steps)
        migrated = pair.on_dest("digest")
    assert migrated == twin_digest(steps, **shape)
    postcopy = report["postcopy"]
    assert postcopy["pushed_pages"] + postcopy["faulted_pages"] == report["bitmap"]["pages"]
    assert report["verified"]["problems"] == []
    if (compress := options.get("compress", "off")) in CODECS:
        assert report["compression"]["codec"] == compress
        assert report["compression"]["ratio"] > 1.5
    assert (report["guest"]["backing"], report["guest"]["dest_backing"]) == (backing, dest_backing or backing)
    return report


GUESTS = ((1, "random"), (2, "oltp"), (8, "phased"))
#: Every mode and every guest, if not each with each.
TWINS_ALWAYS = (
    ("precopy", 1, "random"), ("stop-and-copy", 1, "random"), ("hybrid", 2, "oltp"), ("postcopy", 2, "oltp"),
    ("hybrid", 8, "phased"), ("postcopy", 8, "phased"),
)  # fmt: skip
TWINS = [(mode, *guest) for mode in MODES for guest in GUESTS]


@pytest.mark.parametrize(
    ("mode", "vcpus", "workload"), [*TWINS_ALWAYS, *soaked(*(one for one in TWINS if one not in TWINS_ALWAYS))]
)
def test_a_migrated_guest_equals_its_twin_that_stayed(mode: str, vcpus: int, workload: str) -> None:
    replay(mode, vcpus, workload, seed=random.randrange(1 << 30))


@pytest.mark.parametrize("workload", ["sequential", "hotspot"])
def test_every_workload_survives_a_hybrid_migration_over_two_streams(workload: str) -> None:
    replay("hybrid", 2, workload, seed=random.randrange(1 << 30), streams=2)


#: Every way to trace, as `--tracker`, `--install` and `--tracer`, `--granularity` and `--backing`, `--bitmap`.
FACTORS = (
    ("pagemap-scan", "page-fire"),
    (("stop", "vcpu"), ("loose", "vcpu"), ("loose", "host"), ("rolling", "host")),
    (("4K", "4k"), ("4K", "thp"), ("2M", "thp"), ("auto", "thp"), ("2M", "hugetlb")),
    ("compacted", "raw"),
)
#: What the kernel lays page by page cannot be coarse on memory that it can divide.
EVERY_WAY = [
    way
    for way in itertools.product(*FACTORS)
    if not (way[0] == "page-fire" and way[2] in (("2M", "thp"), ("auto", "thp")))
]
#: Both hosts' memory, and a little more.
_POOL_BYTES = 160 << 20


def pairwise(ways: list[Any]) -> list[Any]:
    """Choose ways until each two values of different factors that go together have been together once."""
    chosen: list[Any] = []
    missing = {pair for way in ways for pair in itertools.combinations(enumerate(way), 2)}
    while missing:
        best = max(ways, key=lambda way: len(missing & set(itertools.combinations(enumerate(way), 2))))
        missing -= set(itertools.combinations(enumerate(best), 2))
        chosen.append(best)
    return chosen


def replay_traced(way: Any, mode: str) -> None:
    tracker, (install, tracer), (granularity, backing), bitmap = way
    with contextlib.ExitStack() as stack:
        if backing == "thp":
            stack.enter_context(huge_pages())
        if backing == "hugetlb":
            stack.enter_context(hugetlb_pool(_POOL_BYTES))
        replay(
            mode, 2, "random", random.randrange(1 << 30), backing=backing, tracker=tracker, install=install, tracer=tracer,
            granularity=granularity, bitmap=bitmap,
        )  # fmt: skip


@pytest.mark.parametrize("way", pairwise(EVERY_WAY), ids=str)
def test_every_two_ways_to_trace_together_lose_nothing(way: Any) -> None:
    replay_traced(way, "hybrid")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_way_to_trace_loses_nothing(record_property: pytest.RecordProperty) -> None:
    """All combinations, hybrid and pre-copy in turn."""
    for way, mode in zip(EVERY_WAY, itertools.cycle(("hybrid", "hybrid", "precopy")), strict=False):
        replay_traced(way, mode)
    record_property("combinations", len(EVERY_WAY))


@pytest.mark.parametrize("mode", MODES)
def test_a_guest_on_hugetlb_equals_its_twin_in_every_mode(mode: str) -> None:
    with hugetlb_pool(_POOL_BYTES):
        replay(mode, 2, "oltp", seed=random.randrange(1 << 30), streams=2, backing="hugetlb")


@pytest.mark.parametrize(("here", "there"), [("4k", "hugetlb"), ("hugetlb", "4k"), ("thp", "hugetlb")])
def test_a_guest_changes_what_maps_its_memory_on_the_way(here: str, there: str) -> None:
    with huge_pages(), hugetlb_pool(_POOL_BYTES):
        replay("hybrid", 2, "oltp", seed=random.randrange(1 << 30), backing=here, dest_backing=there)


@pytest.mark.parametrize(("mode", "workload", "streams"), [("hybrid", "random", 2), *soaked(("precopy", "hotspot", 1))])
def test_rounds_that_leave_out_what_is_rewritten_lose_nothing(mode: str, workload: str, streams: int) -> None:
    """A first round of some seconds, of which a part is never sent: it was written while it waited. The limit is kept meanwhile."""
    limit_Bps = 20e6
    report = replay(
        mode,
        2,
        workload,
        seed=random.randrange(1 << 30),
        streams=streams,
        max_bandwidth_Bps=limit_Bps,
        downtime_limit_s=1.5,
    )
    first = report["rounds"][0]
    assert first["skipped_pages"] > 0
    assert first["pages"] + first["skipped_pages"] == report["guest"]["resident_bytes"] // report["guest"]["page_bytes"]
    assert 0.5 * limit_Bps < first["wire_bytes"] / first["duration_s"] < 1.05 * limit_Bps


def test_compressed_pages_arrive_on_hugetlb() -> None:
    with hugetlb_pool(_POOL_BYTES):
        replay("hybrid", 2, "oltp", seed=random.randrange(1 << 30), backing="hugetlb", compress="zstd")


#: How memory is tracked, in every mode: one mode each in `make test`.
SIFTED = [
    (mode, backing, granularity)
    for backing, granularity in (("4k", "auto"), ("thp", "2M"), ("thp", "auto"), ("hugetlb", "auto"))
    for mode in MODES
]
SIFTED_ALWAYS = [
    ("hybrid", "4k", "auto"), ("precopy", "thp", "2M"), ("precopy", "hugetlb", "auto"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "backing", "granularity"), [*SIFTED_ALWAYS, *soaked(*(way for way in SIFTED if way not in SIFTED_ALWAYS))]
)
def test_a_guest_whose_unchanged_pages_were_left_out_equals_its_twin(mode: str, backing: str, granularity: str) -> None:
    """A second in rounds, so that there are some: what the destination holds is compared at the stun, too."""
    workload, streams = random.choice(["oltp", "random", "phased"]), random.choice([1, 2])
    install = random.choice(["loose", "rolling"])
    with huge_pages(), hugetlb_pool(_POOL_BYTES):
        report = replay(
            mode, 2, workload, seed=random.randrange(1 << 30), streams=streams, backing=backing, granularity=granularity,
            install=install, skip_unchanged="on", max_bandwidth_Bps=100e6, max_rounds=6, on_limit="postcopy", verify=True,
            compress=random.choice(["off", "lz4"]) if workload == "oltp" else "off",
        )  # fmt: skip
    unchanged = report["unchanged"]
    assert unchanged["mode"] == "on"
    if not report["rounds"]:
        assert (unchanged["hashed_pages"], unchanged["reason"]) == (0, "there were no rounds")
    else:
        assert unchanged["hashed_pages"] > 0
        assert unchanged["unchanged_pages"] >= sum(one["unchanged_pages"] for one in report["rounds"])
        if backing == "hugetlb" and len(report["rounds"]) > 1:
            assert unchanged["unchanged_pages"] > 0


@pytest.mark.parametrize("mode", ["hybrid", "postcopy", *soaked("precopy", "stop-and-copy")])
def test_single_pages_all_over_a_sparse_guest_arrive(mode: str) -> None:
    replay(mode, 2, "random", seed=random.randrange(1 << 30), scattered=3000)


@pytest.mark.parametrize("mode", ["hybrid", "precopy"])
def test_page_fires_lose_nothing_either(mode: str) -> None:
    replay(mode, 2, "random", seed=random.randrange(1 << 30), tracker="page-fire")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_five_random_moments_in_every_mode(record_property: pytest.RecordProperty) -> None:
    """Must show 3: at least 25 random moments for each of four modes, with 1, 2 and 8 vCPUs, over all workloads."""
    random_source = random.Random()
    done = 0
    for mode in MODES:
        for index in range(27):
            replay(mode, (1, 2, 8)[index % 3], WORKLOADS[index % len(WORKLOADS)], seed=random_source.randrange(1 << 30))
            done += 1
    record_property("replays", done)
    print(f"replays={done} differing=0")
