"""What a new database holds: a wholesaler after TPC-C, as large as the room that the guest has for it.

Warehouses have ten districts with customers, and a stock of every item. Keys are integers that say where something belongs:
district = 10 * warehouse + 0..9, customer = district * customers + 0.., stock = warehouse * items + item, order = district << 40 |
its number there, order line = order << 4 | 1.., payment = vCPU << 40 | its number. Money is in cents.

Orders and payments come and go: each vCPU keeps its newest ones, and a new one takes the place of its oldest, which is counted in
`archived`. So a database that fills its room to two thirds at first has enough of it for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apsw
import numpy as np

from pagefire.guest_workload.sqlite import file_system
from pagefire.guest_workload.sqlite.file_system import Mount
from pagefire.guest_workload.sqlite.place import Place

DISTRICTS = 10
ITEMS = 1_000
CUSTOMERS_PER_DISTRICT = 60
ORDER_SHIFT, LINE_SHIFT, PAYMENT_SHIFT = 40, 4, 40
_STOCK_TEXT_BYTES, _CUSTOMER_TEXT_BYTES = 220, 400

#: What one warehouse takes with its stock and customers, and what an order takes with its lines, its entry in the index and the
#: holes that deletions leave: measured, rounded up.
_WAREHOUSE_BYTES = 530_000
_ORDER_BYTES = 400
_PAYMENT_BYTES = 32
_TABLE_SHARE, _ORDER_SHARE, _PAYMENT_SHARE = 0.6, 0.25, 0.03

SCHEMA = """
CREATE TABLE warehouse(warehouse INTEGER PRIMARY KEY, ytd INTEGER NOT NULL);
CREATE TABLE district(district INTEGER PRIMARY KEY, next_order INTEGER NOT NULL, archived INTEGER NOT NULL, ytd INTEGER NOT NULL);
CREATE TABLE customer(customer INTEGER PRIMARY KEY, balance INTEGER NOT NULL, paid INTEGER NOT NULL, payments INTEGER NOT NULL,
  orders INTEGER NOT NULL, last_order INTEGER NOT NULL, text BLOB NOT NULL);
CREATE TABLE item(item INTEGER PRIMARY KEY, price INTEGER NOT NULL);
CREATE TABLE stock(stock INTEGER PRIMARY KEY, quantity INTEGER NOT NULL, ytd INTEGER NOT NULL, orders INTEGER NOT NULL,
  text BLOB NOT NULL);
CREATE TABLE orders(order_key INTEGER PRIMARY KEY, customer INTEGER NOT NULL, vcpu INTEGER NOT NULL, number INTEGER NOT NULL,
  sequence INTEGER NOT NULL, lines INTEGER NOT NULL, total INTEGER NOT NULL);
CREATE INDEX orders_by_vcpu ON orders(vcpu, number);
CREATE TABLE order_line(line_key INTEGER PRIMARY KEY, item INTEGER NOT NULL, quantity INTEGER NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE payment(payment_key INTEGER PRIMARY KEY, customer INTEGER NOT NULL, sequence INTEGER NOT NULL,
  amount INTEGER NOT NULL);
CREATE TABLE vcpu(vcpu INTEGER PRIMARY KEY, orders INTEGER NOT NULL, ordered INTEGER NOT NULL, payments INTEGER NOT NULL,
  paid INTEGER NOT NULL, archived INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of what there is. `kept_orders` and `kept_payments` are of each vCPU."""

    warehouses: int
    kept_orders: int
    kept_payments: int

    @classmethod
    def within(cls, place: Place, vcpus: int) -> Sizes:
        """Choose them for the room that the database has."""
        room_bytes = place.database_bytes
        return cls(
            warehouses=max(1, int(room_bytes * _TABLE_SHARE) // _WAREHOUSE_BYTES),
            kept_orders=max(8, int(room_bytes * _ORDER_SHARE) // _ORDER_BYTES // vcpus),
            kept_payments=max(8, int(room_bytes * _PAYMENT_SHARE) // _PAYMENT_BYTES // vcpus),
        )


def create(mount: Mount, vcpus: int, seed: int) -> None:
    """Make the database in memory that is zero where it is to lie; the same for the same seed."""
    sizes, random = Sizes.within(mount.place, vcpus), np.random.default_rng(seed)
    connection = apsw.Connection(file_system.NAME.decode(), vfs=mount.vfs_name)
    try:
        # There is nobody who could need it before it is whole: no journal.
        for setting in ("page_size = 4096", "journal_mode = OFF", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute(f"PRAGMA max_page_count = {mount.place.database_pages}")
        districts = sizes.warehouses * DISTRICTS
        with connection:
            connection.execute(SCHEMA)
            _insert(connection, "warehouse", 2, ((warehouse, 0) for warehouse in range(sizes.warehouses)))
            _insert(connection, "district", 4, ((district, 1, 0, 0) for district in range(districts)))
            _insert(connection, "item", 2, enumerate(random.integers(100, 10_000, ITEMS).tolist()))
            _insert(connection, "customer", 7, (
                (customer, 0, 0, 0, 0, 0, text)
                for customer, text in _texts(random, districts * CUSTOMERS_PER_DISTRICT, _CUSTOMER_TEXT_BYTES)
            ))  # fmt: skip
            _insert(connection, "stock", 5, (
                (stock, 10 + stock % 91, 0, 0, text)
                for stock, text in _texts(random, sizes.warehouses * ITEMS, _STOCK_TEXT_BYTES)
            ))  # fmt: skip
            _insert(connection, "vcpu", 6, ((vcpu, 0, 0, 0, 0, 0) for vcpu in range(vcpus)))
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def _insert(connection: apsw.Connection, table: str, columns: int, rows: Iterator[tuple[object, ...]]) -> None:
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)


def _texts(random: np.random.Generator, count: int, each_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Give numbered texts that no compressor makes smaller, drawn in batches."""
    batch = 4_096
    for first in range(0, count, batch):
        drawn = random.bytes(batch * each_bytes)
        for number in range(first, min(first + batch, count)):
            at = (number - first) * each_bytes
            yield number, drawn[at : at + each_bytes]
