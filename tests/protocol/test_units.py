"""Sizes, durations, rates and CPU lists: what is read, what is refused and how, and what is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.errors import UsageError
from pagefire.protocol.units import (
    format_count,
    format_duration,
    format_size,
    format_throughput,
    parse_cpu_list,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    parse_working_set,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("typed", "size_bytes"),
    [
        ("4096", 4096),
        ("0", 0),
        ("512B", 512),
        ("4K", 4096),
        ("512M", 512 << 20),
        ("1G", GIB),
        ("4GiB", 4 * GIB),
        ("4gib", 4 * GIB),
        (" 4 GiB ", 4 * GIB),
        ("6TiB", 6 << 40),
        ("1.5g", GIB * 3 // 2),
        ("100MB", 100_000_000),
        ("1kB", 1000),
        ("2TB", 2 * 10**12),
        ("1.1GiB", 1_181_116_006),
    ],
)
def test_sizes(typed: str, size_bytes: int) -> None:
    assert parse_size(typed) == size_bytes


@pytest.mark.parametrize(
    ("typed", "duration_s"),
    [("50ms", 0.05), ("2s", 2.0), ("1.5s", 1.5), ("300us", 0.0003), ("5m", 300.0), ("1h", 3600.0), ("0", 0.0), (".5s", 0.5)],
)  # fmt: skip
def test_durations(typed: str, duration_s: float) -> None:
    assert parse_duration(typed) == duration_s


@pytest.mark.parametrize(
    ("typed", "rate_per_s"), [("2000/s", 2000), ("50k/s", 50_000), ("2000", 2000), ("1.5M", 1_500_000), ("0.5", 0.5)]
)
def test_rates(typed: str, rate_per_s: float) -> None:
    assert parse_rate(typed) == rate_per_s


@pytest.mark.parametrize(
    ("typed", "size_bytes"), [("25%", GIB // 4), ("100%", GIB), ("256MiB", 256 << 20), ("1", 4096), ("0.0001%", 4096)]
)
def test_working_sets_are_whole_pages(typed: str, size_bytes: int) -> None:
    assert parse_working_set(typed, GIB) == size_bytes


def test_a_working_set_is_never_more_than_an_odd_memory() -> None:
    assert parse_working_set("100%", 5000) == 5000


def test_shares_are_numbers_up_to_one() -> None:
    assert [parse_share(typed) for typed in ("50%", "100%", "0.5 %")] == [0.5, 1.0, 0.005]


@pytest.mark.parametrize(
    ("typed", "cpus"), [("0", (0,)), ("0,2-3", (0, 2, 3)), ("3, 1 - 2,2", (1, 2, 3)), ("8191", (8191,))]
)
def test_cpu_lists(typed: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(typed) == cpus


@pytest.mark.parametrize(
    ("parse", "typed", "why"),
    [
        (parse_size, "", "empty"),
        (parse_size, "-4G", "negative"),
        (parse_size, "4X", "'X' is not a unit"),
        (parse_size, "4Mb", "bits"),
        (parse_size, "four", "number"),
        (parse_size, "1e9", "number"),
        (parse_size, "nan", "number"),
        (parse_size, "\N{ARABIC-INDIC DIGIT FOUR}G", "number"),
        (parse_size, "9" * 30 + "T", "more than"),
        (parse_size, "9" * 5000, "number"),
        (parse_duration, "50", "unit is missing"),
        (parse_duration, "50 parsecs", "'parsecs' is not a unit"),
        (parse_duration, "99999999h", "ten years"),
        (parse_rate, "0", "above zero"),
        (parse_rate, "5/m", "not a unit"),
        (parse_rate, "99999999G", "at most"),
        (lambda typed: parse_working_set(typed, GIB), "101%", "at most 100%"),
        (lambda typed: parse_working_set(typed, GIB), "0%", "above 0%"),
        (lambda typed: parse_working_set(typed, GIB), "2G", "has 1 GiB of memory"),
        (lambda typed: parse_working_set(typed, GIB), "0", "no working set"),
        (lambda typed: parse_working_set(typed, GIB), "5Q%", "share"),
        (lambda typed: parse_working_set(typed, GIB), "five", "number"),
        (parse_share, "101%", "at most 100%"),
        (parse_share, "0%", "above 0%"),
        (parse_share, "0.5", "share"),
        (parse_cpu_list, "", "neither a CPU nor a range"),
        (parse_cpu_list, "1,,2", "neither a CPU nor a range"),
        (parse_cpu_list, "3-1", "ends before it begins"),
        (parse_cpu_list, "0-999999999", "no Linux has"),
    ],
)
def test_a_refusal_names_what_was_given_why_and_what_is_right(
    parse: Callable[[str], object], typed: str, why: str
) -> None:
    with pytest.raises(UsageError) as refused:
        parse(typed)
    assert repr(typed) in refused.value.what
    assert why in refused.value.why
    assert " such as " in refused.value.do


@given(st.integers(0, 2**63 - 1))
def test_a_plain_number_of_bytes_survives(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.integers(0, 2**60))
def test_what_is_written_reads_back_to_three_digits(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes).replace(",", "")) == pytest.approx(size_bytes, rel=0.006)


@pytest.mark.parametrize(
    ("duration_s", "written"),
    [
        (0, "0 s"), (5e-7, "500 ns"), (42e-6, "42 us"), (0.0015, "1.5 ms"), (0.9996, "1 s"), (3.2, "3.2 s"), (12.345, "12.3 s"),
        (119, "119 s"), (125, "2 min 5 s"), (7300, "2 h 1 min"), (-0.0012, "-1.2 ms"),
    ],
)  # fmt: skip
def test_written_durations(duration_s: float, written: str) -> None:
    assert format_duration(duration_s) == written


@pytest.mark.parametrize(
    ("size_bytes", "written"),
    [(0, "0 B"), (512, "512 B"), (1023, "1,023 B"), (1024, "1 KiB"), (1_048_525, "1 MiB"), (GIB * 3 // 2, "1.5 GiB")],
)
def test_written_sizes(size_bytes: int, written: str) -> None:
    assert format_size(size_bytes) == written


def test_written_throughput_and_counts() -> None:
    assert format_throughput(812e6) == "812 MB/s"
    assert format_throughput(999.96e6) == "1 GB/s"
    assert format_throughput(5.153e9) == "5.15 GB/s"
    assert format_count(1296) == "1,296"
    assert format_count(26_700.4) == "26,700"
