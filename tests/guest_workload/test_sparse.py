"""Arrays of which little is touched."""

from __future__ import annotations

from pagefire.guest_workload.linux.memory_use import memory_use_bytes
from pagefire.guest_workload.linux.sparse import sparse_zeros


def test_a_byte_touched_here_and_there_costs_a_page_each() -> None:
    before_bytes, _ = memory_use_bytes()
    array = sparse_zeros(4 << 30)
    array[:: 64 << 20] = 1
    after_bytes, _ = memory_use_bytes()
    assert int(array[:: 64 << 20].sum()) == 64
    # 64 pages, not 64 huge ones (128 MiB); the interpreter may take some for itself meanwhile.
    assert after_bytes - before_bytes < 16 << 20
    assert array[1] == 0


def test_nothing_is_an_array_too() -> None:
    assert sparse_zeros(0).size == 0
