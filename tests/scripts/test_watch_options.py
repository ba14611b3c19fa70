"""Where figures are served and how a daemon logs, as it is asked for."""

from __future__ import annotations

import pytest

from pagefire.protocol.errors import UsageError
from pagefire.scripts.watch_options import Watch, WatchOptions


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        (":9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_a_port_alone_is_one_of_loopback(given: str, address: tuple[str, int]) -> None:
    assert WatchOptions(given).given() == Watch(address, None)


def test_by_default_nothing_is_told() -> None:
    assert WatchOptions().given() == Watch(None, None)
    assert WatchOptions().told() == {"log_format": "text", "quiet": False}
    assert WatchOptions(events="-").told()["quiet"]


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="is not an address"):
        WatchOptions("nowhere").given()
    with pytest.raises(UsageError, match="known are text, json"):
        WatchOptions(log_format="xml").given()
