"""`pagefire bitmap`: what the switchover's bitmap costs in bytes and time, beside the raw bitmap, Roaring and the limit.

Counted is, for the two forms of the protocol, from the `PageSet` that the source holds at the stun to bytes, and from bytes to the
`PageSet` that the destination works with. For Roaring: from the same `PageSet` to bytes by the quicker way (a range a run, or
32-bit page numbers from one array), run containers included; and from bytes to page numbers in one array. Finding the runs among
them is not charged to it.

A time is the median of several repetitions; the shortest and the longest are kept beside it. The first one counts like the others,
cold as its caches may be. What comes out is compared with the set every time, outside the times.

The limit is that of any k of n pages, log2(binomial(n, k)) bits: right for `uniform`. There are fewer sets that are one run, or
clusters, so each of them holds less information, and a code may well fall below this limit there.
"""

from __future__ import annotations

import array
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pagefire.protocol.bitmap_compacted import decode_compacted, encode_compacted
from pagefire.protocol.bitmap_raw import decode_raw, encode_raw, information_limit_bytes, raw_bytes
from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.pages import PageSet
from pagefire.protocol.units import format_count, format_duration, format_size
from pagefire.scripts.bitmap_sets import Case, draw_set

LINK_GBITS = (1, 10, 40)
#: The raw bitmap is what the others are compared with, so it is coded too, up to that of 6 TiB: half a second for both ways. Above,
#: it would take more memory (three times its size) than the comparison is worth.
MAX_RAW_BYTES = 192 << 20
NO_ROARING = "not installed: pip install pagefire[roaring]"

#: A code that took so long in a case is not repeated any more, once it has been measured so often: else ten million pages, and the
#: walks through raw bitmaps, would take minutes.
_PATIENCE_S = 0.3
_LEAST_REPETITIONS = 3
_LEAST_RAW_REPETITIONS = 1
#: From so many pages a run on, Roaring is filled quicker by ranges (0.3 us each) than by page numbers (15 ns each).
_ROARING_RUN_PAGES = 20
#: What the printed table needs.
_COLUMNS = 100

#: Of each time the shortest, the median and the longest, by what stands before its _s.
TIMES = ("_min", "", "_max")

Json = dict[str, Any]
_PageNumbers = npt.NDArray[np.uint32]


def measure_table(cases: Iterable[Case], repetitions: int, seed: int, announce: Callable[[Case], None]) -> Json:
    """Measure the cases one after the other, each announced before it begins; gives {repetitions, seed, rows}.

    Raises UsageError for fewer than one repetition or a negative seed, and what `measure_case` raises.
    """
    if repetitions < 1:
        raise UsageError(f"{repetitions} repetitions measure nothing", "", "ask for --repetitions 1 or more")
    if seed < 0:
        raise UsageError(f"--seed {seed} cannot be", "seeds are 0 and above", "change --seed")
    rows = []
    for case in cases:
        announce(case)
        rows.append(measure_case(case, repetitions, seed))
    return {"repetitions": repetitions, "seed": seed, "rows": rows}


def measure_case(case: Case, repetitions: int, seed: int) -> Json:
    """Measure one case, with at most so many repetitions, at least 1.

    Gives guest_bytes, pages, runs, scatter, seed; raw_bytes, compacted_bytes, limit_bytes; encode_s and decode_s of the compacted
    form, with _min_s and _max_s of each, and repetitions; in `raw` the same times of the raw form, None above `MAX_RAW_BYTES`; in
    `roaring` its bytes, the same times, and deserialize_s, the part of decode_s after which its own set stands; None where it is
    not installed; compacted_link_s and raw_link_s: the time on a link of 1, 10 and 40 Gbit/s, by these numbers, without headers
    and latency. Raises PagefireError when a code did not give the set back.
    """
    pages, total_pages = draw_set(case, seed), case.total_pages
    compacted = _measure(
        f"the compacted bitmap of {case}",
        partial(encode_compacted, pages, total_pages),
        lambda coded: decode_compacted(coded, total_pages),
        lambda decoded: decoded == pages,
        repetitions,
    )
    compacted_bytes = compacted.pop("bytes")
    return {
        "guest_bytes": case.guest_bytes,
        "pages": case.pages,
        "runs": len(pages),
        "scatter": case.scatter,
        "seed": seed,
        "raw_bytes": raw_bytes(total_pages),
        "compacted_bytes": compacted_bytes,
        "limit_bytes": round(information_limit_bytes(case.pages, total_pages), 1),
        **compacted,
        "raw": _measure_raw(case, pages, repetitions),
        "roaring": _measure_roaring(case, pages, repetitions),
        "compacted_link_s": link_s(compacted_bytes),
        "raw_link_s": link_s(raw_bytes(total_pages)),
    }


def link_s(size_bytes: int) -> dict[str, float]:
    """Give the time that so many bytes take on each link, by its Gbit/s."""
    return {str(gbits): size_bytes * 8 / (gbits * 1e9) for gbits in LINK_GBITS}


def _measure(
    what: str,
    encode: Callable[[], bytes],
    decode: Callable[[bytes], Any],
    gives_back: Callable[[Any], bool],
    repetitions: int,
    least_repetitions: int = _LEAST_REPETITIONS,
) -> Json:
    encode_s, decode_s, coded = list[float](), list[float](), b""
    while len(encode_s) < repetitions:
        begun_s = time.perf_counter()
        coded = encode()
        coded_s = time.perf_counter()
        decoded = decode(coded)
        decoded_s = time.perf_counter()
        encode_s.append(coded_s - begun_s)
        decode_s.append(decoded_s - coded_s)
        if not gives_back(decoded):
            raise PagefireError(
                f"{what} is useless", "decoded, it is another set", "report this defect with the case and the seed"
            )
        if len(encode_s) >= least_repetitions and sum(encode_s) + sum(decode_s) > _PATIENCE_S:
            break
    return {
        "bytes": len(coded),
        **_spread("encode", encode_s),
        **_spread("decode", decode_s),
        "repetitions": len(encode_s),
    }


def _spread(name: str, times_s: list[float]) -> Json:
    return {f"{name}_s": statistics.median(times_s), f"{name}_min_s": min(times_s), f"{name}_max_s": max(times_s)}


def _measure_raw(case: Case, pages: PageSet, repetitions: int) -> Json | None:
    if raw_bytes(case.total_pages) > MAX_RAW_BYTES:
        return None
    measured = _measure(
        f"the raw bitmap of {case}",
        partial(encode_raw, pages, case.total_pages),
        lambda coded: decode_raw(coded, case.total_pages),
        lambda decoded: decoded == pages,
        repetitions,
        _LEAST_RAW_REPETITIONS,
    )
    del measured["bytes"]
    return measured


def _measure_roaring(case: Case, pages: PageSet, repetitions: int) -> Json | None:
    try:
        from pyroaring import BitMap
    except ImportError:
        return None
    deserialize_s: list[float] = []
    expected = pages.page_numbers()

    def encode() -> bytes:
        if pages.pages >= _ROARING_RUN_PAGES * len(pages):
            bitmap = BitMap()
            for start, stop in zip(pages.starts.tolist(), pages.stops.tolist(), strict=True):
                bitmap.add_range(start, stop)
        else:
            # Of a numpy array it would take the numbers one by one, in twice the time.
            bitmap = BitMap(array.array("I", pages.page_numbers().astype(np.uint32).tobytes()))
        bitmap.run_optimize()
        coded: bytes = bitmap.serialize()
        return coded

    def decode(coded: bytes) -> _PageNumbers:
        begun_s = time.perf_counter()
        bitmap = BitMap.deserialize(coded)
        deserialize_s.append(time.perf_counter() - begun_s)
        return np.frombuffer(bitmap.to_array(), np.uint32)

    measured = _measure(
        f"the Roaring bitmap of {case}", encode, decode, lambda decoded: np.array_equal(decoded, expected), repetitions
    )
    return measured | {"deserialize_s": statistics.median(deserialize_s)}


# -- the table for a person --------------------------------------------------------------------------------------------------


def print_table(result: Json, console: Console) -> None:
    """Print the rows, guest by guest, in 100 columns: a narrower console is made as wide, rather than cut figures off."""
    rows, console.width = result["rows"], max(console.width, _COLUMNS)
    for guest_bytes, of_guest in groupby(rows, lambda row: row["guest_bytes"]):
        for renderable in _guest_table(guest_bytes, list(of_guest)):
            console.print(renderable)
    if not any(row["roaring"] for row in rows):
        console.print(Text(f"Roaring: {NO_ROARING}"))
    words = (
        f"Each time is the median of up to {result['repetitions']}. limit: of any k of n pages; one run or clusters may well be\n"
        "below it. On a link: the compacted form, without headers and latency."
    )
    console.print(Text(words), soft_wrap=True)


def _guest_table(guest_bytes: int, rows: list[Json]) -> Iterable[RenderableType]:
    first = rows[0]
    on_links = ", ".join(format_duration(first["raw_link_s"][str(gbits)]) for gbits in LINK_GBITS)
    walks_s = [row["raw"]["encode_s"] + row["raw"]["decode_s"] for row in rows if row["raw"]]
    walked = (
        " to ".join(dict.fromkeys(format_duration(pick(walks_s)) for pick in (min, max)))
        if walks_s
        else "an unknown time"
    )
    yield Text(f"A guest of {format_size(guest_bytes)}", style="bold")
    yield Text(
        f"  as raw bits: {format_size(first['raw_bytes'])}, encoded and decoded in {walked};\n"
        f"  on {', '.join(map(str, LINK_GBITS))} Gbit/s: {on_links}"
    )
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for header in (
        "\npages left", "\ncompacted", "\nlimit", "\nRoaring", "\nencode", "\ndecode", "Roaring\nencode", "Roaring\ndecode",
    ):  # fmt: skip
        table.add_column(header, justify="right", min_width=8, no_wrap=True)
    for gbits in LINK_GBITS:
        table.add_column(f"on {gbits}\nGbit/s", justify="right", min_width=7, no_wrap=True)
    for scatter, scattered in groupby(rows, lambda row: row["scatter"]):
        table.add_row(Text(scatter, style="italic", justify="left"))
        for row in scattered:
            table.add_row(*_cells(row))
    yield table
    yield Text()


def _cells(row: Json) -> Iterable[str]:
    roaring = row["roaring"]
    yield format_count(row["pages"])
    yield format_size(row["compacted_bytes"])
    yield format_size(row["limit_bytes"])
    yield format_size(roaring["bytes"]) if roaring else "-"
    yield format_duration(row["encode_s"])
    yield format_duration(row["decode_s"])
    yield format_duration(roaring["encode_s"]) if roaring else "-"
    yield format_duration(roaring["decode_s"]) if roaring else "-"
    for gbits in LINK_GBITS:
        yield format_duration(row["compacted_link_s"][str(gbits)])
