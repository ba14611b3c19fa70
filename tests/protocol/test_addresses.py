"""HOST:PORT."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefire.protocol.addresses import parse_address
from pagefire.protocol.errors import UsageError


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("127.0.0.1:7700", ("127.0.0.1", 7700)),
        ("host.example:1", ("host.example", 1)),
        (":7700", ("127.0.0.1", 7700)),
        ("[::1]:7700", ("::1", 7700)),
        ("[fe80::1%eth0]:0", ("fe80::1%eth0", 0)),
        ("h:65535", ("h", 65535)),
    ],
)
def test_read(typed: str, address: tuple[str, int]) -> None:
    assert parse_address(typed) == address


def test_the_default_host_is_the_callers() -> None:
    assert parse_address(":1", "0.0.0.0") == ("0.0.0.0", 1)


@pytest.mark.parametrize(
    "typed", ["", "host", "host:", "host:x", "host:-1", "host:65536", "host:7 ", "h:\u00b2", "h:\u0663"]
)
def test_refused_with_an_example(typed: str) -> None:
    with pytest.raises(UsageError, match=r"write for instance 127\.0\.0\.1:7700"[1:]) as refused:
        parse_address(typed)
    assert repr(typed) in str(refused.value)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12))
def test_anything_is_an_address_or_refused(typed: str) -> None:
    try:
        host, port = parse_address(typed)
    except UsageError:
        return
    assert host
    assert 0 <= port <= 65535
