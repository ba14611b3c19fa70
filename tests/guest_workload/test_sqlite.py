"""A SQLite database in guest memory: what it holds after any pause or move, what its audit finds, and that it needs no GIL."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import apsw
import numpy as np
import pytest

from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.userfaultfd import Mode
from pagefire.guest_workload.sqlite import file_system, functions, tables, transactions
from pagefire.guest_workload.sqlite.place import REGION_BYTES, Place
from pagefire.guest_workload.workloads.sqlite import Sqlite
from pagefire.protocol.errors import UsageError
from pagefire.protocol.pages import PAGE_BYTES
from tests.guest_workload.conftest import MachineMaker
from tests.guest_workload.machine import Machine
from tests.support.kernel import need_userfaultfd

make_guest = functools.partial(dict, resident_mib=12, working_set_kib=8 << 10)


@pytest.fixture
def guest(machine: MachineMaker) -> Machine:
    return machine("sqlite", 2, **make_guest())


def place_of(guest: Machine) -> Place:
    return Place.within(guest.layout)


@contextlib.contextmanager
def database(guest: Machine) -> Iterator[apsw.Connection]:
    """Connect to a parked guest's database, as the audit does; closed before its memory is unmapped."""
    assert isinstance(guest.workload, Sqlite)
    with contextlib.closing(
        apsw.Connection(file_system.NAME.decode(), vfs=guest.workload.mount.vfs_name)
    ) as connection:
        yield connection


def contents(guest: Machine) -> dict[str, list[Any]]:
    with database(guest) as connection:
        names = ("warehouse", "district", "customer", "stock", "orders", "order_line", "payment", "vcpu")
        return {name: list(connection.execute(f"SELECT * FROM {name}")) for name in names}


def test_the_table_of_functions_is_the_one_that_is_documented() -> None:
    table = functions.table_address()
    # What has no symbol to compare with is tried: each of these would crash or answer otherwise at another position.
    find = functions.function(table, functions.VFS_FIND, ctypes.c_void_p, ctypes.c_char_p)
    assert find(b"no such file system") is None
    assert find(None) == functions.default_file_system()
    assert functions.function(table, functions.LIBVERSION_NUMBER, ctypes.c_int)() == apsw.SQLITE_VERSION_NUMBER


def test_transactions_of_all_kinds_are_committed(guest: Machine) -> None:
    guest.run_to(400)
    check = guest.check()
    assert check.problems == ()
    assert check.committed == 800
    kinds = [check.counted[name] for name in ("orders", "payments", "looks_at_orders")]
    assert sum(kinds) == 800
    assert min(kinds[:2]) > 3 * kinds[2] > 0
    assert (check.counted["failed"], check.counted["orders_lost"], check.counted["orders_repeated"]) == (0, 0, 0)


@pytest.mark.parametrize("vcpus", [1, 2, 5])
def test_pauses_and_moves_lose_nothing(machine: MachineMaker, vcpus: int) -> None:
    guest, pauses = machine("sqlite", vcpus, **make_guest()), random.Random(vcpus)
    for _ in range(4):
        guest.run_for(pauses.random() * 0.03)
        assert guest.check().problems == ()
        guest = machine("sqlite", vcpus, other=guest, **make_guest())
    done = int(guest.control.registers[:, 0].sum())
    guest.run_for(0.05)
    assert guest.check().problems == ()
    assert guest.check().committed == int(guest.control.registers[:, 0].sum()) > done


def test_with_one_connection_the_same_rows_come_of_it_wherever_it_ran(machine: MachineMaker) -> None:
    """Byte for byte they are not equal: SQLite salts its log at random, and where its pages lie follows from its checkpoints."""
    undisturbed = machine("sqlite", 1, **make_guest())
    undisturbed.run_to(600)
    moved = machine("sqlite", 1, **make_guest())
    moved.run_to(200)
    moved = machine("sqlite", 1, other=moved, **make_guest())
    moved.run_to(600)
    assert contents(moved) == contents(undisturbed)
    assert moved.control.checkpoint_registers() == undisturbed.control.checkpoint_registers()
    assert contents(machine("sqlite", 1, seed=2, **make_guest())) != contents(machine("sqlite", 1, **make_guest()))


def test_old_orders_make_room_and_the_log_stays_within_its_own(guest: Machine) -> None:
    place = place_of(guest)
    kept = tables.Sizes.within(place, 2)
    guest.run_to(8 * kept.kept_orders)
    check = guest.check()
    assert check.problems == ()
    assert check.counted["orders"] > 4 * kept.kept_orders
    assert check.counted["database_bytes"] <= place.database_bytes
    sizes = guest.memory.array[:16].view(np.uint64)
    assert 0 < int(sizes[1]) <= place.log_bytes
    with database(guest) as connection:
        rows = connection.execute("SELECT vcpu, count(*) FROM orders GROUP BY vcpu").fetchall()
    assert rows == [(0, kept.kept_orders), (1, kept.kept_orders)]


@pytest.mark.parametrize(
    ("damage", "found", "lost", "repeated"),
    [
        ("DELETE FROM orders WHERE vcpu = 1 AND number = 7", "its order 7 of", 1, 0),
        (
            "INSERT INTO orders SELECT order_key + (1 << 30), customer, vcpu, number, sequence, lines, total FROM orders "
            "WHERE vcpu = 0 AND number = 3",
            "there that should not be", 0, 1,
        ),
        ("DELETE FROM order_line WHERE rowid = (SELECT min(rowid) FROM order_line)", "does not agree with its lines", 0, 0),
        ("UPDATE warehouse SET ytd = ytd + 1 WHERE warehouse = 0", "the warehouses add up to", 0, 0),
        ("UPDATE vcpu SET payments = payments - 1 WHERE vcpu = 1", "payments, its client was told of", 0, 0),
        ("UPDATE orders SET sequence = 1 WHERE vcpu = 1 AND number = 9", "in order", 0, 0),
    ],
)  # fmt: skip
def test_the_audit_finds(guest: Machine, damage: str, found: str, lost: int, repeated: int) -> None:
    guest.run_to(100)
    assert guest.check().problems == ()
    with database(guest) as connection:
        connection.execute(damage)
        assert connection.changes() == 1
    check = guest.check()
    assert any(found in problem for problem in check.problems), check.problems
    assert (check.counted["orders_lost"], check.counted["orders_repeated"]) == (lost, repeated)


def test_an_order_that_only_its_client_knows_is_lost(guest: Machine) -> None:
    guest.run_to(100)
    guest.control.registers[0, transactions.ORDERS] += 1
    check = guest.check()
    assert check.counted["orders_lost"] == 1
    assert check.committed < 200 + 1


def test_stale_pages_are_found(guest: Machine) -> None:
    """What a migration that loses a page would leave: each page of the database as it was some transactions before."""
    place = place_of(guest)
    guest.run_to(50)
    before = guest.memory.array.copy()
    guest.run_to(2000)
    with database(guest) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    pages = np.flatnonzero((guest.memory.array != before).reshape(-1, PAGE_BYTES).any(axis=1))
    in_first_piece = pages[(pages >= place.database_at // PAGE_BYTES) & (pages < place.piece_bytes // PAGE_BYTES)]
    stale = random.Random(5).sample(in_first_piece.tolist(), 20)
    guest.memory.array.reshape(-1, PAGE_BYTES)[stale] = before.reshape(-1, PAGE_BYTES)[stale]
    assert guest.check().problems


def test_each_vcpus_client_is_timed(guest: Machine) -> None:
    guest.control.interval_ns = 1_000_000
    began_ns = time.monotonic_ns()
    guest.run_for(0.3)
    for vcpu in range(2):
        times = guest.control.times_ns(vcpu, began_ns, time.monotonic_ns())
        assert len(times) == int(guest.control.registers[vcpu, 0])
        assert (np.diff(times[:, 0].astype(np.int64)) > 0).all()
        assert 0 < int(times[:, 1].max()) < 300_000_000


@pytest.mark.kernel
def test_who_waits_for_a_page_holds_no_gil(machine: MachineMaker, registered: Any) -> None:
    """The thread that serves the faults is one of Python's, of the same process: held up once, it would wait for ever."""
    first = machine("sqlite", 2, **make_guest())
    first.run_to(100)
    second = machine("sqlite", 2, other=first, **make_guest())
    served = registered(second)
    second.run_to(300)
    assert served() > 50
    check = second.check()
    assert (check.problems, check.committed) == ((), 600)


@pytest.fixture
def registered() -> Iterator[Any]:
    """Make a guest's pages missing to its own process, and serve its faults in a thread; gives what counts them."""
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    uffd, ended, threads = userfaultfd.open_uffd(userfaultfd.DEMAND_PAGING), threading.Event(), list[threading.Thread]()

    def register(guest: Machine) -> Any:
        mapping, count = guest.memory, [0]
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.madvise(ctypes.c_void_p(mapping.address), ctypes.c_size_t(mapping.size_bytes), 4) == 0  # DONTNEED
        userfaultfd.register(uffd, mapping.address, mapping.size_bytes, Mode.MISSING | Mode.MINOR)

        def serve() -> None:
            while not ended.is_set():
                for fault in userfaultfd.read_faults(uffd):
                    address = int(fault["address"]) // PAGE_BYTES * PAGE_BYTES
                    if userfaultfd.continue_range(uffd, address, PAGE_BYTES)[1]:
                        userfaultfd.zeropage(uffd, address, PAGE_BYTES)
                    count[0] += 1
                time.sleep(0.0002)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return lambda: count[0]

    yield register
    ended.set()
    for thread in threads:
        thread.join()
    os.close(uffd)


def test_the_parts_of_the_stretch_do_not_overlap(machine: MachineMaker) -> None:
    for vcpus, working_set_kib in ((1, 8 << 10), (2, 16 << 10), (16, 48 << 10)):
        guest = machine("idle", vcpus, resident_mib=48, working_set_kib=working_set_kib)
        place = place_of(guest)
        assert place.index_at + place.index_regions * REGION_BYTES == place.log_at <= place.piece_bytes
        assert place.log_at + place.log_bytes == place.database_at
        assert place.database_at + place.database_bytes == place.piece_bytes * vcpus <= working_set_kib << 10


@pytest.mark.parametrize(("vcpus", "working_set_kib"), [(1, 6 << 10), (256, 8 << 10)])
def test_too_small_a_place_is_refused(machine: MachineMaker, vcpus: int, working_set_kib: int) -> None:
    with pytest.raises(UsageError, match="--working-set"):
        machine("sqlite", vcpus, resident_mib=8, working_set_kib=working_set_kib)
