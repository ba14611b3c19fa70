"""text: a guest whose memory reads like a text, so that a compressor gains what it gains on the like of documents and tables.

Lines of 64 bytes, drawn from a text whose words are drawn from a made-up vocabulary by Zipf's law. A transaction copies one line
over another, so the memory stays text however long it runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.fill import below, draw
from pagefire.guest_workload.layout import PAGE_WORDS, Layout
from pagefire.guest_workload.workload import Bytes, Workload, transaction

_LINE_WORDS = 8
_LINE_BYTES = 8 * _LINE_WORDS
_VOCABULARY = 2000
#: Words of the text that lines are drawn from, and lines that are drawn at a time.
_TEXT_WORDS, _DRAWN_LINES = 1 << 20, 1 << 20


@transaction
def _step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    lines = np.uint64(parameters[0])
    copied = below(draw(registers), lines) * np.uint64(_LINE_WORDS)
    over = below(draw(registers), lines) * np.uint64(_LINE_WORDS)
    for word in range(np.uint64(_LINE_WORDS)):
        memory[over + word] = memory[copied + word]


def text(seed: int) -> Bytes:
    """Make a text, the same for the same seed, as [lines, 64]."""
    random = np.random.default_rng(seed)
    words = [random.integers(97, 123, length, np.uint8).tobytes() for length in random.integers(2, 10, _VOCABULARY)]
    often = 1 / np.arange(1, _VOCABULARY + 1)
    drawn = random.choice(_VOCABULARY, _TEXT_WORDS, p=often / often.sum())
    written = np.frombuffer(b" ".join([words[number] for number in drawn.tolist()]), np.uint8)
    return written[: written.size // _LINE_BYTES * _LINE_BYTES].reshape(-1, _LINE_BYTES)


class Text(Workload):
    name = "text"
    description = "text in all of memory, one line copied over another each time"
    step = _step

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        return np.array([layout.working_set_pages * PAGE_WORDS // _LINE_WORDS], np.int64)

    def fill(self, memory: Bytes, layout: Layout, vcpu: int, seed: int) -> None:
        partition = layout.partition(memory, vcpu)[: layout.resident_pages * PAGE_WORDS].view(np.uint8)
        lines, source, random = partition.reshape(-1, _LINE_BYTES), text(seed), np.random.default_rng(seed + vcpu)
        for first in range(0, len(lines), _DRAWN_LINES):
            part = lines[first : first + _DRAWN_LINES]
            part[:] = source[random.integers(0, len(source), len(part))]
