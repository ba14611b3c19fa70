"""A daemon's log, line by line: as text for a person, or as JSON for a machine (`--log-format`).

Messages are written as key=value where they have values, so the text is both. For JSON the values are taken from where the message
has them, with their types, by its own template: nothing is read back out of words.
"""

from __future__ import annotations

import json
import logging
import re
import sys

FORMATS = ("text", "json")

#: A place for a value in a message, and its key where it has one: `guest=%s`.
_PLACE = re.compile(r"(?:(\w+)=)?%[-+ #0]*\d*(?:\.\d+)?[sdrfgx]")


class JsonLines(logging.Formatter):
    """One object a line: time_ns (of Unix), level, logger, message, and the message's values as `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time_ns": round(record.created * 1e9),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "fields": fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def fields_of(record: logging.LogRecord) -> dict[str, str | int | float | bool | None]:
    """Give the values of a message by their keys; what is neither a number nor a text is put into words."""
    values = record.args if isinstance(record.args, tuple) else ()
    keys = _PLACE.findall(str(record.msg).replace("%%", ""))
    return {
        key: value if isinstance(value, str | int | float | None) else str(value)
        for key, value in zip(keys, values, strict=False)
        if key
    }


def begin_log(log_format: str = "text") -> None:
    """Let this process log to its standard error, in one of `FORMATS`."""
    text = "%(asctime)s.%(msecs)03d %(name)s %(message)s"
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=text, datefmt="%H:%M:%S")
    if log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
