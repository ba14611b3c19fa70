"""SQLite's own functions by address, so that native code calls them without the GIL.

A loadable extension is given the table of all functions that SQLite offers (struct sqlite3_api_routines, sqlite3ext.h): that is the
documented way to call the very library that is linked into another module, whose symbols nobody exports. apsw brings its own
SQLite; the table comes from that one. Ours is no file: a VFS is asked for the extension's entry point, and gives a function that
keeps the table. Positions in the table never change: SQLite only appends.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import apsw

from pagefire.protocol.errors import FeatureMissing

#: Positions in the table, in words.
(BIND_INT64, BUSY_HANDLER, COLUMN_INT64, EXEC, LIBVERSION_NUMBER, RESET, STEP) = (5, 13, 29, 55, 67, 77, 94)
(PREPARE_V2, OPEN_V2, VFS_FIND, VFS_REGISTER, CLOSE_V2, WAL_CHECKPOINT_V2) = (116, 135, 141, 142, 179, 191)

OK, BUSY, FULL, ROW, DONE = 0, 5, 13, 100, 101
OPEN_READWRITE, OPEN_CREATE, OPEN_NOMUTEX = 0x2, 0x4, 0x8000
CHECKPOINT_RESTART = 2

_BOOTSTRAP = "pagefire-bootstrap"
_Entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class _Bootstrap(apsw.VFS):
    """The default file system, but for extensions: there is one, and its entry point is ours."""

    def __init__(self, entry: int) -> None:
        super().__init__(_BOOTSTRAP, "")
        self._entry = entry

    def xDlOpen(self, filename: str) -> int:
        return 1

    def xDlSym(self, handle: int, symbol: str) -> int:
        return self._entry

    def xDlClose(self, handle: int) -> None:
        return None


@functools.cache
def table_address() -> int:
    """Find the table of this process's SQLite; it stays. Raises FeatureMissing where that is not the one that apsw reports."""
    found: list[int] = []

    def entry(_connection: int, _message: int, table: int) -> int:
        found.append(table)
        return OK

    callback = _Entry(entry)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    file_system = _Bootstrap(address)
    connection = apsw.Connection(":memory:", vfs=_BOOTSTRAP)
    try:
        connection.enable_load_extension(True)
        connection.load_extension("pagefire", "entry")
    finally:
        connection.close()
        file_system.unregister()
    if not found or int(function(found[0], LIBVERSION_NUMBER, ctypes.c_int)()) != apsw.SQLITE_VERSION_NUMBER:
        raise FeatureMissing(
            "SQLite's functions were not found", f"apsw {apsw.apsw_version()} with SQLite {apsw.sqlite_lib_version()}"
        )
    return found[0]


def function(table: int, position: int, returns: Any, *takes: Any) -> Any:
    """Give a function of the table for Python to call, by ctypes."""
    address = ctypes.c_void_p.from_address(table + 8 * position).value
    assert address is not None
    return ctypes.CFUNCTYPE(returns, *takes)(address)


def default_file_system() -> int:
    """Give the address of SQLite's own struct sqlite3_vfs for this system."""
    found = function(table_address(), VFS_FIND, ctypes.c_void_p, ctypes.c_char_p)(None)
    assert found is not None
    return int(found)


def register_file_system(vfs: int) -> None:
    """Make a struct sqlite3_vfs known to SQLite, which from then on reads it: it must stay where it is."""
    code = function(table_address(), VFS_REGISTER, ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(vfs, 0)
    if code != OK:
        raise FeatureMissing("SQLite did not take the file system of guest memory", f"error {code}")
