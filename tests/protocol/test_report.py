"""The report: JSON of plain values, in which nothing that was not measured looks like a zero."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from typing import Any

import pytest

from pagefire.protocol import report as r
from pagefire.protocol.report import MigrationReport

CLASSES = [c for c in vars(r).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
#: Fields that are fractions without being a time, a rate or percentiles of one: shares, and the load.
UNITLESS = {
    "load",
    "p50",
    "p99",
    "max",
    "mean",
    "baseline_max",
    "ratio",
    "share_changed",
    "delta_share",
    "settled_share",
}


def full(annotation: Any) -> Any:
    """Give a value of an annotation with every optional part there."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = typing.get_type_hints(annotation)
        return annotation(**{f.name: full(hints[f.name]) for f in dataclasses.fields(annotation)})
    if typing.get_origin(annotation) is list:
        return [full(typing.get_args(annotation)[0])]
    if typing.get_origin(annotation) is dict:
        key, value = typing.get_args(annotation)
        return {full(key): full(value)}
    if typing.get_origin(annotation) is types.UnionType:
        return full(typing.get_args(annotation)[0])
    return {int: 3, float: 0.5, str: "x", bool: True}[annotation]


def test_json_there_and_back() -> None:
    whole = full(MigrationReport)
    assert json.loads(json.dumps(whole.as_dict(), allow_nan=False)) == whole.as_dict()


def test_an_empty_report_is_json() -> None:
    empty = MigrationReport().as_dict()
    assert json.loads(json.dumps(empty, allow_nan=False)) == empty


def test_what_was_not_measured_is_none() -> None:
    empty = MigrationReport()
    for name, annotation in typing.get_type_hints(MigrationReport).items():
        if annotation in (float | None, int | None) or name.endswith("_s"):
            assert getattr(empty, name) is None, name


def test_reports_share_nothing() -> None:
    first, second = MigrationReport(), MigrationReport()
    first.rounds.append(full(r.Round))
    first.verified.problems.append("x")
    assert second.rounds == []
    assert second.verified.problems == []


@pytest.mark.parametrize("report_class", CLASSES, ids=lambda c: str(c.__name__))
def test_fractions_have_their_unit_in_their_name(report_class: type) -> None:
    for name, annotation in typing.get_type_hints(report_class).items():
        if annotation in (float, float | None) and name not in UNITLESS:
            assert re.search(r"_s$|_us$|_Bps$|_per_s$|^rate$", name), name


def test_every_time_of_the_report_says_what_it_counts() -> None:
    documented = MigrationReport.__doc__ or ""
    for field in dataclasses.fields(MigrationReport):
        if field.name.endswith(("_s", "_Bps", "_bytes")) and field.name != "vcpu_stun_s":
            assert re.search(rf"\b{field.name}\b", documented), field.name
    assert r.VcpuStun.__doc__
    breakdown = r.DowntimeBreakdown.__doc__ or ""
    assert all(f"{field.name}:" in breakdown for field in dataclasses.fields(r.DowntimeBreakdown))
