"""What a daemon's migrations come to: added up, and not forgotten where a later one measured nothing."""

from __future__ import annotations

from pagefire.protocol.totals import Moved, Served, Totals


def test_they_add_up() -> None:
    totals = Totals()
    totals.left("a", "completed", Moved(rounds=2, pages=10, zero_pages=3, wire_bytes=100), 0.01, 0.008)
    totals.left("a", "cancelled", Moved(rounds=1, pages=5, unchanged_pages=2, recoveries=1), None, None)
    totals.came("completed", Served(3, 4))
    totals.came("completed", Served(1, 0))
    assert totals.moved == Moved(rounds=3, pages=15, zero_pages=3, unchanged_pages=2, wire_bytes=100, recoveries=1)
    assert totals.served == Served(4, 4)
    assert totals.outcomes == {("source", "completed"): 1, ("source", "cancelled"): 1, ("destination", "completed"): 2}
    assert (totals.last_stun_s, totals.last_downtime_s) == ({"a": 0.01}, {"a": 0.008})
