"""What a guest is: everything its process is told before it runs. Equal configs make equal guests, on whatever host."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, fields
from typing import Any

from pagefire.guest_workload.layout import Layout
from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import GRANULE_BYTES

MIN_RATE_PER_S = 0.001


class Backing(enum.Enum):
    """What maps guest memory: 4 KiB pages, transparent huge pages (2 MiB) wherever a whole granule is there, or 2 MiB pages only.

    The last come from a pool that the host has reserved (hugetlb). The kernel never divides them, so such a guest is protected,
    sent, faulted and shown by 2 MiB.
    """

    SMALL = "4k"
    THP = "thp"
    HUGETLB = "hugetlb"


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """One guest's shape; the *_bytes and vcpus as in `Layout`.

    `scattered_pages` single pages with contents lie all over the memory, beside the resident bytes; nobody writes them. `backing`
    is a `Backing`. `rate` is transactions per second of the whole guest, None for the workload's own pace. `stop_at` counts
    transactions of each vCPU since birth, 0 for never. A `shell` has no content: it is ready to take a migrated guest.
    `user_workloads` are the names beyond the built-in ones that this host's owner allows; a host fills it in itself and never takes
    it from a peer.
    """

    name: str
    memory_bytes: int
    resident_bytes: int
    working_set_bytes: int
    vcpus: int
    workload: str
    seed: int = 1
    rate: float | None = None
    backing: str = Backing.SMALL.value
    scattered_pages: int = 0
    shell: bool = False
    stop_at: int = 0
    cpus: tuple[int, ...] | None = None
    user_workloads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a rate and a backing that cannot be, with a UsageError; `layout` refuses sizes."""
        if self.backing not in (known := [one.value for one in Backing]):
            raise UsageError(
                f"a guest's memory cannot be backed by {self.backing}",
                f"known are {', '.join(known)}",
                "change --backing",
            )
        if self.backing == Backing.HUGETLB.value and self.memory_bytes % GRANULE_BYTES:
            raise UsageError(
                f"{self.memory_bytes} bytes of memory cannot be backed by hugetlb",
                "it is made of whole pages of 2 MiB",
                "change --memory",
            )
        if self.rate is not None and self.rate < MIN_RATE_PER_S:
            raise UsageError(
                f"a guest cannot do {self.rate} transactions per second", "that is no rate", "change --rate"
            )

    def layout(self) -> Layout:
        """Divide the memory; raises UsageError where that is impossible."""
        return Layout(self.memory_bytes, self.resident_bytes, self.working_set_bytes, self.vcpus, self.seed)

    def interval_ns(self, workloads_own_ns: int) -> int:
        """Give each vCPU's time from one transaction to the next; 0: as fast as it can."""
        return workloads_own_ns if self.rate is None else max(1, round(1e9 * self.vcpus / self.rate))

    def as_message(self) -> dict[str, Any]:
        """Give plain values that msgpack carries; `of_message` takes them back."""
        return asdict(self)

    @classmethod
    def of_message(cls, message: dict[str, Any]) -> GuestConfig:
        """Make a config of `as_message`'s result; TypeError for a field that is not one."""
        known = {field.name for field in fields(cls)}
        if extra := message.keys() - known:
            raise TypeError(f"unknown fields: {', '.join(sorted(extra))}")
        for field in ("cpus", "user_workloads"):
            if message.get(field) is not None:
                message = message | {field: tuple(message[field])}
        return cls(**message)
