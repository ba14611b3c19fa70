"""sqlite: a real SQLite whose database is guest memory, under a load after TPC-C; see the package `sqlite`.

Each vCPU is a client with a connection of its own. All write one database, so its pages follow from how they came in between each
other: with several vCPUs no two guests are equal byte for byte, and the replay proof cannot hold of it. What must hold is said by
the audit at every pause. (Of one vCPU the contents of all tables are the same again; the bytes are not, because SQLite salts its
log at random.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload import fill
from pagefire.guest_workload.layout import PAGE_WORDS, Layout
from pagefire.guest_workload.sqlite import audit, tables, transactions
from pagefire.guest_workload.sqlite.connection import parameters_for
from pagefire.guest_workload.sqlite.file_system import Mount
from pagefire.guest_workload.sqlite.place import Place
from pagefire.guest_workload.workload import Bytes, Check, Words, Workload


class Sqlite(Workload):
    name = "sqlite"
    description = (
        "a wholesaler after TPC-C in a SQLite database; its integrity and its books are checked wherever it stops"
    )
    deterministic = False
    serves_clients = True
    step = transactions.step
    #: Two clients that ask 500 times a second keep a connection a tenth busy: what waits then waits for the migration.
    interval_ns = 2_000_000

    def require(self, layout: Layout) -> None:
        Place.within(layout)

    def attach(self, memory: Bytes, layout: Layout) -> None:
        self.mount = Mount(int(memory.ctypes.data), Place.within(layout))
        self._texts: list[object] = []

    def parameters(self, layout: Layout, vcpu: int) -> npt.NDArray[np.int64]:
        sizes = tables.Sizes.within(self.mount.place, layout.vcpus)
        load = (vcpu, sizes.warehouses, sizes.kept_orders, sizes.kept_payments)
        parameters, texts = parameters_for(self.mount, transactions.STATEMENTS, load)
        self._texts.append(texts)
        return parameters

    def fill(self, memory: Bytes, layout: Layout, vcpu: int, seed: int) -> None:
        first, end = (pages * PAGE_WORDS for pages in (layout.working_set_pages, layout.resident_pages))
        first_page = vcpu * layout.partition_bytes // (PAGE_WORDS * 8) + layout.working_set_pages
        fill.fill_pages(layout.partition(memory, vcpu)[first:end], np.uint64(seed), np.uint64(first_page))
        if vcpu == 0:
            tables.create(self.mount, layout.vcpus, seed)

    def check(self, memory: Bytes, layout: Layout, registers: Words) -> Check:
        return audit.audit(self.mount, layout.vcpus, registers)
