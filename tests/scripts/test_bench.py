"""`pagefire bench`: its options, how pairs are taken, what is read out of reports, its tables and pictures, on made-up figures."""

from __future__ import annotations

import json
import mmap
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.report import TimelineBucket
from pagefire.scripts.bench import brownout, stun, suite
from pagefire.scripts.bench.full_round import Case, cases_of
from pagefire.scripts.bench.options import BenchOptions
from pagefire.scripts.bench.pairs import alternate, ratios
from pagefire.scripts.bench.plan import page_store_guest, sizes_that_fit
from pagefire.scripts.bench.process_figures import MemoryPeaks, cpu_s
from pagefire.scripts.bench.stand_in import stand_ins
from pagefire.scripts.report_folder import refuse_foreign
from tests.scripts import completed_report

Json = dict[str, Any]
MIB, GIB = 1 << 20, 1 << 30
SILENT = Console(quiet=True)


# -- pairs ---------------------------------------------------------------------------------------------------------------


def test_whoever_comes_second_does_so_every_other_time() -> None:
    order: list[str] = []

    def taken(name: str) -> str:
        order.append(name)
        return name

    pairs = list(alternate(lambda: taken("ours"), lambda: taken("theirs"), 4))
    assert pairs == [("ours", "theirs")] * 4
    assert order == ["ours", "theirs", "theirs", "ours"] * 2


def test_a_pair_is_given_before_the_next_is_taken() -> None:
    counted = iter(range(100))
    pairs = alternate(lambda: next(counted), lambda: next(counted), 3)
    assert next(pairs) == (0, 1)
    assert next(counted) == 2


def test_ratios_are_of_pairs_not_of_medians() -> None:
    assert ratios([(1.0, 2.0), (9.0, 3.0), (4.0, 4.0)]) == {"median": 1.0, "min": 0.5, "max": 3.0}


# -- options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("streams", "1,none", "no list of numbers from 1 to 16"),
        ("streams", "17", "no list of numbers from 1 to 16"),
        ("streams", "1,,2", "an empty entry"),
        ("vcpus", "257", "no list of numbers from 1 to 256"),
        ("backing", "4k,huge", "--backing huge is unknown"),
        ("repetitions", 0, "0 pairs measure nothing"),
        ("migrations", 0, "0 migrations measure nothing"),
        ("memory", "63MiB", "no size of a guest here"),
        ("memory", "65537KiB", "no size of a guest here"),
        ("sizes", "1GiB,16MiB", "--sizes '16MiB' is no size"),
        ("rates", "-1", "not a valid rate"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_started(field: str, value: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        BenchOptions(**{field: value}).plan()


def test_what_is_given_counts_whatever_the_defaults_are() -> None:
    full, quick = BenchOptions().plan(), BenchOptions(quick=True).plan()
    assert (full.memory_bytes, full.round_bytes, full.streams) == (2 * GIB, GIB, (1, 2, 4))
    assert (full.sizes_bytes[0], full.sizes_bytes[-1]) == (256 * MIB, 8 * GIB)
    assert (full.rates_per_s[0], full.rates_per_s[-1], full.vcpus[-1]) == (0.0, 200_000.0, 256)
    assert (quick.memory_bytes, quick.backings, quick.rates_per_s) == (64 * MIB, ("4k",), ())
    given = BenchOptions(memory="128MiB", rates="100k,0,50k", sizes="none", quick=True).plan()
    assert (given.memory_bytes, given.round_bytes) == (128 * MIB, 128 * MIB)
    assert (given.rates_per_s, given.sizes_bytes) == ((0.0, 50_000.0, 100_000.0), ())


def test_hugetlb_memory_is_never_cold() -> None:
    plan = BenchOptions(streams="1,2").plan()
    assert cases_of(plan, "hugetlb") == [Case(1, "hugetlb", False), Case(2, "hugetlb", False)]
    assert [case.cold for case in cases_of(plan, "thp")] == [True, False, True, False]


def test_sizes_of_which_two_do_not_fit_are_left_out() -> None:
    assert sizes_that_fit(BenchOptions(sizes="64MiB,8TiB").plan(), SILENT) == [64 * MIB]
    assert sizes_that_fit(BenchOptions(sizes="none").plan(), SILENT) == []
    with pytest.raises(PagefireError, match="no guest of these sizes fits"):
        sizes_that_fit(BenchOptions(sizes="8TiB").plan(), SILENT)


def test_a_guest_of_rate_0_commits_all_the_same_but_into_one_page_a_vcpu() -> None:
    guest = page_store_guest(256 * MIB, rate_per_s=0)
    assert (guest.rate, guest.working_set_bytes) == (50_000.0, 2 * PAGE_BYTES)
    assert page_store_guest(256 * MIB).working_set_bytes == 128 * MIB
    assert page_store_guest(8 * GIB).working_set_bytes == 256 * MIB


# -- processes -----------------------------------------------------------------------------------------------------------


def test_the_cpu_clock_of_a_process_is_what_it_reads_itself() -> None:
    before, own = cpu_s(os.getpid()), time.process_time()
    sum(range(200_000))
    after, own_after = cpu_s(os.getpid()), time.process_time()
    assert after > before
    assert abs((after - before) - (own_after - own)) < 0.5 * (own_after - own) + 0.001


def test_the_peak_is_not_below_what_was_held() -> None:
    held_bytes = 32 * MIB
    with MemoryPeaks(os.getpid()) as watch:
        (at_first,) = watch.peaks
        # Not the heap's, which may have had as much before and kept it.
        with mmap.mmap(-1, held_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
            held.write(b"x" * held_bytes)
            time.sleep(0.05)
    assert watch.peaks[0].own_bytes >= at_first.own_bytes + held_bytes // 2
    assert watch.peaks[0].tables_bytes > 0


def test_stand_ins_take_no_more_than_their_share_and_end() -> None:
    with stand_ins([0.2, 0.0]) as busy:
        busy.shares()
        time.sleep(0.5)
        taken = busy.shares()
        pids = busy._pids
    assert taken[1] < taken[0] < 0.4
    for pid in pids:
        with pytest.raises(OSError, match=r"."):
            cpu_s(pid)


# -- what is read out of reports -----------------------------------------------------------------------------------------


def report_of(commits_after: list[int], *, resident_after_s: float = 0.05) -> Json:
    """Make up a migration: 200 commits a bucket before, resumed at 1 s, then these."""
    report = completed_report().as_dict()
    names = ("setup", "active", "device", "postcopy-active", "completed")
    at_s = (0.0, 0.2, 0.99, 1.0, 1.0 + resident_after_s)
    buckets = [(step / 100, 200) for step in range(-100, 99)] + [(0.99, 0)]
    buckets += [(1.0 + step / 100, commits) for step, commits in enumerate(commits_after)]
    return report | {
        "stun_at_s": 0.992,
        "stun_s": 0.011,
        "phases": [{"phase": name, "at_s": at} for name, at in zip(names, at_s, strict=True)],
        "timeline": [vars_of(TimelineBucket(t_s, commits, "")) for t_s, commits in buckets],
        "guest_rate": {"before_per_s": 20_000.0, "during_per_s": 19_000.0, "after_per_s": 20_000.0},
    }


def vars_of(bucket: TimelineBucket) -> Json:
    return {"t_s": bucket.t_s, "commits": bucket.commits, "phase": bucket.phase}


@pytest.mark.parametrize(
    ("commits", "expected"),
    [
        ([200] * 20, 0.0),
        ([0] * 10 + [200] * 20, 0.1),
        ([190] * 20, 0.0),
        ([189] * 20, None),
        # One bucket that makes up for a pause is not the baseline come back.
        ([0, 200, 0, 0, 0, 0, *([200] * 10)], 0.06),
        ([0, 0, 0], None),
    ],
)
def test_the_guest_is_back_when_five_buckets_are(commits: list[int], expected: float | None) -> None:
    found = brownout.to_95_s(report_of(commits))
    assert found == (pytest.approx(expected) if expected is not None else None)


def test_the_share_kept_while_pages_arrive() -> None:
    assert brownout.postcopy_share(report_of([0, 100, 200, 200, 200, 7, 7])) == pytest.approx(0.7)
    assert brownout.postcopy_share(report_of([150, 9], resident_after_s=0.002)) == pytest.approx(0.75)


def test_the_stun_ends_with_the_first_commit_after_the_resume() -> None:
    report = report_of([200] * 5)
    assert stun.first_commit_s(report) == pytest.approx(0.003)
    parts = stun.breakdown([report])
    assert set(parts) == set(stun.PARTS)
    assert parts["first_commit_s"] == pytest.approx(0.003)


# -- tables and pictures -------------------------------------------------------------------------------------------------


def spread_of(median: float) -> Json:
    return {"median": median, "min": 0.8 * median, "max": 1.5 * median}


def stun_row(series: str, memory_bytes: int, rate_per_s: float, vcpus: int) -> Json:
    ranked = spread_of(0.004) | {"p50": 0.004, "p99": 0.006, "max": 0.006}
    return {
        "series": series, "memory_bytes": memory_bytes, "working_set_bytes": 256 * MIB, "vcpus": vcpus,
        "rate_per_s": rate_per_s, "migrations": 3, "stun_s": ranked, "bare_s": ranked, "ratio": spread_of(2.5),
        "breakdown": dict.fromkeys(stun.PARTS, 0.0005), "remaining_pages": 2_400,
        "stuns_s": [0.004, 0.003, 0.006], "bares_s": [0.001, 0.002, 0.0015],
    }  # fmt: skip


def made_up(name: str) -> Json:
    """Make up what a benchmark's `measure` gives."""
    cases = [(1, "4k", True), (2, "thp", False)]
    case_rows = [{"streams": streams, "backing": backing, "cold": cold} for streams, backing, cold in cases]
    if name == "throughput":
        figures = {"ratio": 0.9, "ratio_min": 0.8, "ratio_max": 1.1, "copier_Bps": 2e9, "round_Bps": 1.8e9}
        return {"memory_bytes": GIB, "rows": [row | figures for row in case_rows]}
    if name == "cpu":
        sides = {
            f"{side}_{field}": spread_of(1.1)
            for side in ("source", "dest", "both")
            for field in ("ratio", "s_per_GiB", "copier_s_per_GiB")
        }
        return {"memory_bytes": GIB, "rows": [row | sides for row in case_rows]}
    if name == "stun":
        rows = [stun_row("distribution", 2 * GIB, 50_000.0, 2)]
        rows += [stun_row("memory", size * GIB, 50_000.0, 2) for size in (1, 2)]
        rows += [stun_row("rate", 2 * GIB, rate, 2) for rate in (0.0, 50_000.0)]
        return {"rows": rows + [stun_row("vcpus", 2 * GIB, 20_000.0, vcpus) for vcpus in (1, 256)]}
    if name == "brownout":
        report = report_of([0, 100, *([200] * 40)])
        shares = (
            "during_over_beside",
            "during_over_alone",
            "beside_over_alone",
            "postcopy_over_alone",
            "after_over_alone",
        )
        row = dict.fromkeys(shares, spread_of(0.9)) | {
            "working_set_bytes": 256 * MIB, "to_95_s": spread_of(0.05), "lost_s": spread_of(0.1),
            "fires_cost_s": spread_of(0.04), "shown": {key: report[key] for key in ("timeline", "phases", "guest_rate")},
        }  # fmt: skip
        rows = [row | {"rate_per_s": 50_000.0}, row | {"rate_per_s": None, "to_95_s": None}]
        return {"memory_bytes": 2 * GIB, "fire_s": 6e-7, "rows": rows}
    if name == "faults":
        of_faults = {
            field: {one: spread_of(90.0) for one in ("p50", "p99", "max")} for field in ("fault_us", "bare_us", "ratio")
        }
        counts = {"remaining_pages": spread_of(2_400), "faults": spread_of(80)}
        return {
            "memory_bytes": 2 * GIB,
            "rows": [{"mode": mode} | of_faults | counts for mode in ("hybrid", "postcopy")],
        }
    if name == "compression":
        fields = ("round", "off_round", "total", "off_total")
        figures = {f"{field}_s": spread_of(2.0) for field in fields} | {"pairs": 3, "codec": "zstd"}
        figures |= {"round_ratio": spread_of(0.4), "total_ratio": spread_of(0.5)}
        figures |= {"wire_bytes": spread_of(40 * MIB), "off_wire_bytes": spread_of(128 * MIB)}
        of = [(None, "text", "auto"), (None, "distinct", "auto"), (10**8, "text", "zstd")]
        return {
            "streams": 1,
            "rows": [
                {"memory_bytes": GIB, "link_bps": link_bps, "contents": contents, "mode": mode} | figures
                for link_bps, contents, mode in of
            ],
        }
    if name == "deltas":
        names = ("total_s", "wire_bytes", "stun_s", "stall_s", "left_pages", "slept_s")
        figures = {f"{whose}{name}": spread_of(2.0) for name in names for whose in ("", "digests_")}
        figures |= {
            "total_ratio": spread_of(0.4),
            "wire_ratio": spread_of(0.5),
            "delta_ratio": spread_of(20.0),
            "pairs": 3,
        }
        shapes = [("oltp", "precopy", 1.0), ("random", "precopy", 0.5), ("random", "hybrid", 1.0)]
        return {
            "codec": "zstd",
            "rows": [
                {"workload": workload, "mode": mode, "room": room, "memory_bytes": 256 * MIB, "link_Bps": 16e6}
                | figures
                for workload, mode, room in shapes
            ],
        }
    sides = {
        f"{side}_{field}": spread_of(40 * MIB)
        for side in ("source", "dest")
        for field in ("own_bytes", "rest_bytes", "tables_bytes")
    }
    sides |= {f"{side}_ratio": spread_of(1.1) for side in ("source", "dest")}
    sizes = [(GIB, GIB), (2 * GIB, 2 * GIB), (6 << 40, 256 * MIB)]
    return {"rows": [{"memory_bytes": size, "resident_bytes": resident} | sides for size, resident in sizes]}


@pytest.mark.parametrize("name", list(suite.BENCHMARKS))
def test_a_result_is_printed_and_written_as_json_and_picture(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {"benchmark": name, "at": "2026-01-01T00:00:00", "reference": "the reference", "repetitions": 3}
    result = head | {"host": {"load": 0.5}} | made_up(name)
    suite.print_result(result, Console(width=80, no_color=True))
    printed = capsys.readouterr().out
    assert "Reference: the reference" in printed
    assert "…" not in printed
    json_path, png_path = suite.write_folder(result, tmp_path / "report")
    assert (json_path.name, png_path.name) == (f"{name}.json", f"{name}.png")
    assert json.loads(json_path.read_text()) == result
    assert png_path.read_bytes().startswith(b"\x89PNG")
    assert png_path.stat().st_size > 20_000


def test_a_folder_takes_every_benchmark_and_nothing_foreign(tmp_path: Path) -> None:
    for name in ("cpu", "faults"):
        head = {"benchmark": name, "at": "", "reference": "", "repetitions": 1, "host": {"load": 0.0}}
        suite.write_folder(head | made_up(name), tmp_path)
    files = suite.folder_files(list(suite.BENCHMARKS))
    assert len(files) == 2 * len(suite.BENCHMARKS)
    refuse_foreign(tmp_path, files)
    (tmp_path / "diary.txt").touch()
    with pytest.raises(UsageError, match="diary"):
        suite.write_folder(head | made_up("cpu"), tmp_path)
