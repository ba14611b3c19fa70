"""Where the database lies in guest memory: four parts of one stretch of bytes that is put together from the vCPUs' working sets.

    control page | index of the log | log | database

Layout gives each vCPU a working set of its own; a database belongs to all. So byte `at` of the stretch lies in working set
`at // piece_bytes`. The index is never cut in two, because SQLite takes its address: it lies within the first piece. The control
page holds what a file system knows of its files, their sizes; it travels as the rest does.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagefire.guest_workload.layout import Layout
from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import PAGE_BYTES

#: SQLite asks for its log's index by regions of this size; the first tells of 4062 frames, every other one of 4096.
REGION_BYTES = 32_768
FRAMES_PER_REGION = 4_062
#: A page and its header in the log.
FRAME_BYTES = PAGE_BYTES + 24
#: Words of the control page.
AT_DATABASE_BYTES, AT_LOG_BYTES, AT_LOG_EXISTS, AT_INDEX_REGIONS = 0, 8, 16, 24

_LEAST_BYTES = 7 << 20
#: A fourth of the least is 127 pages: more than any transaction writes, which may begin when three fourths are used.
_LOG_LIMITS_BYTES = (2 << 20, 32 << 20)


@dataclass(frozen=True, slots=True)
class Place:
    """The parts, in bytes of the stretch; all are whole pages."""

    partition_bytes: int
    piece_bytes: int
    index_at: int
    index_regions: int
    log_at: int
    log_bytes: int
    database_at: int
    database_bytes: int

    @classmethod
    def within(cls, layout: Layout) -> Place:
        """Divide the working sets of a layout: an eighth for the log, of which a fourth is used as a rule. Raises UsageError."""
        piece_bytes = layout.working_set_pages * PAGE_BYTES
        total_bytes = piece_bytes * layout.vcpus
        least, most = _LOG_LIMITS_BYTES
        log_bytes = min(max(total_bytes // 8, least), most) // PAGE_BYTES * PAGE_BYTES
        regions = log_bytes // FRAME_BYTES // FRAMES_PER_REGION + 1
        log_at = PAGE_BYTES + regions * REGION_BYTES
        if total_bytes < _LEAST_BYTES or piece_bytes < log_at:
            raise UsageError(
                f"a database cannot lie in a working set of {layout.working_set_bytes} bytes of {layout.vcpus} vCPUs",
                f"it takes {_LEAST_BYTES >> 20} MiB, and {log_at >> 10} KiB of each vCPU",
                "raise --working-set or lower --vcpus",
            )
        database_at = log_at + log_bytes
        return cls(
            partition_bytes=layout.partition_bytes,
            piece_bytes=piece_bytes,
            index_at=PAGE_BYTES,
            index_regions=regions,
            log_at=log_at,
            log_bytes=log_bytes,
            database_at=database_at,
            database_bytes=total_bytes - database_at,
        )

    @property
    def database_pages(self) -> int:
        """How many pages the database may have."""
        return self.database_bytes // PAGE_BYTES
