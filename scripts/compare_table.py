"""The tables of `pagefire compare`: each case's figures, where its downtime went, and what was scaled."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.compare_figures import AFTER_INSTALL_S, BREAKDOWN
from pagefire.scripts.profiles import PROFILES

Json = dict[str, Any]

_TABLE_COLUMNS = 140
_PART_WORDS = {
    "quiesce_s": "quiesce", "final_scan_s": "scan", "bitmap_s": "bitmap", "checkpoint_s": "checkpoint", "drain_s": "drain",
    "transfer_s": "transfer", "install_s": "install", "verify_s": "verify", "resume_s": "resume",
}  # fmt: skip


def print_compare(result: Json, console: Console) -> None:
    """Print every case; a narrower console is widened, because cut figures are no figures."""
    console.width = max(console.width, _TABLE_COLUMNS)
    for case in result["cases"]:
        _print_case(case, result, console)
    console.print(
        f"Figures are medians, in brackets the least and the largest of {result['repetitions']}. Trace phase: from the install's "
        f"beginning to {format_duration(AFTER_INSTALL_S)} after its end, at most to the pause. deepest: the worst 10 ms of it "
        "against the second before, 100% is no commit at all; lost: its commits against what they would have been; gap: the "
        "longest time of the install without a commit of any vCPU (none for a rolling one). stun: no vCPU commits. total: from "
        "the request until every page is there. bitmap: what the switchover sent of it. Downtime's parts are those of the "
        "report, their medians; bitmap is the coding, transfer the network, install the decoding and what else the destination "
        "prepares.",
        style="dim",
    )
    console.print(scaling_words(result), style="dim")


def scaling_words(result: Json) -> str:
    """Say what was scaled from the post's guest, and what was not."""
    original = result["scaled_from"]
    guests = "; ".join(
        f"{case['name']}: {case['vcpus']} vCPUs (1/{original['vcpus'] / case['vcpus']:.3g}), "
        f"{format_size(case['resident_bytes'])} with contents (1/{original['memory_bytes'] / case['resident_bytes']:.4g})"
        for case in result["cases"]
    )
    post = f"{original['vcpus']} vCPUs and {format_size(original['memory_bytes'])}"
    return (
        f"Scaled from the post's {post}, on {result['host']['cpus']} CPUs here: {guests}. Not scaled: the size of a guest and so "
        "of its raw bitmap, as the titles say. What a dip lasts goes with the memory that is traced: it is not the post's seconds."
    )


def table_text(result: Json) -> str:
    """Give what is printed as plain text."""
    page = StringIO()
    console = Console(file=page, width=_TABLE_COLUMNS, color_system=None, force_terminal=False, no_color=True)
    print_compare(result, console)
    return os.linesep.join(line.rstrip() for line in page.getvalue().splitlines()) + os.linesep


def case_title(case: Json) -> str:
    """Name a case's guest and link."""
    link = "loopback"
    if case["link_bps"] is not None:
        link = (
            f"a link shaped to {case['link_bps'] / 1e9:.3g} Gbit/s (plain TCP: {case['link_measured_bps'] / 1e9:.3g})"
        )
    pace = "unpaced" if case["rate_per_s"] is None else f"{format_count(case['rate_per_s'])}/s"
    if case["rate_share"] is not None:
        pace += f", {case['rate_share']:.0%} of its full rate"
    size = format_size(case["memory_bytes"])
    if case["resident_bytes"] != case["memory_bytes"]:
        size += f" with {format_size(case['resident_bytes'])} of contents"
    return f"{size} ({case['backing']}), {case['vcpus']} vCPUs, {case['workload']}, {pace}; over {link}"


def _print_case(case: Json, result: Json, console: Console) -> None:
    rows = case["rows"]
    figures = Table(title=f"Guest {case['name']}: {case_title(case)}", title_justify="left")
    breakdown = Table(title=f"Guest {case['name']}: where the downtime went", title_justify="left")
    parts = [part for part in BREAKDOWN if any(row["downtime_breakdown"][part] for row in rows)]
    for table in (figures, breakdown):
        table.add_column("profile", no_wrap=True)
    figures.add_column("what it does", max_width=12)
    for head in ("deepest", "lost", "gap", "stun", "total", "sent", "bitmap"):
        figures.add_column(head, justify="right", no_wrap=True)
    for head in ("downtime", *(_PART_WORDS[part] for part in parts)):
        breakdown.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        figures.add_row(
            row["profile"],
            f"{row['install']}, {row['granularity']}, {row['bitmap_form']}",
            _cell(row["dip_deepest"], "{:.0%}".format),
            _cell(row["dip_lost"], "{:.0%}".format),
            _cell(row["trace_gap_s"], format_duration) if row["trace_gap_s"] else "-",
            _cell(row["stun_s"], format_duration),
            _cell(row["total_s"], format_duration),
            format_size(row["wire_bytes"]["median"]),
            format_size(row["bitmap_bytes"]["median"]),
        )
        downtimes = (row["downtime_s"]["median"], *(row["downtime_breakdown"][part] for part in parts))
        breakdown.add_row(row["profile"], *(format_duration(one) for one in downtimes))
    console.print(figures)
    console.print(breakdown)
    for name, same in case["repeated"].items():
        console.print(
            f"{name} is {same} on this guest: its memory is not mapped by 2 MiB pages (--backing {case['backing']}), so that "
            "granularity stays 4K in every profile."
        )
    if case["backing"] == "4k" and "coarse" not in " ".join(case["repeated"]):
        coarse = ", ".join(row["profile"] for row in rows if PROFILES[row["profile"]].granularity != "4K")
        console.print(f"Granularity stays 4K in every profile (--backing 4k); it would be coarser in {coarse}.")


def _cell(figure: Json, written: Callable[[float], str]) -> str:
    if figure["min"] == figure["max"]:
        return written(figure["median"])
    low, high = (written(figure[end]) for end in ("min", "max"))
    unit = re.sub(r"^[-\d.,]+", "", high)
    return f"{written(figure['median'])}\n({low.removesuffix(unit)} - {high})"
