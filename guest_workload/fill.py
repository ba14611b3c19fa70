"""What guest memory holds before its first transaction, and random numbers for guests: splitmix64, without a clock.

A page's words follow from (seed, page number, word), so pages are all different and no compressor or deduplicator gains
anything: what a benchmark of migration should assume unless it says otherwise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2 = np.uint64(0x94D0_49BB_1331_11EB)
_PAGE_WORDS = np.uint64(512)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@njit("uint64(uint64)", cache=True, nogil=True)
def mix(x):  # type: ignore[no-untyped-def]
    """Scramble 64 bits one to one (the finalizer of splitmix64)."""
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@njit("uint64(uint64[::1])", cache=True, nogil=True)
def draw(registers):  # type: ignore[no-untyped-def]
    """Draw the vCPU's next random number; its state is register 1 and so travels."""
    registers[1] += _GOLDEN
    return mix(registers[1])


@njit("uint64(uint64, uint64)", cache=True, nogil=True)
def below(random, bound):  # type: ignore[no-untyped-def]
    """Scale a random number to 0 .. bound - 1, for bounds below 2**32; without the division of a modulo."""
    return ((random >> _32) * bound) >> _32


@njit("void(uint64[::1], uint64, uint64)", cache=True, nogil=True)
def fill_pages(memory, seed, first_page):  # type: ignore[no-untyped-def]
    """Fill whole pages, of which the first is page `first_page` of the guest."""
    start = mix(seed) + first_page * _PAGE_WORDS * _GOLDEN
    for word in range(memory.size):
        memory[word] = mix(start + np.uint64(word) * _GOLDEN)


@njit("uint64(uint64[::1])", cache=True, nogil=True)
def sum_words(memory):  # type: ignore[no-untyped-def]
    """Add up words modulo 2**64."""
    total = np.uint64(0)
    for word in range(memory.size):
        total += memory[word]
    return total


def words_total(memory: npt.NDArray[np.uint64]) -> int:
    """Add up words modulo 2**64, as an int."""
    return int(sum_words(memory))
