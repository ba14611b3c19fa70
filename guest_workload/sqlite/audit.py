"""What must hold of the database of a parked guest: its own integrity, its books, and what clients were told.

Runs in the guest's process on a connection of its own, beside those of the vCPUs, which stand between two transactions. Reads only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import apsw
import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.sqlite import file_system
from pagefire.guest_workload.sqlite import transactions as load
from pagefire.guest_workload.sqlite.file_system import Mount
from pagefire.guest_workload.sqlite.tables import CUSTOMERS_PER_DISTRICT, DISTRICTS, LINE_SHIFT, ORDER_SHIFT, Sizes
from pagefire.guest_workload.workload import Check

INVARIANT = (
    "PRAGMA integrity_check; every order that a client was told of is there once, with its lines; "
    "payments add up to what warehouses, districts and customers say"
)
_MOST_ERRORS = 20
_SUMS_OF_PAYMENTS = {
    "the warehouses": "SELECT coalesce(sum(ytd), 0) FROM warehouse",
    "the districts": "SELECT coalesce(sum(ytd), 0) FROM district",
    "the customers": "SELECT coalesce(sum(paid), 0) FROM customer",
    "the payments, kept and archived": "SELECT (SELECT coalesce(sum(amount), 0) FROM payment) + (SELECT sum(archived) FROM vcpu)",
    "the vCPUs": "SELECT sum(paid) FROM vcpu",
}
_OF_ITS_LINES = (
    f"(SELECT {{}} FROM order_line WHERE line_key BETWEEN order_key << {LINE_SHIFT} "
    f"AND (order_key << {LINE_SHIFT}) + {(1 << LINE_SHIFT) - 1})"
)
#: What must give no row, each with what it is about.
_CONTRADICTIONS = {
    "a warehouse was not paid what its districts were": f"""
        SELECT w.warehouse, w.ytd, d.ytd FROM warehouse w
        JOIN (SELECT district / {DISTRICTS} AS warehouse, sum(ytd) AS ytd FROM district GROUP BY 1) d USING (warehouse)
        WHERE w.ytd <> d.ytd""",
    "a district counts other orders than it has": f"""
        SELECT * FROM (
            SELECT district, next_order - 1 AS all_orders, archived, (
                SELECT count(*) FROM orders
                WHERE order_key BETWEEN district << {ORDER_SHIFT} AND (district + 1 << {ORDER_SHIFT}) - 1
            ) AS there FROM district
        ) WHERE all_orders <> archived + there""",
    "an order does not agree with its lines": f"""
        SELECT * FROM (
            SELECT order_key, lines, total, {_OF_ITS_LINES.format("count(*)")} AS has,
                {_OF_ITS_LINES.format("sum(amount)")} AS costs
            FROM orders
        ) WHERE lines IS NOT has OR total IS NOT costs""",
    "there are lines without an order": """
        SELECT * FROM (SELECT (SELECT count(*) FROM order_line) AS has, (SELECT coalesce(sum(lines), 0) FROM orders) AS told)
        WHERE has <> told""",
    "an order of a customer of another district": f"""
        SELECT order_key, customer FROM orders WHERE customer / {CUSTOMERS_PER_DISTRICT} <> order_key >> {ORDER_SHIFT}""",
}


@dataclass
class _Findings:
    problems: list[str] = field(default_factory=list)
    orders_lost: int = 0
    orders_repeated: int = 0
    integrity_errors: int = 0


def audit(mount: Mount, vcpus: int, registers: npt.NDArray[np.uint64]) -> Check:
    """Look for all that should not be; `registers` is [vcpus, 16], what the clients were told."""
    found = _Findings()
    connection = apsw.Connection(file_system.NAME.decode(), vfs=mount.vfs_name)
    try:
        connection.execute("PRAGMA temp_store = MEMORY")
        # One state for all that is compared. The connections of the vCPUs are open: this one's end empties no log.
        with connection:
            committed = _look(connection, mount, vcpus, registers.astype(np.int64), found)
    except apsw.Error as error:
        found.problems.append(f"the database cannot be read: {type(error).__name__}: {error}")
        committed = 0
    finally:
        connection.close()
    told = registers.sum(axis=0, dtype=np.uint64).tolist()
    counted = {
        "orders": told[load.ORDERS],
        "payments": told[load.PAYMENTS],
        "looks_at_orders": told[load.LOOKS],
        "failed": told[load.FAILED],
        "orders_lost": found.orders_lost,
        "orders_repeated": found.orders_repeated,
        "integrity_errors": found.integrity_errors,
        "database_bytes": mount.size_bytes(),
    }
    return Check(INVARIANT, committed, tuple(found.problems), counted)


def _look(connection: apsw.Connection, mount: Mount, vcpus: int, told: npt.NDArray[np.int64], found: _Findings) -> int:
    """Fill in what was found; gives how many transactions the database and the vCPUs' memory know to be committed."""
    errors = [str(one) for (one,) in connection.execute(f"PRAGMA integrity_check({_MOST_ERRORS})") if one != "ok"]
    found.integrity_errors = len(errors)
    found.problems += [f"integrity_check: {one}" for one in errors]
    for about, query in _CONTRADICTIONS.items():
        rows = list(connection.execute(f"{query} LIMIT {_MOST_ERRORS}"))
        found.problems += [f"{about}: {', '.join(map(str, one))}" for one in rows]
    paid = int(told[:, load.PAID].sum())
    for whose, query in _SUMS_OF_PAYMENTS.items():
        if (total := _number(connection, query)) != paid:
            found.problems.append(f"{whose} add up to {total} paid, clients were told of {paid}")
    kept = Sizes.within(mount.place, vcpus)
    committed = 0
    for vcpu in range(vcpus):
        committed += _look_at_vcpu(connection, vcpu, told[vcpu], kept, found)
    return committed


def _look_at_vcpu(
    connection: apsw.Connection, vcpu: int, told: npt.NDArray[np.int64], kept: Sizes, found: _Findings
) -> int:
    """Compare what one vCPU's client was told with what the database has of it."""
    orders, payments = int(told[load.ORDERS]), int(told[load.PAYMENTS])
    row = connection.execute("SELECT orders, ordered, payments FROM vcpu WHERE vcpu = ?", (vcpu,)).fetchone()
    has_orders, ordered, has_payments = (int(one) for one in row) if row else (0, 0, 0)
    if ordered != int(told[load.ORDERED]):
        found.problems.append(f"vCPU {vcpu}: orders over {ordered}, its client was told of {int(told[load.ORDERED])}")
    if has_payments != payments:
        found.problems.append(f"vCPU {vcpu}: {has_payments} payments, its client was told of {payments}")
    if told[load.FAILED]:
        found.problems.append(
            f"vCPU {vcpu}: {int(told[load.FAILED])} transactions failed, the last with SQLite error {int(told[load.LAST_ERROR])}"
        )
    if told[load.TORN]:
        found.problems.append(
            f"vCPU {vcpu}: {int(told[load.TORN])} orders were seen that did not agree with their lines"
        )
    query = "SELECT number, sequence FROM orders WHERE vcpu = ? ORDER BY number, sequence"
    rows = [(int(number), int(sequence)) for number, sequence in connection.execute(query, (vcpu,))]
    expected = range(max(1, orders - kept.kept_orders + 1), orders + 1)
    there = Counter(number for number, _ in rows)
    lost = [number for number in expected if number not in there]
    repeated = sum(there.values()) - sum(number in there for number in expected)
    if lost:
        found.problems.append(
            f"vCPU {vcpu}: {len(lost)} orders are missing, the first is its order {lost[0]} of {orders}"
        )
    if repeated:
        found.problems.append(f"vCPU {vcpu}: {repeated} orders are there that should not be, or not once more")
    if has_orders != orders:
        found.problems.append(f"vCPU {vcpu}: {has_orders} orders, its client was told of {orders}")
    # Those that are kept are looked at one by one; of all others the count is known.
    found.orders_lost += max(len(lost), orders - has_orders)
    found.orders_repeated += max(repeated, has_orders - orders)
    sequences = [sequence for _, sequence in rows]
    if sequences != sorted(set(sequences)) or (sequences and sequences[-1] > int(told[0])):
        found.problems.append(f"vCPU {vcpu}: its orders do not carry the numbers of its transactions, in order")
    return has_orders + has_payments + int(told[load.LOOKS]) + int(told[load.FAILED])


def _number(connection: apsw.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
