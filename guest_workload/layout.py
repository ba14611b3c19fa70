"""How a guest's memory is divided: one partition a vCPU, of each the first bytes resident, of those the first written.

Partitions cover the memory from its start, equal and aligned (to 2 MiB where they are that large), so that no two vCPUs ever
write one page, nor one granule. What lies behind the resident bytes are holes: a guest of 6 TiB may hold 1 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import GRANULE_BYTES, PAGE_BYTES

PAGE_WORDS = PAGE_BYTES // 8
MIN_MEMORY_BYTES = 64 << 20
MAX_MEMORY_BYTES = 16 << 40
MAX_VCPUS = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """A possible division of memory: one that exists has been checked. The *_bytes are of the whole guest, as was asked for."""

    memory_bytes: int
    resident_bytes: int
    working_set_bytes: int
    vcpus: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be, with a UsageError."""
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise _impossible(f"{self.vcpus} vCPUs", f"1 to {MAX_VCPUS} are possible", "change --vcpus")
        if not MIN_MEMORY_BYTES <= self.memory_bytes <= MAX_MEMORY_BYTES or self.memory_bytes % PAGE_BYTES:
            raise _impossible(
                f"{self.memory_bytes} bytes of memory",
                "it takes 64 MiB to 16 TiB in whole pages of 4 KiB",
                "change --memory",
            )
        if not 0 <= self.seed < 1 << 64:
            raise _impossible(
                f"the seed {self.seed}", "a seed is a number below 2**64 and not below 0", "change --seed"
            )
        if self.resident_bytes > self.memory_bytes:
            raise _impossible(
                f"{self.resident_bytes} resident bytes",
                f"its memory has {self.memory_bytes}",
                "lower --resident or raise --memory",
            )
        if self.working_set_bytes > self.resident_bytes:
            raise _impossible(
                f"a working set of {self.working_set_bytes} bytes",
                f"only {self.resident_bytes} are resident",
                "lower --working-set or raise --resident",
            )
        if self.working_set_bytes // self.vcpus < PAGE_BYTES:
            raise _impossible(
                f"a working set of {self.working_set_bytes} bytes",
                f"each of its {self.vcpus} vCPUs needs a page of its own",
                "raise --working-set or lower --vcpus",
            )

    @property
    def partition_bytes(self) -> int:
        """Bytes from one vCPU's partition to the next."""
        share = self.memory_bytes // self.vcpus
        unit = GRANULE_BYTES if share >= GRANULE_BYTES else PAGE_BYTES
        return share // unit * unit

    @property
    def resident_pages(self) -> int:
        """Pages of each partition that hold content from the start."""
        return min(self.resident_bytes // self.vcpus, self.partition_bytes) // PAGE_BYTES

    @property
    def working_set_pages(self) -> int:
        """Pages of each partition that the workload writes; the first of the resident ones."""
        return min(self.working_set_bytes // self.vcpus, self.partition_bytes) // PAGE_BYTES

    def scattered_pages(self, count: int) -> npt.NDArray[np.int64]:
        """Choose so many pages, uniformly over all of memory, that are none of the resident ones; by the seed, in order.

        Raises UsageError where there are not twice as many to choose from.
        """
        total_pages, partition_pages = self.memory_bytes // PAGE_BYTES, self.partition_bytes // PAGE_BYTES
        free_pages = total_pages - self.vcpus * self.resident_pages
        if not 0 <= 2 * count <= free_pages:
            raise _impossible(
                f"{count} scattered pages",
                f"{free_pages} of its pages are not resident, and at most half of them may be scattered",
                "lower --scattered or raise --memory",
            )
        random, chosen = np.random.default_rng(self.seed), np.empty(0, np.int64)
        while chosen.size < count:
            drawn = random.integers(0, total_pages, 2 * count)
            resident = (drawn % partition_pages < self.resident_pages) & (drawn < self.vcpus * partition_pages)
            drawn = np.concatenate((chosen, drawn[~resident]))
            _, first_at = np.unique(drawn, return_index=True)
            chosen = drawn[np.sort(first_at)][:count]
        return np.sort(chosen)

    def partition(self, memory: npt.NDArray[np.uint8], vcpu: int) -> npt.NDArray[np.uint64]:
        """View the words of one vCPU's partition; no copy."""
        start = vcpu * self.partition_bytes
        return memory[start : start + self.partition_bytes].view(np.uint64)

    def working_set(self, memory: npt.NDArray[np.uint8], vcpu: int) -> npt.NDArray[np.uint64]:
        """View the words of one vCPU's working set; no copy."""
        return self.partition(memory, vcpu)[: self.working_set_pages * PAGE_WORDS]


def _impossible(what: str, why: str, do: str) -> UsageError:
    return UsageError(f"a guest cannot have {what}", why, do)
