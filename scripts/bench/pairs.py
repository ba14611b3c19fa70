"""A measurement and its reference, in turn, and their ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pagefire.scripts.spread import spread

S = TypeVar("S")
R = TypeVar("R")


def alternate(subject: Callable[[], S], reference: Callable[[], R], repetitions: int) -> Iterator[tuple[S, R]]:
    """Take both so often, and give each pair as soon as it is there; the subject comes first to begin with.

    Whoever comes second finds the machine as the first one left it: each does so every other time.
    """
    for repetition in range(repetitions):
        if repetition % 2:
            of_reference = reference()
            yield subject(), of_reference
        else:
            of_subject = subject()
            yield of_subject, reference()


def ratios(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Give the spread of subject over reference, pair by pair: what hits both of a pair is in neither."""
    return spread([ours / theirs for ours, theirs in pairs])


def ratio_words(of_pairs: dict[str, Any]) -> tuple[str, str]:
    """Write what `ratios` gave for a table: the median, and the least to the largest."""
    return f"{of_pairs['median']:.3f}", f"{of_pairs['min']:.3f} - {of_pairs['max']:.3f}"
