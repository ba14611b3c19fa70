"""`pagefire bitmap`: the sets it draws, the figures it gives, what it refuses, and that no step walks the whole guest."""

from __future__ import annotations

import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pagefire.protocol.bitmap_compacted import decode_compacted, encode_compacted
from pagefire.protocol.bitmap_raw import information_limit_bytes
from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.pages import GRANULE_PAGES, PageSet
from pagefire.scripts import bitmap_plot, bitmap_table, cli
from pagefire.scripts.bitmap_sets import CLUSTER_PAGES, SCATTERS, Case, draw_set, parse_cases
from pagefire.scripts.bitmap_table import (
    LINK_GBITS,
    MAX_RAW_BYTES,
    NO_ROARING,
    measure_case,
    measure_table,
    print_table,
)

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SIX_TIB = 6 * TIB
SCATTER_NAMES = tuple(SCATTERS)

every_scatter = pytest.mark.parametrize("scatter", SCATTER_NAMES)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Run the command; gives standard output and standard error."""
    cli.app(["bitmap", *map(str, arguments)], standalone_mode=False)
    return tuple(capsys.readouterr())


def printed(result: dict[str, Any]) -> str:
    page = StringIO()
    print_table(result, Console(file=page, width=80))
    return page.getvalue()


def peak_bytes(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- the sets --------------------------------------------------------------------------------------------------------------


@every_scatter
@pytest.mark.parametrize(
    ("guest_bytes", "pages"),
    [
        (SIX_TIB, 0),
        (SIX_TIB, 1),
        (SIX_TIB, 1_000),
        (SIX_TIB, 100_000),
        (64 * MIB, 1_000),
        (64 * MIB, 8_191),
        (64 * MIB, 8_193),
        (64 * MIB, 16_384),
        (4096, 1),
        (2 * MIB + 4096, 70),
        (2 * MIB + 4096, 513),
    ],
)
def test_a_set_holds_exactly_the_pages_asked_for(scatter: str, guest_bytes: int, pages: int) -> None:
    case = Case(guest_bytes, pages, scatter)
    drawn = draw_set(case, 5)
    assert drawn.pages == pages
    assert not pages or (drawn.starts[0] >= 0 and drawn.stops[-1] <= case.total_pages)
    assert draw_set(case, 5) == drawn
    if 0 < pages < case.total_pages:
        assert any(draw_set(case, seed) != drawn for seed in (6, 7, 8, 9))


def test_scatters_are_what_they_say() -> None:
    one_run, clustered, uniform = (draw_set(Case(SIX_TIB, 64_000, scatter), 1) for scatter in SCATTER_NAMES)
    assert len(one_run) == 1
    granules = np.unique(clustered.page_numbers() // GRANULE_PAGES)
    assert granules.size == 64_000 // CLUSTER_PAGES
    # 1,000 granules of 3.1 million lie apart, so within one the pages do: 12.5% of them, hence mostly single ones.
    assert len(clustered) > 0.8 * 64_000
    # Of 64,000 pages in 3.1 million granules fewer than 1,000 share one; and every tenth of the guest has its tenth.
    assert np.unique(uniform.page_numbers() // GRANULE_PAGES).size > 63_000
    tenths = np.bincount(uniform.page_numbers() * 10 // (SIX_TIB >> 12), minlength=10)
    assert (abs(tenths - 6_400) < 6 * math.sqrt(6_400)).all()


@pytest.mark.parametrize("pages", [2, 3])
def test_uniform_draws_every_set_equally_often(pages: int) -> None:
    # Below half of the guest by drawing, above it by leaving out.
    sets = math.comb(5, pages)
    counts: dict[PageSet, int] = {}
    for seed in range(2_000):
        drawn = draw_set(Case(5 * 4096, pages, "uniform"), seed)
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == sets
    assert all(abs(count - 2_000 / sets) < 6 * math.sqrt(2_000 / sets) for count in counts.values())


# -- the figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pages", "total_pages"), [(0, 9), (1, 16), (3, 10), (50, 100), (1_000, 5_000), (9, 9)])
def test_the_limit_is_the_logarithm_of_the_number_of_sets(pages: int, total_pages: int) -> None:
    exact_bytes = math.log2(math.comb(total_pages, pages)) / 8
    assert information_limit_bytes(pages, total_pages) == pytest.approx(exact_bytes, rel=1e-9, abs=1e-9)
    assert measure_case(Case(total_pages << 12, pages, "uniform"), 1, 1)["limit_bytes"] == pytest.approx(
        exact_bytes, abs=0.06
    )


@pytest.mark.parametrize("seed", range(3))
def test_sizes_at_six_tebibytes(seed: int) -> None:
    def compacted_bytes(case: Case) -> int:
        return len(encode_compacted(draw_set(case, seed), case.total_pages))

    assert compacted_bytes(Case(SIX_TIB, 200_000, "uniform")) <= 500_000
    assert compacted_bytes(Case(SIX_TIB, 1_000, "uniform")) <= 8_000
    # The worst case is the uniform one.
    assert compacted_bytes(Case(SIX_TIB, 200_000, "clustered")) < 200_000
    assert compacted_bytes(Case(SIX_TIB, 200_000, "one-run")) < 32
    assert compacted_bytes(Case(SIX_TIB, 1_000, "clustered")) < 1_000


@every_scatter
@pytest.mark.parametrize(("pages", "most_bytes"), [(1_000, MIB), (200_000, 48 * MIB)])
def test_no_step_walks_the_guest(scatter: str, pages: int, most_bytes: int) -> None:
    case = Case(SIX_TIB, pages, scatter)
    drawn = draw_set(case, 1)

    def there_and_back() -> None:
        assert decode_compacted(encode_compacted(drawn, case.total_pages), case.total_pages) == drawn

    assert peak_bytes(there_and_back) < most_bytes < 192 * MIB / 3


@every_scatter
def test_a_row_says_everything(scatter: str) -> None:
    pytest.importorskip("pyroaring")
    row = measure_case(Case(GIB, 5_000, scatter), 3, 7)
    spread = {f"{way}{which}_s" for way in ("encode", "decode") for which in ("", "_min", "_max")} | {"repetitions"}
    assert set(row) == spread | {
        "guest_bytes", "pages", "runs", "scatter", "seed", "raw_bytes", "compacted_bytes", "limit_bytes", "raw", "roaring",
        "compacted_link_s", "raw_link_s",
    }  # fmt: skip
    assert set(row["raw"]) == spread
    assert set(row["roaring"]) == spread | {"bytes", "deserialize_s"}
    assert (row["guest_bytes"], row["pages"], row["scatter"], row["seed"]) == (GIB, 5_000, scatter, 7)
    assert row["runs"] == len(draw_set(Case(GIB, 5_000, scatter), 7))
    assert row["raw_bytes"] == 32 << 10
    for times in (row, row["raw"], row["roaring"]):
        assert 1 <= times["repetitions"] <= 3
        for way in ("encode", "decode"):
            assert 0 < times[f"{way}_min_s"] <= times[f"{way}_s"] <= times[f"{way}_max_s"]
    for gbits in LINK_GBITS:
        assert row["compacted_link_s"][str(gbits)] * gbits * 1e9 == pytest.approx(row["compacted_bytes"] * 8)
        assert row["raw_link_s"][str(gbits)] * gbits * 1e9 == pytest.approx(row["raw_bytes"] * 8)


def test_ours_is_smaller_than_roaring_and_near_the_limit() -> None:
    pytest.importorskip("pyroaring")
    row = measure_case(Case(SIX_TIB, 20_000, "uniform"), 1, 1)
    assert row["limit_bytes"] < row["compacted_bytes"] < 1.02 * row["limit_bytes"]
    assert row["compacted_bytes"] < row["roaring"]["bytes"] < row["raw_bytes"]


def test_a_raw_bitmap_beyond_the_bound_is_not_made() -> None:
    case = Case(16 * TIB, 1_000, "uniform")
    assert peak_bytes(lambda: measure_case(case, 1, 1)) < 10 * MIB
    row = measure_case(case, 1, 1)
    assert row["raw"] is None
    assert row["raw_bytes"] > MAX_RAW_BYTES
    assert "an unknown time" in printed({"repetitions": 1, "seed": 1, "rows": [row]})


@pytest.mark.parametrize("code", ["decode_compacted", "decode_raw"])
def test_a_code_that_gives_another_set_back_is_an_error(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmap_table, code, lambda *_: PageSet.span(0, 100))
    with pytest.raises(PagefireError, match="100 pages of 64 MiB, uniform is useless: decoded, it is another set"):
        measure_case(Case(64 * MIB, 100, "uniform"), 1, 1)


def test_without_the_library_there_are_no_figures_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyroaring", None)
    result = measure_table([Case(64 * MIB, 100, "uniform")], 1, 1, lambda _: None)
    assert result["rows"][0]["roaring"] is None
    assert NO_ROARING in printed(result)
    bitmap_plot.write_bitmap_folder(result, tmp_path)


# -- the command -----------------------------------------------------------------------------------------------------------


def test_one_case_is_one_flat_object(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(
        capsys, "--guest", "6TiB", "--pages", 1000, "--scatter", "uniform", "--repetitions", 1, "--json", "-"
    )
    row = json.loads(out)
    assert {"raw_bytes", "compacted_bytes", "limit_bytes", "encode_s", "decode_s", "roaring"} <= set(row)
    assert (row["raw_bytes"], row["pages"], row["repetitions"]) == (192 * MIB, 1000, 1)
    assert "6 TiB" in err


def test_several_cases_are_rows_in_the_order_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    out, _ = run(capsys, "--guest", "64MiB,1GiB", "--pages", "0,20000", "--repetitions", 1, "--json", path, "--seed", 4)
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (result["repetitions"], result["seed"]) == (1, 4)
    found = [(row["guest_bytes"], row["scatter"], row["pages"]) for row in result["rows"]]
    # 64 MiB have 16,384 pages: what cannot be left of them is left out.
    assert found == [(64 * MIB, scatter, 0) for scatter in SCATTER_NAMES] + [
        (GIB, scatter, pages) for scatter in SCATTER_NAMES for pages in (0, 20_000)
    ]
    assert "A guest of 64 MiB" in out
    assert "20,000" in out
    assert max(map(len, out.splitlines())) <= 100
    # The same case by itself has the same set.
    single = measure_case(Case(GIB, 20_000, "uniform"), 1, 4)
    assert (single["runs"], single["compacted_bytes"]) == (
        result["rows"][-1]["runs"],
        result["rows"][-1]["compacted_bytes"],
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scatter", "sideways"], ["'sideways' is unknown", "one-run, clustered, uniform"]),
        (["--scatter", ""], ["'' is unknown"]),
        (["--pages", "-1"], ["'-1'", "0 to 10,000,000", "--pages 1000"]),
        (["--pages", "1k"], ["'1k'"]),
        (["--pages", "10000001"], ["'10000001'"]),
        (["--guest", "1GiB", "--pages", "262145"], ["262,145", "has 262,144", "--guest"]),
        (["--guest", "5000"], ["5000", "whole pages of 4 KiB"]),
        (["--guest", "0"], ["4 KiB to 16 TiB"]),
        (["--guest", "17TiB"], ["4 KiB to 16 TiB"]),
        (["--guest", "1XB"], ["1XB"]),
        (["--guest", "1GiB,"], ["must not be empty"]),
        (["--repetitions", "0"], ["measure nothing", "--repetitions 1"]),
        (["--seed", "-1"], ["--seed"]),
        (["--report", "/dev/null"], ["it is a file"]),
        (["--json", "/nowhere/at/all"], ["cannot be written", "--json"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitmap_table, "measure_case", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(UsageError) as caught:
        run(capsys, *arguments)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_a_case_is_taken_once() -> None:
    assert parse_cases("1GiB,1024MiB", "5, 5", "uniform,uniform") == [Case(GIB, 5, "uniform")]


# -- the picture -----------------------------------------------------------------------------------------------------------


def test_a_report_folder_holds_the_rows_and_the_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    for _ in range(2):
        _, err = run(
            capsys, "--guest", "1GiB", "--pages", "0,10,1000", "--repetitions", 2, "--json", "-", "--report", folder
        )
        assert sorted(path.name for path in folder.iterdir()) == sorted(bitmap_plot.BITMAP_FILES)
    assert str(folder / "bitmap.png") in err
    assert len(json.loads((folder / "bitmap.json").read_text(encoding="utf-8"))["rows"]) == 9
    assert (folder / "bitmap.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_folder_of_something_else_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "report.json").touch()
    with pytest.raises(UsageError, match=r"report\.json"):
        run(capsys, "--guest", "1GiB", "--pages", "0", "--report", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_picture_shows_the_largest_guest_and_its_worst_scatter() -> None:
    rows = measure_table(parse_cases("64MiB,1GiB", "900,0,10", "uniform,one-run"), 1, 1, lambda _: None)["rows"]
    drawn = bitmap_plot._worst(rows)
    assert [(row["guest_bytes"], row["scatter"], row["pages"]) for row in drawn] == [
        (GIB, "uniform", 10),
        (GIB, "uniform", 900),
    ]
    assert bitmap_plot._worst([row for row in rows if not row["pages"]]) == []


@pytest.mark.parametrize(("guest", "pages"), [("1GiB", "0"), ("16TiB", "7"), ("4096", "1"), ("64MiB", "1,16384")])
def test_odd_rows_are_drawn(guest: str, pages: str, tmp_path: Path) -> None:
    rows = measure_table(parse_cases(guest, pages, "one-run"), 1, 1, lambda _: None)["rows"]
    bitmap_plot.draw_bitmap(rows, tmp_path / "bitmap.png")
    assert (tmp_path / "bitmap.png").stat().st_size > 5_000
