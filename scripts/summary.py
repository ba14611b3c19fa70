"""What a person reads after a migration: the report as one screen of text.

`render_summary` takes the dictionary of `MigrationReport.as_dict()`, fresh or read back from JSON; `render_failure` is its shorter
sister for a migration that did not complete. Both print to a console of any width (laid out for 80 to 100 columns) and say nothing
by colour alone. A figure that is None, or absent because an older pagefire wrote the file, reads "not measured": never zero, never
left out silently.

Nothing is measured or judged here. What a figure counts is said beside it in a few words; protocol/report.py says it in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pagefire.protocol.units import format_count, format_duration, format_size, format_throughput
from pagefire.scripts.database_words import database_rows
from pagefire.scripts.lab.link_words import link_rows, tcp_rows
from pagefire.scripts.layout import NAME_COLUMNS, bar, grid, indented, pairs, print_all, section, triples
from pagefire.scripts.throttle_words import throttle_words
from pagefire.scripts.tracing_words import installed_words

NOT_MEASURED = "not measured"
_NAMELESS = "the guest"

#: More rounds than this are shown by their first and last ones.
_MAX_ROUNDS_SHOWN = 12
#: An uncertainty of the clocks above this share of the stun turns the stun into a range.
_RANGE_ABOVE = 0.1

#: A comparison that was not asked for takes the time between two readings of the clock.
_NOT_VERIFIED_S = 1e-4

_BREAKDOWN = (
    ("quiesce_s", "quiesce", "until every vCPU is parked"),
    ("final_scan_s", "final scan", "last collection of dirty pages"),
    ("bitmap_s", "bitmap", "found and coded"),
    ("checkpoint_s", "checkpoint", "registers read"),
    ("drain_s", "drain", "last pages that had to arrive"),
    ("transfer_s", "transfer", "network, and daemons waking up"),
    ("install_s", "install", "destination takes it in"),
    ("verify_s", "verify", "digests compared, as asked for"),
    ("resume_s", "resume", "HANDOVER to first vCPU"),
)

Report = dict[str, Any]


def render_summary(report: Report, console: Console) -> None:
    """Print a report: outcome, stun, downtime, rounds, bitmap, post-copy, proofs, guest rates, traffic.

    A report whose outcome is not `completed` goes to `render_failure`.
    """
    if report.get("outcome") != "completed":
        render_failure(report, console)
        return
    print_all(console, Text(_success(report), style="bold"), Text())
    print_all(console, _subject(report))
    section(console, "Stun", _stun(report))
    section(console, "Downtime", *_downtime(report, console))
    section(console, "Pre-copy", *_precopy(report))
    section(console, "Bitmap at switchover", _bitmap(report))
    section(console, "Post-copy", _postcopy(report))
    section(console, "Guest", _guest_rates(report))
    if database := report.get("database"):
        section(console, "Database", triples(database_rows(database)))
    section(console, "Verified", _verified(report))
    section(console, "Cost", _cost(report))


def render_failure(report: Report, console: Console) -> None:
    """Print a migration that failed, was cancelled or is still under way: why, and what had been measured by then."""
    print_all(console, Text(_failure(report), style="bold"))
    if report.get("error"):
        print_all(console, Text(str(report["error"])))
    print_all(console, Text(), _subject(report))
    if report.get("rounds"):
        section(console, "Pre-copy", *_precopy(report))
    if report.get("downtime_breakdown"):
        section(console, "Downtime", *_downtime(report, console))
    problems = _read(report, "verified", "problems")
    if problems:
        section(console, "Verified", _verified(report))
    section(console, "Cost", _cost(report))


def stun_words(report: Report) -> str:
    """Write the stun, as a range where comparing two clocks makes it uncertain by more than a tenth."""
    stun_s, error_s = report.get("stun_s"), report.get("stun_error_s")
    if stun_s is None:
        return NOT_MEASURED
    if error_s and error_s > _RANGE_ABOVE * stun_s:
        return f"{format_duration(max(0.0, stun_s - error_s))} to {format_duration(stun_s + error_s)}"
    return format_duration(stun_s)


# -- sections ------------------------------------------------------------------------------------------------------------


def _success(report: Report) -> str:
    stood_still = f"the guest stood still for {stun_words(report)}"
    if report.get("stun_s") is None:
        stood_still = "how long the guest stood still was not measured"
    total = _words(report, "total_s", write=lambda s: f"; all of it took {format_duration(s)}", missing="")
    who = _who(report)
    where = f"{'The guest' if who == _NAMELESS else who} moved to {report.get('destination') or 'its destination'}"
    return f"{where}: {stood_still}{total}. {_proof(report)}"


def _proof(report: Report) -> str:
    verified = report.get("verified") or {}
    proven = [verified.get(key) for key in ("invariant", "digest_match")]
    counts = [verified.get(key) for key in ("commits_lost", "commits_repeated")]
    if False in proven or any(counts) or verified.get("problems"):
        return "VERIFICATION FAILED, see below."
    if proven[0] and None not in counts:
        return "No commit was lost or repeated."
    return "Whether its memory is intact was not fully checked."


def _failure(report: Report) -> str:
    place = report.get("destination") or "its destination"
    outcome = report.get("outcome")
    after = _words(report, "total_s", write=lambda s: f" after {format_duration(s)}", missing="")
    if outcome == "cancelled":
        return f"The migration of {_who(report)} to {place} was cancelled{after}; the guest runs on at the source."
    if outcome == "failed":
        return f"The migration of {_who(report)} to {place} failed{after}."
    return f"The migration of {_who(report)} to {place} has not ended: it is {outcome or 'of unknown state'}."


def _who(report: Report) -> str:
    return str(_read(report, "guest", "name") or _NAMELESS)


def _backing(guest: Report) -> str:
    """Say what maps its memory, where that is not the plain case."""
    here, there = guest.get("backing") or "4k", guest.get("dest_backing") or "4k"
    if here == there == "4k":
        return ""
    return f"mapped by {here}" if here == there else f"mapped by {here} here, by {there} there"


def _subject(report: Report) -> RenderableType:
    guest = report.get("guest") or {}
    rate = guest.get("rate")
    vcpus = guest.get("vcpus")
    shape = [
        f"{_words(guest, 'memory_bytes', write=format_size)} of memory",
        f"{_words(guest, 'resident_bytes', write=format_size)} of it held",
        _backing(guest),
        f"{vcpus} vCPU{'' if vcpus == 1 else 's'}" if vcpus else "",
        f"{guest.get('workload') or 'unnamed'} workload",
        f"paced at {format_count(rate)}/s" if rate else "as fast as it can",
        f"working set {_words(guest, 'working_set_bytes', write=format_size)}",
        _words(guest, "seed", write=lambda seed: f"seed {seed}", missing=""),
    ]
    rows = [
        ("guest", ", ".join(part for part in shape if part) if guest else NOT_MEASURED),
        ("mode", str(report.get("mode") or "unknown")),
        ("tracking", _joined(report.get("tracker") or "unknown", report.get("tracker_reason"))),
    ]
    if installed := report.get("trace_install"):
        rows.append(("tracing", installed_words(installed)))
    rows += link_rows(report.get("link"))
    host, versions = report.get("host"), report.get("versions")
    if host:
        memory = _words(host, "memory_bytes", write=format_size)
        load = _words(host, "load", write=_short)
        rows.append(("source host", f"Linux {host.get('kernel')}, {host.get('cpus')} CPUs, {memory}, load {load}"))
    if versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return pairs(rows)


def _stun(report: Report) -> RenderableType:
    each = report.get("vcpu_stun_s") or {}
    clock = report.get("clock") or {}
    error = _words(clock, "error_s", write=lambda s: f"+-{format_duration(s)}")
    return triples(
        [
            ("guest's own clock", stun_words(report), "last commit to first, of any vCPU"),
            ("observer", _duration(report, "observer_stun_s"), "seen by a separate process"),
            ("each vCPU", _tail(each, format_duration), _spread(each, format_duration)),
            ("gaps before", _duration(each, "baseline_max"), "longest of any vCPU, before the move"),
            ("all vCPUs running", _duration(report, "all_running_s"), "after the pause request"),
            ("stalled", _duration(report, "stall_s"), "10 ms slices below half rate, summed"),
            ("clocks", "one for both ends" if clock.get("shared") else error, "how the two ends were compared"),
        ]
    )


def _downtime(report: Report, console: Console) -> Iterable[RenderableType]:
    downtime_s, parts = report.get("downtime_s"), report.get("downtime_breakdown")
    row = ("downtime", _duration(report, "downtime_s"), "pause request to destination's resume")
    yield triples([row])
    if not parts:
        yield indented(Text(f"its parts: {NOT_MEASURED}"))
        return
    measured_s = [parts[key] for key, _, _ in _BREAKDOWN if parts.get(key) is not None]
    whole_s = max(downtime_s or 0.0, sum(measured_s))
    table = grid("right")
    table.add_column(min_width=NAME_COLUMNS)
    for justify in ("right", "right", "left", "left"):
        table.add_column(justify=justify)
    for key, name, note in _BREAKDOWN:
        part_s = parts.get(key)
        if key == "verify_s" and (part_s or 0.0) < _NOT_VERIFIED_S:
            continue
        if part_s is None:
            table.add_row(name, NOT_MEASURED, "", "", Text(note, style="dim"))
        else:
            table.add_row(*_share(name, part_s, whole_s, note, console))
    between_s = whole_s - sum(measured_s)
    if downtime_s is not None and between_s > 0.005 * whole_s:
        table.add_row(*_share("between these", between_s, whole_s, "instants that no part counts", console))
    yield Text()
    yield indented(table)


def _share(name: str, part_s: float, whole_s: float, note: str, console: Console) -> tuple[str, str, str, Text, Text]:
    share = part_s / whole_s if whole_s else 0.0
    drawn = Text(bar(share, console), style="cyan", no_wrap=True)
    return name, format_duration(part_s), f"{share:.0%}", drawn, Text(note, style="dim")


def _precopy(report: Report) -> Iterable[RenderableType]:
    rounds = report.get("rounds") or []
    if rounds:
        yield indented(_rounds(rounds))
        yield Text()
    rows = [
        ("rounds", format_count(len(rounds)) if rounds else "none"),
        ("stopped because", str(report.get("stop_reason") or NOT_MEASURED)),
        (
            "last round",
            _words(report, "dirty_pages_per_s", write=lambda n: f"{format_count(n)} pages/s written meanwhile"),
        ),
    ]
    if throttle := report.get("throttle"):
        rows.append(("auto-converge", throttle_words(throttle)))
    yield pairs(rows)


def _rounds(rounds: Sequence[Report]) -> Table:
    sifted = ("same",) if any(one.get("unchanged_pages") for one in rounds) else ()
    deltas = ("differences",) if any(one.get("delta_pages") for one in rounds) else ()
    head = ("round", "pages", "zero", *deltas, "on the wire", "time", "throughput", "skipped", *sifted, "left")
    table = grid("right", *head)
    shown: list[Report | None] = list(rounds)
    if len(rounds) > _MAX_ROUNDS_SHOWN:
        half = _MAX_ROUNDS_SHOWN // 2
        shown = [*rounds[:half], None, *rounds[-half:]]
    for one in shown:
        if one is None:
            table.add_row("...", f"({len(rounds) - _MAX_ROUNDS_SHOWN} more)")
            continue
        duration_s, wire_bytes = one.get("duration_s"), one.get("wire_bytes")
        speed = format_throughput(wire_bytes / duration_s) if duration_s and wire_bytes is not None else "-"
        table.add_row(
            _words(one, "round", write=str),
            _words(one, "pages", write=format_count),
            _words(one, "zero_pages", write=format_count),
            *(_words(one, "delta_pages", write=format_count) for _ in deltas),
            _words(one, "wire_bytes", write=format_size),
            _duration(one, "duration_s"),
            speed,
            _words(one, "skipped_pages", write=format_count),
            *(_words(one, "unchanged_pages", write=format_count) for _ in sifted),
            _words(one, "dirty_pages_after", write=format_count),
        )
    return table


def _bitmap(report: Report) -> RenderableType:
    bitmap = report.get("bitmap")
    if not bitmap:
        return pairs([("bitmap", NOT_MEASURED)])
    raw_bytes, sent_bytes = bitmap.get("raw_bytes"), bitmap.get("compacted_bytes")
    times_smaller = f"{format_count(raw_bytes / sent_bytes)} times smaller" if raw_bytes and sent_bytes else ""
    if raw_bytes and sent_bytes and raw_bytes < 2 * sent_bytes:
        times_smaller = f"{sent_bytes / raw_bytes:.0%} of it"
    return triples(
        [
            ("sent in the stun", _words(report, "stun_pages", write=_pages), "what had to be there before the resume"),
            ("pages still missing", _words(bitmap, "pages", write=format_count), ""),
            ("raw", _words(bitmap, "raw_bytes", write=format_size), "one bit a page of the whole guest"),
            ("sent, compacted", _words(bitmap, "compacted_bytes", write=format_size), times_smaller),
            ("coded in", _duration(bitmap, "encode_s"), "at the source"),
            ("decoded in", _duration(bitmap, "decode_s"), "at the destination"),
        ]
    )


def _postcopy(report: Report) -> RenderableType:
    postcopy = report.get("postcopy")
    resident = ("resident after", _duration(report, "resident_after_s"), "resume to the last page")
    if not postcopy:
        return triples([("pages", NOT_MEASURED, "none moved after the resume"), resident])
    fault_us = postcopy.get("fault_us") or {}
    return triples(
        [
            ("pushed", _words(postcopy, "pushed_pages", write=_pages), "in the background"),
            ("fetched", _words(postcopy, "faulted_pages", write=_pages), "a vCPU waited for them"),
            ("came twice", _words(postcopy, "duplicate_pages", write=_pages), "and were dropped"),
            ("only published", _words(postcopy, "minor_faults", write=_pages), "faulted, but already here"),
            ("fault latency", _tail(fault_us, _microseconds), _spread(fault_us, _microseconds)),
            ("blocktime", _duration(postcopy, "blocktime_s"), "all vCPUs' waiting, summed"),
            resident,
        ]
    )


def _guest_rates(report: Report) -> RenderableType:
    rates = report.get("guest_rate") or {}
    before = rates.get("before_per_s")
    notes = {"before": "the second before the move", "during": "pre-copy", "after": "all pages moved"}
    rows = []
    for when, note in notes.items():
        rate = rates.get(f"{when}_per_s")
        share = f"{rate / before:.0%} of before; " if before and rate is not None and when != "before" else ""
        rows.append((when, NOT_MEASURED if rate is None else f"{format_count(rate)} commits/s", share + note))
    return triples(rows)


def _verified(report: Report) -> RenderableType:
    verified = report.get("verified") or {}
    rows = [
        ("memory invariant", _verdict(verified.get("invariant"), "holds", "BROKEN"), "the workload's own check"),
        ("commits lost", _none_lost(verified.get("commits_lost")), "counted, but not in guest memory"),
        ("commits repeated", _none_lost(verified.get("commits_repeated")), "applied more often than counted"),
        ("digest", _verdict(verified.get("digest_match"), "equal at both ends", "DIFFERENT"), "all of guest memory"),
        ("check paused it for", _duration(verified, "check_pause_s"), "after the measurement"),
    ]
    rows += [("PROBLEM", str(problem), "") for problem in verified.get("problems") or []]
    return triples(rows)


def _cost(report: Report) -> RenderableType:
    rows = [
        ("total", _duration(report, "total_s"), "migrate request to the last page"),
        ("setup", _duration(report, "setup_s"), "until tracing is installed"),
        ("pre-copy", _duration(report, "precopy_s"), "first round to the pause"),
        ("on the wire", _words(report, "wire_bytes", write=format_size), "without TCP/IP headers"),
        ("throughput", _words(report, "throughput_Bps", write=format_throughput), "of the pre-copy rounds"),
    ]
    if (compression := report.get("compression") or {}).get("mode") not in (None, "off"):
        rows.append(("compressed", *_compressed(compression)))
    if (unchanged := report.get("unchanged") or {}).get("mode") not in (None, "off"):
        rows.append(("unchanged", _words(unchanged, "unchanged_pages", write=_pages), _left_out(unchanged)))
    if deltas := report.get("delta_cache"):
        rows.append(("differences", *_differences(deltas)))
    cpu = report.get("cpu") or {}
    daemons = " + ".join(_duration(cpu, key) for key in ("source_s", "dest_s"))
    guests = " + ".join(_duration(cpu, key) for key in ("guest_source_s", "guest_dest_s"))
    rows.append(("daemons' CPU", daemons if cpu else NOT_MEASURED, "source + destination"))
    rows.append(("guest's CPU", guests if cpu else NOT_MEASURED, "source + destination"))
    if memory := report.get("memory"):
        for name, kind in (("daemons' memory", "own"), ("page tables", "tables")):
            sizes = [format_size(memory[f"{side}_{kind}_bytes"]) for side in ("source", "dest")]
            rows.append((name, " + ".join(sizes), "of the daemons, beside guest memory"))
        tables = [format_size(memory[f"guest_{side}_tables_bytes"]) for side in ("source", "dest")]
        rows.append(("guest's tables", " + ".join(tables), "page tables, source + destination"))
    rows += tcp_rows(report.get("tcp"))
    return triples(rows)


def _compressed(compression: Report) -> tuple[str, str]:
    """Say what became of the pages, or why they went as they are."""
    if not compression.get("compressed_pages"):
        return "nothing", str(compression.get("reason") or NOT_MEASURED)
    raw, sent = (_words(compression, key, write=format_size) for key in ("raw_bytes", "sent_bytes"))
    figure = f"{_words(compression, 'ratio', write=_short)} to 1 by {compression.get('codec')}"
    rest = _words(compression, "raw_pages", write=_pages)
    return figure, f"{raw} of page contents to {sent}; {rest} went as they are"


def _differences(deltas: Report) -> tuple[str, str]:
    """Say what became of pages that were sent again, and what had no version."""
    rest = f"{_words(deltas, 'whole_pages', write=_pages)} had no version"
    if deltas.get("rewritten_pages"):
        rest += f", {_words(deltas, 'rewritten_pages', write=format_count)} were written all over"
    if deltas.get("turned_away_pages"):
        rest += f", {_words(deltas, 'turned_away_pages', write=format_count)} found no room"
    if not deltas.get("delta_pages"):
        return "none", f"{deltas.get('reason') or NOT_MEASURED}; {rest}"
    raw, sent = (_words(deltas, key, write=format_size) for key in ("raw_bytes", "sent_bytes"))
    return f"{_words(deltas, 'ratio', write=_short)} to 1", f"{raw} of page contents to {sent}; {rest}"


def _left_out(unchanged: Report) -> str:
    """Say what looking for unchanged pages took, or why nobody looked."""
    looked = (
        f"left out, of {_words(unchanged, 'hashed_pages', write=_pages)} looked at in {_duration(unchanged, 'hash_s')}"
    )
    return looked if unchanged.get("hashed_pages") else str(unchanged.get("reason") or NOT_MEASURED)


# -- words and layout ----------------------------------------------------------------------------------------------------


def _read(tree: Any, *path: str) -> Any:
    """Follow `path` through nested dictionaries; None where it ends early."""
    for key in path:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def _words(figures: Report, key: str, *, write: Callable[[Any], str], missing: str = NOT_MEASURED) -> str:
    figure = figures.get(key)
    return missing if figure is None else write(figure)


def _duration(figures: Report, key: str) -> str:
    return _words(figures, key, write=format_duration)


def _tail(percentiles: Report, write: Callable[[float], str]) -> str:
    return _words(percentiles, "p99", write=lambda figure: f"p99 {write(figure)}")


def _spread(percentiles: Report, write: Callable[[float], str]) -> str:
    return ", ".join(f"{key} {write(percentiles[key])}" for key in ("p50", "max") if percentiles.get(key) is not None)


def _microseconds(duration_us: float) -> str:
    return format_duration(duration_us * 1e-6)


def _joined(first: object, second: object) -> str:
    return f"{first}: {second}" if second else str(first)


def _short(number: float) -> str:
    return f"{number:.3g}"


def _pages(count: int) -> str:
    return f"{format_count(count)} page{'' if count == 1 else 's'}"


def _verdict(proven: bool | None, good: str, bad: str) -> str:
    return NOT_MEASURED if proven is None else good if proven else bad


def _none_lost(count: int | None) -> str:
    return NOT_MEASURED if count is None else format_count(count)
