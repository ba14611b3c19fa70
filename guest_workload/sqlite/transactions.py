"""The load: new orders, payments and looks at an order, in the shares that TPC-C has of them, 45 to 43 to 4.

A transaction draws what it asks for from its own vCPU's random numbers, so that this follows from the seed, whatever
the other vCPUs do. Registers say what its client was told: they count a transaction when its COMMIT has returned, and the audit
compares them with what the database holds. An order carries its vCPU, its number among that vCPU's orders, and the number of the
transaction. One that fails is rolled back and counted as failed; it is not tried again.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from pagefire.guest_workload import fill
from pagefire.guest_workload.sqlite.connection import (
    CONNECTION,
    ERROR,
    LOAD,
    MOUNT,
    bind,
    bound_log,
    column,
    connect,
    finish,
    one_number,
    row,
    run,
)
from pagefire.guest_workload.sqlite.locks import join_writers, leave_writers
from pagefire.guest_workload.sqlite.tables import (
    CUSTOMERS_PER_DISTRICT,
    DISTRICTS,
    ITEMS,
    LINE_SHIFT,
    ORDER_SHIFT,
    PAYMENT_SHIFT,
)
from pagefire.guest_workload.workload import transaction

#: Registers, beside the two of every workload. `TORN` counts orders whose lines did not agree with them when they were looked at.
ORDERS, PAYMENTS, LOOKS, ORDERED, PAID, FAILED, LAST_ERROR, TORN = range(2, 10)
#: Numbers of the load, among the parameters.
VCPU, WAREHOUSES, KEPT_ORDERS, KEPT_PAYMENTS = range(LOAD, LOAD + 4)

STATEMENTS = (
    "BEGIN IMMEDIATE",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SELECT next_order FROM district WHERE district = ?1",
    "UPDATE district SET next_order = next_order + 1 WHERE district = ?1",
    "SELECT price FROM item WHERE item = ?1",
    "UPDATE stock SET quantity = quantity - ?2 + CASE WHEN quantity >= ?2 + 10 THEN 0 ELSE 91 END, ytd = ytd + ?2, "
    "orders = orders + 1 WHERE stock = ?1",
    "INSERT INTO orders VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    "INSERT INTO order_line VALUES (?1, ?2, ?3, ?4)",
    "UPDATE customer SET orders = orders + 1, last_order = ?2 WHERE customer = ?1",
    "UPDATE vcpu SET orders = orders + 1, ordered = ordered + ?2 WHERE vcpu = ?1",
    "SELECT order_key FROM orders WHERE vcpu = ?1 AND number = ?2",
    "DELETE FROM order_line WHERE line_key BETWEEN ?1 AND ?2",
    "DELETE FROM orders WHERE order_key = ?1",
    "UPDATE district SET archived = archived + 1 WHERE district = ?1",
    "UPDATE warehouse SET ytd = ytd + ?2 WHERE warehouse = ?1",
    "UPDATE district SET ytd = ytd + ?2 WHERE district = ?1",
    "UPDATE customer SET balance = balance - ?2, paid = paid + ?2, payments = payments + 1 WHERE customer = ?1",
    "INSERT INTO payment VALUES (?1, ?2, ?3, ?4)",
    "SELECT amount FROM payment WHERE payment_key = ?1",
    "DELETE FROM payment WHERE payment_key = ?1",
    "UPDATE vcpu SET payments = payments + 1, paid = paid + ?2, archived = archived + ?3 WHERE vcpu = ?1",
    "SELECT last_order FROM customer WHERE customer = ?1",
    "SELECT lines, total FROM orders WHERE order_key = ?1",
    "SELECT count(*), coalesce(sum(amount), 0) FROM order_line WHERE line_key BETWEEN ?1 AND ?2",
)
(
    _BEGIN_WRITING, _BEGIN_READING, _COMMIT, _ROLLBACK, _NEXT_ORDER, _COUNT_ORDER, _PRICE, _TAKE_STOCK, _INSERT_ORDER,
    _INSERT_LINE, _CUSTOMER_ORDERS, _VCPU_ORDERS, _OLD_ORDER, _DELETE_LINES, _DELETE_ORDER, _ARCHIVE_ORDER, _WAREHOUSE_IS_PAID,
    _DISTRICT_IS_PAID, _CUSTOMER_PAYS, _INSERT_PAYMENT, _OLD_PAYMENT, _DELETE_PAYMENT, _VCPU_IS_PAID, _LAST_ORDER, _ORDER,
    _LINES,
) = range(len(STATEMENTS))  # fmt: skip

_LAST_LINE = (1 << LINE_SHIFT) - 1
_OF_92, _NEW_ORDERS, _AND_PAYMENTS = np.uint64(92), np.uint64(45), np.uint64(45 + 43)
_1 = np.uint64(1)
_WORDS, _PARAMETERS = types.Array(types.uint64, 1, "C"), types.Array(types.int64, 1, "C")
_OUTCOME = types.boolean(_PARAMETERS, _WORDS)


@njit(types.int64(_WORDS, types.int64), nogil=True, cache=True)
def _draw_below(registers, bound):  # type: ignore[no-untyped-def]
    return np.int64(fill.below(fill.draw(registers), np.uint64(bound)))


@njit(types.boolean(_PARAMETERS), nogil=True, cache=True)
def _commit(parameters):  # type: ignore[no-untyped-def]
    """End the transaction; False, and nothing of it happened, when there was an error in it."""
    if parameters[ERROR] == 0:
        run(parameters, _COMMIT)
    if parameters[ERROR] == 0:
        return True
    first = parameters[ERROR]
    run(parameters, _ROLLBACK)
    parameters[ERROR] = first
    return False


@njit(types.void(_PARAMETERS, types.int64), nogil=True, cache=True)
def _archive_order(parameters, number):  # type: ignore[no-untyped-def]
    """Remove the vCPU's order of that number with its lines."""
    bind(parameters, _OLD_ORDER, 1, parameters[VCPU])
    bind(parameters, _OLD_ORDER, 2, number)
    order = one_number(parameters, _OLD_ORDER)
    bind(parameters, _DELETE_LINES, 1, order << LINE_SHIFT)
    bind(parameters, _DELETE_LINES, 2, order << LINE_SHIFT | _LAST_LINE)
    run(parameters, _DELETE_LINES)
    bind(parameters, _DELETE_ORDER, 1, order)
    run(parameters, _DELETE_ORDER)
    bind(parameters, _ARCHIVE_ORDER, 1, order >> ORDER_SHIFT)
    run(parameters, _ARCHIVE_ORDER)


@njit(_OUTCOME, nogil=True, cache=True)
def _new_order(parameters, registers):  # type: ignore[no-untyped-def]
    warehouse, vcpu = _draw_below(registers, parameters[WAREHOUSES]), parameters[VCPU]
    district = warehouse * DISTRICTS + _draw_below(registers, DISTRICTS)
    customer = district * CUSTOMERS_PER_DISTRICT + _draw_below(registers, CUSTOMERS_PER_DISTRICT)
    lines = 5 + _draw_below(registers, 11)
    number = np.int64(registers[ORDERS] + _1)
    run(parameters, _BEGIN_WRITING)
    if parameters[ERROR] != 0:
        return False
    bind(parameters, _NEXT_ORDER, 1, district)
    order = district << ORDER_SHIFT | one_number(parameters, _NEXT_ORDER)
    bind(parameters, _COUNT_ORDER, 1, district)
    run(parameters, _COUNT_ORDER)
    total = np.int64(0)
    for line in range(1, lines + 1):
        random = fill.draw(registers)
        item = np.int64(fill.below(random, np.uint64(ITEMS)))
        quantity = np.int64(random % np.uint64(10)) + 1
        bind(parameters, _PRICE, 1, item)
        amount = quantity * one_number(parameters, _PRICE)
        total += amount
        bind(parameters, _TAKE_STOCK, 1, warehouse * ITEMS + item)
        bind(parameters, _TAKE_STOCK, 2, quantity)
        run(parameters, _TAKE_STOCK)
        bind(parameters, _INSERT_LINE, 1, order << LINE_SHIFT | line)
        bind(parameters, _INSERT_LINE, 2, item)
        bind(parameters, _INSERT_LINE, 3, quantity)
        bind(parameters, _INSERT_LINE, 4, amount)
        run(parameters, _INSERT_LINE)
    bind(parameters, _INSERT_ORDER, 1, order)
    bind(parameters, _INSERT_ORDER, 2, customer)
    bind(parameters, _INSERT_ORDER, 3, vcpu)
    bind(parameters, _INSERT_ORDER, 4, number)
    bind(parameters, _INSERT_ORDER, 5, np.int64(registers[0] + _1))
    bind(parameters, _INSERT_ORDER, 6, lines)
    bind(parameters, _INSERT_ORDER, 7, total)
    run(parameters, _INSERT_ORDER)
    bind(parameters, _CUSTOMER_ORDERS, 1, customer)
    bind(parameters, _CUSTOMER_ORDERS, 2, order)
    run(parameters, _CUSTOMER_ORDERS)
    bind(parameters, _VCPU_ORDERS, 1, vcpu)
    bind(parameters, _VCPU_ORDERS, 2, total)
    run(parameters, _VCPU_ORDERS)
    if number > parameters[KEPT_ORDERS]:
        _archive_order(parameters, number - parameters[KEPT_ORDERS])
    if not _commit(parameters):
        return False
    registers[ORDERS] = np.uint64(number)
    registers[ORDERED] += np.uint64(total)
    return True


@njit(types.void(_PARAMETERS, types.int64, types.int64, types.int64), nogil=True, cache=True)
def _add_amount(parameters, statement, key, amount):  # type: ignore[no-untyped-def]
    """Run a statement that adds an amount to one row."""
    bind(parameters, statement, 1, key)
    bind(parameters, statement, 2, amount)
    run(parameters, statement)


@njit(_OUTCOME, nogil=True, cache=True)
def _payment(parameters, registers):  # type: ignore[no-untyped-def]
    warehouse, vcpu = _draw_below(registers, parameters[WAREHOUSES]), parameters[VCPU]
    district = warehouse * DISTRICTS + _draw_below(registers, DISTRICTS)
    customer = district * CUSTOMERS_PER_DISTRICT + _draw_below(registers, CUSTOMERS_PER_DISTRICT)
    amount = 100 + _draw_below(registers, 500_000)
    number = np.int64(registers[PAYMENTS] + _1)
    run(parameters, _BEGIN_WRITING)
    if parameters[ERROR] != 0:
        return False
    _add_amount(parameters, _WAREHOUSE_IS_PAID, warehouse, amount)
    _add_amount(parameters, _DISTRICT_IS_PAID, district, amount)
    _add_amount(parameters, _CUSTOMER_PAYS, customer, amount)
    key = vcpu << PAYMENT_SHIFT | number
    bind(parameters, _INSERT_PAYMENT, 1, key)
    bind(parameters, _INSERT_PAYMENT, 2, customer)
    bind(parameters, _INSERT_PAYMENT, 3, np.int64(registers[0] + _1))
    bind(parameters, _INSERT_PAYMENT, 4, amount)
    run(parameters, _INSERT_PAYMENT)
    archived = np.int64(0)
    if number > parameters[KEPT_PAYMENTS]:
        old = key - parameters[KEPT_PAYMENTS]
        bind(parameters, _OLD_PAYMENT, 1, old)
        archived = one_number(parameters, _OLD_PAYMENT)
        bind(parameters, _DELETE_PAYMENT, 1, old)
        run(parameters, _DELETE_PAYMENT)
    bind(parameters, _VCPU_IS_PAID, 1, vcpu)
    bind(parameters, _VCPU_IS_PAID, 2, amount)
    bind(parameters, _VCPU_IS_PAID, 3, archived)
    run(parameters, _VCPU_IS_PAID)
    if not _commit(parameters):
        return False
    registers[PAYMENTS] = np.uint64(number)
    registers[PAID] += np.uint64(amount)
    return True


@njit(_OUTCOME, nogil=True, cache=True)
def _look_at_order(parameters, registers):  # type: ignore[no-untyped-def]
    """Read a customer's last order with its lines, which must agree: what is read is one state of the database."""
    customers = parameters[WAREHOUSES] * DISTRICTS * CUSTOMERS_PER_DISTRICT
    customer = _draw_below(registers, customers)
    run(parameters, _BEGIN_READING)
    bind(parameters, _LAST_ORDER, 1, customer)
    order = one_number(parameters, _LAST_ORDER)
    bind(parameters, _ORDER, 1, order)
    lines, total = np.int64(-1), np.int64(0)
    if row(parameters, _ORDER):
        lines, total = column(parameters, _ORDER, 0), column(parameters, _ORDER, 1)
    finish(parameters, _ORDER)
    if lines >= 0:  # else it has none yet, or it is archived
        bind(parameters, _LINES, 1, order << LINE_SHIFT)
        bind(parameters, _LINES, 2, order << LINE_SHIFT | _LAST_LINE)
        agrees = row(parameters, _LINES) and column(parameters, _LINES, 0) == lines
        if not agrees or column(parameters, _LINES, 1) != total:
            registers[TORN] += _1
        finish(parameters, _LINES)
    if not _commit(parameters):
        return False
    registers[LOOKS] += _1
    return True


@transaction
def step(memory, registers, parameters):  # type: ignore[no-untyped-def]
    """Do one transaction; the first one on a host opens the connection."""
    kind = fill.draw(registers) % _OF_92
    parameters[ERROR] = 0
    committed = False
    if parameters[CONNECTION] == 0:
        connect(parameters)
    if parameters[ERROR] == 0:
        if kind < _AND_PAYMENTS:
            mount = np.uint64(parameters[MOUNT])
            join_writers(mount)
            if kind < _NEW_ORDERS:  # noqa: SIM108 (Numba)
                committed = _new_order(parameters, registers)
            else:
                committed = _payment(parameters, registers)
            bound_log(parameters)
            leave_writers(mount)
        else:
            committed = _look_at_order(parameters, registers)
    if not committed:
        registers[FAILED] += _1
        registers[LAST_ERROR] = np.uint64(parameters[ERROR])
