"""A daemon's log as JSON: the values of a message by their keys, with their types."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from pagefire.protocol.transport.log_lines import JsonLines


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("pagefire.source", logging.INFO, __file__, 1, message, values, None)


@pytest.mark.parametrize(
    ("message", "values", "fields"),
    [
        ("guest=%s round=%d left=%d", ("guest0", 3, 17), {"guest": "guest0", "round": 3, "left": 17}),
        ("guest=%s phase=setup setup_s=%.3f pid=%d", ("g", 0.25, 7), {"guest": "g", "setup_s": 0.25, "pid": 7}),
        ("guest=%s %d pages are left: a second signal", ("g", 4), {"guest": "g"}),
        ("peer=%s guest=%r", ("1.2.3.4:5", "a\nb"), {"peer": "1.2.3.4:5", "guest": "a\nb"}),
        ("why=%s", (ValueError("no = sign"),), {"why": "no = sign"}),
        ("80%% of file=%s", (Path("/x"),), {"file": "/x"}),
        ("nothing", (), {}),
    ],
)
def test_values_are_taken_from_where_the_message_has_them(
    message: str, values: tuple[object, ...], fields: dict[str, Any]
) -> None:
    one = record(message, *values)
    line = json.loads(JsonLines().format(one))
    assert line["fields"] == fields
    assert line["message"] == one.getMessage()
    assert (line["level"], line["logger"]) == ("info", "pagefire.source")


def test_an_exception_is_in_its_line() -> None:
    one = record("it failed")
    try:
        raise ValueError("why")
    except ValueError:
        one.exc_info = sys.exc_info()
    text = JsonLines().format(one)
    assert "\n" not in text
    assert "ValueError: why" in json.loads(text)["exception"]
