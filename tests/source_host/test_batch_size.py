"""How many pages are taken next."""

from __future__ import annotations

from pagefire.source_host.batch_size import BatchSize

BATCH = BatchSize(128, 2048, 0.002)


def test_a_batch_is_what_the_link_moves_in_time() -> None:
    assert BATCH.next(1000, 0.002) == 1000
    assert BATCH.next(1000, 0.004) == 500
    # A stream that swallows everything at once tells no speed: twice as many, not all.
    assert BATCH.next(400, 0.0) == 800
    assert BATCH.next(1, 0.0) == 128
    assert BATCH.next(2048, 1e-6) == 2048
    assert BATCH.next(2048, 10.0) == 128
