"""The summary's lines about a database: how long its clients waited, and what the audit counted."""

from __future__ import annotations

from typing import Any

from pagefire.protocol.units import format_count, format_duration

_WINDOWS = (
    ("before", "before", "the second before the move"),
    ("precopy", "pre-copy", "until the pause request"),
    ("through", "through", "stun and post-copy, until every page is there"),
    ("after", "after", "all pages moved"),
    ("waited", "across the stun", "each client's first answer from the destination"),
)
_COUNTED = (
    ("integrity_errors", "integrity_check", "of the database, after the measurement"),
    ("orders_lost", "orders lost", "of which a client was told that they are committed"),
    ("orders_repeated", "orders repeated", "there more often than committed"),
    ("failed", "failed", "transactions that SQLite gave an error for"),
)

Report = dict[str, Any]


def database_rows(database: Report) -> list[tuple[str, str, str]]:
    """Give names, figures, and what each figure counts."""
    rows = []
    for key, name, note in _WINDOWS:
        window = database.get(key)
        if window is None:
            rows.append((name, "no transaction", note))
            continue
        p50, longest = (format_duration(window[part]) for part in ("p50", "max"))
        count = format_count(window["transactions"])
        rows.append((name, f"p99 {format_duration(window['p99'])}", f"p50 {p50}, max {longest}, of {count}; {note}"))
    counted = database.get("counted") or {}
    if orders := counted.get("orders"):
        rest = ", ".join(
            f"{format_count(counted.get(key, 0))} {key.replace('_', ' ')}" for key in ("payments", "looks_at_orders")
        )
        rows.append(("committed", f"{format_count(orders)} orders", f"and {rest}, since the guest was born"))
    for key, name, note in _COUNTED:
        if key in counted:
            figure = format_count(counted[key])
            if key == "integrity_errors":
                figure = "ok" if not counted[key] else f"{figure} errors"
            rows.append((name, figure, note))
    return rows
