"""The text workload: memory of it compresses as text does, no two pages are equal, and it stays so while it runs."""

from __future__ import annotations

import numpy as np

from pagefire.guest_workload.layout import Layout
from pagefire.protocol.codecs import CODECS, new_codec
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.scripts.bench.text_workload import Text

MEMORY_BYTES = 64 << 20
LAYOUT = Layout(MEMORY_BYTES, 4 << 20, 1 << 20, 2, 1)
SHARES = {"lz4": (0.4, 0.6), "zstd": (0.25, 0.4)}


def filled(seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    memory = np.zeros(MEMORY_BYTES, np.uint8)
    for vcpu in range(LAYOUT.vcpus):
        Text().fill(memory, LAYOUT, vcpu, seed)
    return memory


def test_it_compresses_as_text_does() -> None:
    memory = filled(1)
    for codec in CODECS:
        least, most = SHARES[codec]
        assert least < len(new_codec(codec).pack(memory[: 1 << 20].tobytes())) / (1 << 20) < most
    pages = memory.reshape(-1, PAGE_BYTES)
    resident = [page.tobytes() for page in pages if page.any()]
    assert len(resident) == len(set(resident)) == (4 << 20) // PAGE_BYTES


def test_the_same_seed_makes_the_same_memory() -> None:
    assert np.array_equal(filled(7), filled(7))
    assert not np.array_equal(filled(7), filled(8))


def test_a_transaction_copies_a_line() -> None:
    memory = filled(1)
    words, parameters = LAYOUT.working_set(memory, 0), Text().parameters(LAYOUT, 0)
    registers = Text().first_registers(memory, LAYOUT, 0, 1)
    lines = words.reshape(-1, 8)
    before = lines.copy()
    for _ in range(100):
        Text.step(words, registers, parameters)
    changed = np.flatnonzero((lines != before).any(axis=1))
    assert 50 < changed.size <= 100
    known = {line.tobytes() for line in before}
    assert all(lines[line].tobytes() in known for line in changed.tolist())
