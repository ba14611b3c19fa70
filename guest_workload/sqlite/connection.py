"""One vCPU's connection to the database, used natively: opened by its first transaction on a host, then statement by statement.

The connection's address and those of its prepared statements lie in the step's parameters: they belong to this process and do not
travel. The first error of a transaction is kept there too, so that what follows needs no look after each call: statements behind a
failed one do no harm, because all of it is rolled back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit, types

from pagefire.guest_workload.atomics import load_u64
from pagefire.guest_workload.native import call
from pagefire.guest_workload.sqlite import file_system, functions, locks
from pagefire.guest_workload.sqlite.file_system import Mount
from pagefire.protocol.pages import PAGE_BYTES

#: Where the parameters hold what: the table of functions, the mount, the connection (0: none yet), the first error, the addresses
#: of the names of the database and of its file system, of what waits for locks, of the texts of `SETTINGS` and all statements, and
#: how many these are; then numbers for the load; then the statements.
TABLE, MOUNT, CONNECTION, ERROR, NAME, FILE_SYSTEM, WAITER, TEXTS, STATEMENTS, LOAD = range(10)
LOAD_NUMBERS = 15
FIRST_STATEMENT = LOAD + LOAD_NUMBERS

#: Of each connection. A checkpoint moves the log's contents into the database when it has a quarter of its room.
SETTINGS = (
    "PRAGMA temp_store = MEMORY; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096; "
    "PRAGMA wal_autocheckpoint = {}; PRAGMA max_page_count = {}"
)

_PARAMETERS = types.Array(types.int64, 1, "C")
_OK, _ROW, _DONE = np.int32(functions.OK), np.int32(functions.ROW), np.int32(functions.DONE)
_OPEN_FLAGS = np.uint64(functions.OPEN_READWRITE | functions.OPEN_NOMUTEX)
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)  # of a text, up to its end
_0, _8 = np.uint64(0), np.uint64(8)
_RESTART = np.uint64(functions.CHECKPOINT_RESTART)
_LOG_END, _LOG_ROOM = np.uint64(file_system.AT_LOG_END), np.uint64(file_system.AT_LOG_ROOM)


def parameters_for(
    mount: Mount, statements: Sequence[str], load: Sequence[int]
) -> tuple[npt.NDArray[np.int64], object]:
    """Give the parameters of one vCPU, with no connection yet, and what must live as long as they do."""
    if len(load) > LOAD_NUMBERS:
        raise ValueError(f"a load has {LOAD_NUMBERS} numbers at most")
    log_pages = mount.place.log_bytes // 4 // PAGE_BYTES
    texts = [
        ctypes.create_string_buffer(one.encode())
        for one in (
            file_system.NAME.decode(),
            mount.vfs_name,
            SETTINGS.format(log_pages, mount.place.database_pages),
            *statements,
        )
    ]
    addresses = np.array([ctypes.addressof(one) for one in texts], np.uint64)
    parameters = np.zeros(FIRST_STATEMENT + len(statements), np.int64)
    parameters[TABLE], parameters[MOUNT] = functions.table_address(), mount.address
    parameters[NAME], parameters[FILE_SYSTEM] = addresses[:2].view(np.int64)
    parameters[WAITER] = int(locks.wait_for_lock.address or 0)
    parameters[TEXTS], parameters[STATEMENTS] = addresses.ctypes.data + 16, len(statements)
    parameters[LOAD : LOAD + len(load)] = load
    return parameters, (texts, addresses)


@njit(types.uint64(_PARAMETERS, types.int64), nogil=True, cache=True)
def _function(parameters, position):  # type: ignore[no-untyped-def]
    return load_u64(np.uint64(parameters[TABLE]) + np.uint64(position) * _8)


@njit(types.int32(_PARAMETERS, types.uint64), nogil=True, cache=True)
def _noted(parameters, returned):  # type: ignore[no-untyped-def]
    """Take a function's int, and keep it if it is the first error."""
    code = np.int32(np.uint32(returned & np.uint64(0xFFFF_FFFF)))
    if code not in (_OK, _ROW, _DONE) and parameters[ERROR] == 0:
        parameters[ERROR] = code
    return code


@njit(types.void(_PARAMETERS), nogil=True, cache=True)
def connect(parameters):  # type: ignore[no-untyped-def]
    """Open the database and prepare all statements. An error is noted, and there is no connection then."""
    texts, slots = np.uint64(parameters[TEXTS]), np.uint64(parameters.ctypes.data)
    name, system = np.uint64(parameters[NAME]), np.uint64(parameters[FILE_SYSTEM])
    connection_at = slots + np.uint64(CONNECTION) * _8
    _noted(parameters, call(_function(parameters, functions.OPEN_V2), name, connection_at, _OPEN_FLAGS, system, _0))
    connection = np.uint64(parameters[CONNECTION])
    if parameters[ERROR] == 0:
        waiter, mount = np.uint64(parameters[WAITER]), np.uint64(parameters[MOUNT])
        call(_function(parameters, functions.BUSY_HANDLER), connection, waiter, mount, _0, _0)
        _noted(parameters, call(_function(parameters, functions.EXEC), connection, load_u64(texts), _0, _0, _0))
        for statement in range(parameters[STATEMENTS]):
            text = load_u64(texts + np.uint64(statement + 1) * _8)
            handle_at = slots + np.uint64(FIRST_STATEMENT + statement) * _8
            _noted(parameters, call(_function(parameters, functions.PREPARE_V2), connection, text, _ALL, handle_at, _0))
    if parameters[ERROR] != 0:
        call(_function(parameters, functions.CLOSE_V2), connection, _0, _0, _0, _0)
        parameters[CONNECTION] = 0


@njit(types.void(_PARAMETERS, types.int64, types.int64, types.int64), nogil=True, cache=True)
def bind(parameters, statement, index, number):  # type: ignore[no-untyped-def]
    """Set parameter `index` (from 1 on) of a statement."""
    handle = np.uint64(parameters[FIRST_STATEMENT + statement])
    function = _function(parameters, functions.BIND_INT64)
    _noted(parameters, call(function, handle, np.uint64(index), np.uint64(number), _0, _0))


@njit(types.boolean(_PARAMETERS, types.int64), nogil=True, cache=True)
def row(parameters, statement):  # type: ignore[no-untyped-def]
    """Go on to the next row of a statement; False: there is none, or an error. `finish` it afterwards."""
    handle = np.uint64(parameters[FIRST_STATEMENT + statement])
    return _noted(parameters, call(_function(parameters, functions.STEP), handle, _0, _0, _0, _0)) == _ROW


@njit(types.int64(_PARAMETERS, types.int64, types.int64), nogil=True, cache=True)
def column(parameters, statement, index):  # type: ignore[no-untyped-def]
    """Give a number of the row (from 0 on)."""
    handle = np.uint64(parameters[FIRST_STATEMENT + statement])
    function = _function(parameters, functions.COLUMN_INT64)
    return np.int64(call(function, handle, np.uint64(index), _0, _0, _0))


@njit(types.void(_PARAMETERS, types.int64), nogil=True, cache=True)
def finish(parameters, statement):  # type: ignore[no-untyped-def]
    """Make a statement ready for its next use."""
    handle = np.uint64(parameters[FIRST_STATEMENT + statement])
    call(_function(parameters, functions.RESET), handle, _0, _0, _0, _0)


@njit(types.void(_PARAMETERS, types.int64), nogil=True, cache=True)
def run(parameters, statement):  # type: ignore[no-untyped-def]
    """Run a statement whose parameters are bound, and which gives no row."""
    row(parameters, statement)
    finish(parameters, statement)


@njit(types.int64(_PARAMETERS, types.int64), nogil=True, cache=True)
def one_number(parameters, statement):  # type: ignore[no-untyped-def]
    """Run a statement that gives one row of one number; -1 where it gives none."""
    found = np.int64(-1)
    if row(parameters, statement):
        found = column(parameters, statement, 0)
    finish(parameters, statement)
    return found


@njit(types.void(_PARAMETERS), nogil=True, cache=True)
def bound_log(parameters):  # type: ignore[no-untyped-def]
    """Empty the log where three quarters of its room are used, waiting for those who still read it; by the writer in turn.

    SQLite does so by itself at a quarter, but only starts it anew when nobody happens to read it just then.
    """
    mount = np.uint64(parameters[MOUNT])
    if load_u64(mount + _LOG_END) > load_u64(mount + _LOG_ROOM) // np.uint64(4) * np.uint64(3):
        function, connection = _function(parameters, functions.WAL_CHECKPOINT_V2), np.uint64(parameters[CONNECTION])
        call(function, connection, _0, _RESTART, _0, _0)
