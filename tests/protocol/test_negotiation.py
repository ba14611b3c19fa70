"""Negotiation: what is agreed on, and that every refusal says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pagefire.protocol import negotiation
from pagefire.protocol.errors import PeerRefused
from pagefire.protocol.messages import Hello, Offer, Welcome
from pagefire.protocol.negotiation import (
    CAPABILITIES,
    MAX_STREAMS,
    MAX_VCPUS,
    MODES,
    REQUIRED,
    check_capabilities,
    check_offer,
    check_welcome,
    choose_version,
)
from tests.protocol.golden.examples import EXAMPLES

ALLOWED_BYTES = 1 << 32


def hello(versions: list[int]) -> Hello:
    example = EXAMPLES["Hello control"][0]
    assert isinstance(example, Hello)
    return dataclasses.replace(example, versions=versions)


def offer(**fields: Any) -> Offer:
    example = EXAMPLES["Offer paced"][0]
    assert isinstance(example, Offer)
    return dataclasses.replace(example, **fields)


def welcome(version: int = 2, capabilities: tuple[str, ...] = CAPABILITIES) -> Welcome:
    return Welcome(version, list(capabilities), b"", b"", "", "", 10.0)


# -- versions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [((1,), [1], 1), ((1, 2), [1], 1), ((1,), [3, 2, 1], 1), ((1, 2, 3), [2, 3, 4], 3), ((1,), [1, 1], 1)],
)
def test_the_newest_common_version(
    ours: tuple[int, ...], theirs: list[int], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiation, "VERSIONS", ours)
    assert choose_version(hello(theirs)) == chosen


@pytest.mark.parametrize("theirs", [[], [1], [0], [-1, 7]])
def test_no_common_version(theirs: list[int]) -> None:
    with pytest.raises(PeerRefused, match="version") as refused:
        choose_version(hello(theirs))
    assert str(theirs) in refused.value.why
    assert "[2]" in refused.value.why
    assert refused.value.do


def test_a_version_that_was_not_offered() -> None:
    check_welcome(welcome())
    with pytest.raises(PeerRefused, match="3"):
        check_welcome(welcome(version=3))


# -- capabilities ------------------------------------------------------------------------------------------------------


def test_capabilities_unknown_to_us_are_welcome() -> None:
    check_capabilities([*REQUIRED, "from-the-future"], "source")


def test_we_have_what_we_require() -> None:
    assert set(CAPABILITIES) >= REQUIRED


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_missing_capability_is_named(missing: str) -> None:
    rest = tuple(REQUIRED - {missing})
    with pytest.raises(PeerRefused, match=f"the source lacks capabilities: {missing}"):
        check_capabilities(list(rest), "source")
    with pytest.raises(PeerRefused, match=f"the destination lacks capabilities: {missing}"):
        check_welcome(welcome(capabilities=rest))


# -- the offer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_taken(mode: str) -> None:
    check_offer(offer(mode=mode), ALLOWED_BYTES)


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_bytes": ALLOWED_BYTES},
        {"vcpus": 1},
        {"vcpus": MAX_VCPUS},
        {"streams": MAX_STREAMS},
        {"name": "a" * 40},
        {"name": "g 0"},
    ],
    ids=str,
)
def test_the_limits_themselves_are_allowed(fields: dict[str, Any]) -> None:
    check_offer(offer(**fields), ALLOWED_BYTES)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"page_bytes": 16384}, "16384 bytes, here 4096"),
        ({"memory_bytes": 0}, "whole number of pages: 0 bytes"),
        ({"memory_bytes": -1}, "whole number of pages: -1 bytes"),
        ({"memory_bytes": 4097}, "whole number of pages: 4097 bytes"),
        ({"memory_bytes": ALLOWED_BYTES + 4096}, "--max-guest-memory"),
        ({"vcpus": 0}, "0 vCPUs: the destination takes 1 to 256"),
        ({"vcpus": MAX_VCPUS + 1}, "257 vCPUs"),
        ({"streams": 0}, "0 page connections: the destination takes 1 to 16"),
        ({"streams": MAX_STREAMS + 1}, "17 page connections"),
        ({"mode": "teleport"}, "no mode 'teleport': it knows hybrid"),
        ({"name": ""}, "no name"),
        ({"name": "a" * 41}, "1 to 40 printable"),
        ({"name": "guest\n12:00:00 forged"}, "no name"),
        ({"name": "\x1b[2J"}, "no name"),
    ],
    ids=str,
)
def test_each_refusal_names_its_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(PeerRefused, match=reason):
        check_offer(offer(**fields), ALLOWED_BYTES)
