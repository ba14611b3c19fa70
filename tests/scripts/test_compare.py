"""`pagefire compare`: its profiles, its options, what it reads out of reports, its tables and its picture, on made-up runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.errors import FeatureMissing, PagefireError, UsageError
from pagefire.protocol.pages import GRANULE_PAGES
from pagefire.protocol.report import PhaseBegin, TimelineBucket, TraceInstall
from pagefire.scripts import compare, shaped_link
from pagefire.scripts.compare import Case, Times, run_compare
from pagefire.scripts.compare_figures import BREAKDOWN, dip_of, row_of
from pagefire.scripts.compare_options import CompareOptions
from pagefire.scripts.compare_plot import COMPARE_FILES, commits_per_s, phases_of, stun_parts_s, write_compare_folder
from pagefire.scripts.compare_table import scaling_words, table_text
from pagefire.scripts.profiles import ABLATION, ENHANCEMENTS, PROFILES, VSPHERE, Profile, on_backing
from pagefire.scripts.shaped_link import ShapedLink, parse_link_rate
from pagefire.scripts.spread import spread
from tests.scripts import completed_report

Json = dict[str, Any]

SMALL = {"memory": "64MiB", "sparse": "64GiB", "resident": "64MiB", "backing": "4k"}


# -- profiles ------------------------------------------------------------------------------------------------------------


def test_each_step_from_6_7_to_7_is_one_enhancement() -> None:
    old, new = PROFILES["6.7"], PROFILES["7"]
    for name in ENHANCEMENTS:
        alone, without = PROFILES[f"6.7 + {name}"], PROFILES[f"7 - {name}"]
        changed = [mine != theirs for mine, theirs in zip(alone.what, old.what, strict=True)]
        assert changed == [mine != theirs for mine, theirs in zip(without.what, new.what, strict=True)]
        assert any(changed)
    assert {PROFILES[name].what for name in ABLATION}.isdisjoint({old.what, new.what})
    assert len({profile.what for profile in PROFILES.values()}) == len(PROFILES) == 9


def test_profiles_become_migration_options() -> None:
    old, new, ours = (PROFILES[name].options(1.5) for name in VSPHERE)
    assert (old.install, old.granularity, old.install_step_pages, old.bitmap) == ("stop", "4K", GRANULE_PAGES, "raw")
    assert (new.install, new.tracer, new.install_step_pages, new.bitmap) == ("loose", "vcpu", None, "compacted")
    assert (ours.install, ours.bitmap) == ("rolling", "compacted")
    assert (old.install_most_loss, new.install_most_loss) == (None, None)
    assert {one.mode for one in (old, new, ours)} == {"hybrid"}
    assert old.settle_s == 1.5


def test_without_2_mib_pages_granularity_is_4k_everywhere_and_what_repeats_is_named() -> None:
    profiles, repeated = on_backing(PROFILES, "4k")
    assert {profile.granularity for profile in profiles} == {"4K"}
    assert [profile.name for profile in profiles] == [*VSPHERE, "6.7 + loose", "6.7 + compacted"]
    assert repeated == {
        "6.7 + coarse": "6.7", "7 - loose": "6.7 + compacted", "7 - coarse": "7", "7 - compacted": "6.7 + loose",
    }  # fmt: skip
    assert on_backing(PROFILES, "thp") == (list(PROFILES.values()), {})


# -- options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("guests", "resident,thin", "--guests thin is unknown"),
        ("repetitions", 0, "measure nothing"),
        ("backing", "hugetlb", "--backing hugetlb is unknown"),
        ("rate", "2000", "not a valid share"),
        ("vcpus", 300, "300 vCPUs"),
        ("link_rate", "1gbit,fast", "'fast' is no rate of a link"),
        ("link_rate", "0gbit", "no rate of a link"),
        ("sparse_rate", "0", "rate"),
        ("settle", "5", "duration"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_started(field: str, value: Any, why: str) -> None:
    options = CompareOptions(**{**SMALL, field: value})
    with pytest.raises(UsageError, match=why):
        (options.cases(), options.times())


def test_cases_are_the_resident_guest_and_a_sparse_one_for_each_link() -> None:
    resident, one, ten = CompareOptions(**SMALL, link_rate="1gbit, 10gbit").cases()
    assert (resident.link_bps, one.link_bps, ten.link_bps) == (None, 10**9, 10**10)
    assert resident.profiles == (*VSPHERE, *ABLATION)
    assert (one.profiles, one.config.memory_bytes, one.config.resident_bytes) == (VSPHERE, 64 << 30, 64 << 20)
    assert (resident.rate_share, one.rate_share) == (0.5, None)
    options = CompareOptions(**SMALL, guests="resident", ablation=False, rate="100%")
    (case,) = options.cases()
    assert (case.profiles, case.rate_share) == (VSPHERE, None)


def test_a_links_rate_has_a_unit() -> None:
    assert parse_link_rate("2.5Gbit") == 2_500_000_000
    assert parse_link_rate("100mbit") == 100_000_000


# -- what this host lacks ------------------------------------------------------------------------------------------------


def test_2_mib_pages_that_are_not_given_are_named_with_the_line_that_enables_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "huge_pages_allowed", lambda: False)
    cases = CompareOptions(**SMALL | {"backing": "thp"}).cases()
    with pytest.raises(FeatureMissing, match=r"as root: echo advise > /sys/.*shmem_enabled .*--backing 4k"):
        run_compare(cases, Times(), 1, None)  # type: ignore[arg-type]


def test_without_root_no_link_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FeatureMissing, match="network namespaces need root"):
        ShapedLink.require_possible()


def test_a_missing_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda command: None if command == "tc" else "/bin/true")
    with pytest.raises(FeatureMissing, match=r"no `tc` command \(iproute2\)"):
        ShapedLink.require_possible()


def test_a_kernel_without_the_token_bucket_is_named_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> str | None:
        ran.append(command)
        return "Error: Specified qdisc kind is unknown." if "tbf" in command else None

    monkeypatch.setattr(shaped_link, "_run", run)
    with pytest.raises(FeatureMissing, match=r"the token bucket \(tc-tbf\) cannot be had: .*kind is unknown"):
        ShapedLink(10**9).__enter__()
    added = [command[3] for command in ran if command[1:3] == ("netns", "add")]
    assert [command[3] for command in ran if command[1:3] == ("netns", "delete")] == added


# -- figures -------------------------------------------------------------------------------------------------------------


def made_up(
    profile: Profile, *, dip: float = 0.5, dip_s: float = 0.3, stun_s: float = 0.012, precopy_s: float = 2.4
) -> Json:
    """Make up a run: 200 commits a bucket, (1 - dip) of it from the install's beginning at 0.1 s for `dip_s`."""
    report = completed_report(stun_s=stun_s, precopy_s=precopy_s)
    pause_s = 0.18 + precopy_s
    install_s = precopy_s / 2 if profile.install == "rolling" else 0.08
    report.trace_install = TraceInstall(
        profile.install, profile.tracer, profile.granularity, 2 << 20, 512, install_s, 0.004, at_s=0.1
    )
    assert report.bitmap is not None
    report.bitmap.compacted_bytes = 131_072 if profile.bitmap == "raw" else 5_210
    begins = (("setup", 0.0), ("active", 0.18), ("device", pause_s), ("postcopy-active", pause_s + stun_s))
    report.phases = [PhaseBegin(*one) for one in (*begins, ("completed", pause_s + stun_s + 0.62))]
    report.timeline = []
    for step in range(-100, 500):
        t_s = step / 100
        slow = 0.1 <= t_s < 0.1 + dip_s
        report.timeline.append(TimelineBucket(t_s, round(200 * (1 - dip)) if slow else 200, ""))
    return report.as_dict()


def test_the_dip_is_the_worst_bucket_and_the_commits_lost_until_a_second_after_the_install() -> None:
    dip = dip_of(made_up(PROFILES["6.7"], dip=0.75, dip_s=0.54))
    assert (dip.from_s, dip.installed_s, dip.to_s) == (0.1, pytest.approx(0.18), pytest.approx(1.18))
    assert dip.deepest == pytest.approx(0.75)
    assert dip.lost == pytest.approx(0.75 * 54 / 108)


def test_the_trace_phase_ends_with_the_pause_at_the_latest() -> None:
    dip = dip_of(made_up(PROFILES["ours"], precopy_s=0.5, dip=0.0))
    assert dip.installed_s == pytest.approx(0.35)
    assert dip.to_s == pytest.approx(0.68)
    assert (dip.deepest, dip.lost) == (0.0, 0.0)


def test_a_guest_that_is_faster_under_tracing_has_lost_less_than_nothing() -> None:
    assert dip_of(made_up(PROFILES["7"], dip=-0.1)).lost < 0


def test_without_commits_before_there_is_nothing_to_compare_with() -> None:
    report = made_up(PROFILES["7"])
    for bucket in report["timeline"]:
        bucket["commits"] = 0
    with pytest.raises(PagefireError, match="committed nothing in the second before"):
        dip_of(report)
    with pytest.raises(PagefireError, match="no tracing was installed"):
        dip_of(report | {"trace_install": None})


def test_a_row_has_medians_and_shows_the_run_in_the_middle() -> None:
    runs = [made_up(PROFILES["6.7"], dip=dip, stun_s=stun_s) for dip, stun_s in ((0.9, 0.01), (0.5, 0.03), (0.1, 0.02))]
    row = row_of(PROFILES["6.7"], runs)
    assert row["stun_s"] == {"median": 0.02, "min": 0.01, "max": 0.03}
    assert row["shown"]["timeline"] == runs[1]["timeline"]
    assert row["shown"]["dip"]["lost"] == row["dip_lost"]["median"]
    assert set(row["downtime_breakdown"]) == set(BREAKDOWN) == set(runs[0]["downtime_breakdown"])
    assert spread([3.0, 1.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("outcome", "failed", "ended as failed"),
        ("stun_s", None, "both sides of the stun"),
        ("verified", {"problems": ["the books"], "commits_lost": 2, "commits_repeated": 0}, "the books; 2 commits"),
    ],
)
def test_a_run_that_is_not_sound_is_no_figure(field: str, value: Any, why: str) -> None:
    with pytest.raises(PagefireError, match=f"profile 7 cannot be compared: .*{why}"):
        row_of(PROFILES["7"], [made_up(PROFILES["7"]) | {field: value}])


def test_a_run_that_was_traced_in_another_way_is_no_figure() -> None:
    with pytest.raises(PagefireError, match="traced stop by 4K instead"):
        row_of(PROFILES["7"], [made_up(PROFILES["6.7"])])


# -- tables and picture --------------------------------------------------------------------------------------------------


def result_of(repetitions: int = 2) -> Json:
    """Make up a result: a resident guest with its ablation and a sparse one."""
    profiles, repeated = on_backing(PROFILES, "4k")
    dips = {"6.7": 0.9, "7": 0.4, "ours": 0.1}
    case: Json = {
        "name": "resident", "memory_bytes": 1 << 30, "resident_bytes": 1 << 30, "working_set_bytes": 1 << 28, "vcpus": 4,
        "backing": "4k", "workload": "oltp", "seed": 1, "rate_per_s": 20_000, "rate_share": 0.5, "link_bps": None,
        "link_measured_bps": None, "repeated": repeated,
        "rows": [row_of(one, [made_up(one, dip=dips.get(one.name, 0.5))] * repetitions) for one in profiles],
    }  # fmt: skip
    sparse = case | {
        "name": "sparse, 1gbit", "memory_bytes": 6 << 40, "resident_bytes": 256 << 20, "vcpus": 16, "rate_share": None,
        "link_bps": 10**9, "link_measured_bps": 0.95e9, "repeated": {}, "rows": case["rows"][:3],
    }  # fmt: skip
    return {
        "benchmark": "compare vsphere",
        "repetitions": repetitions,
        "scaled_from": compare.SCALED_FROM,
        "host": {"cpus": 2, "memory_bytes": 24 << 30, "kernel": "6.18"},
        "cases": [case, sparse],
    }


def test_the_table_names_what_is_4k_what_repeats_and_what_was_scaled() -> None:
    text = table_text(result_of())
    for words in ("6.7 + compacted", "6.7 + coarse is 6.7 on this guest", "Granularity stays 4K", "plain TCP: 0.95"):
        assert words in text
    assert "72 vCPUs and 512 GiB" in scaling_words(result_of())
    assert "4 vCPUs (1/18), 1 GiB with contents (1/512)" in scaling_words(result_of())
    assert max(len(line) for line in text.splitlines()) <= 140


def test_the_folder_has_figures_table_and_picture(tmp_path: Path) -> None:
    result = result_of()
    written = write_compare_folder(result, tmp_path / "all")
    assert tuple(path.name for path in written) == COMPARE_FILES
    assert json.loads((tmp_path / "all" / "compare.json").read_text()) == result
    assert (tmp_path / "all" / "compare.png").stat().st_size > 30_000
    for index in (0, 1):
        write_compare_folder(result | {"cases": [result["cases"][index]]}, tmp_path / f"case{index}")


def test_buckets_add_up_to_longer_ones() -> None:
    timeline = [{"t_s": -0.02 + step / 100, "commits": step} for step in range(5)]
    edges_s, rates = commits_per_s(timeline, 0.02)
    assert edges_s == pytest.approx([-0.02, 0.0, 0.02])
    assert rates == pytest.approx([1 / 0.02, 5 / 0.02])
    assert commits_per_s(timeline, 0.01)[1] == pytest.approx([0, 100, 200, 300, 400])


def test_the_stun_and_the_install_are_marked_where_they_were() -> None:
    spans = {name: (from_s, to_s) for name, from_s, to_s in phases_of(result_of()["cases"][0]["rows"][0]["shown"])}
    assert set(spans) == {"setup", "trace", "active", "device", "postcopy-active"}
    assert spans["trace"] == (0.1, pytest.approx(0.18))
    assert spans["device"][1] - spans["device"][0] == pytest.approx(0.012)


def test_the_parts_of_a_stun_add_up_to_it() -> None:
    row = result_of()["cases"][1]["rows"][0]
    assert sum(stun_parts_s(row).values()) == pytest.approx(row["stun_s"]["median"])


def test_a_case_is_loopback_unless_it_has_a_link() -> None:
    assert Case("one", CompareOptions(**SMALL).cases()[0].config, VSPHERE).link_bps is None
