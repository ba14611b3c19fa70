"""The file system that SQLite sees (a VFS): its database and its log are stretches of guest memory, read and written by memcpy.

Every function is native and knows no GIL: a connection that reads a page which has not arrived waits in its own thread, and nothing
else stands still. They are called by SQLite (struct sqlite3_vfs and sqlite3_io_methods, sqlite3.h), and make no system call on
guest memory, because the kernel may not touch a missing page for us. There are two files; what else SQLite might open is refused,
and is not needed: rollback journals of a database with a log do not exist, temporary tables stay in SQLite's memory.

A `Mount` is what one process knows of one guest's memory: words of its own, of which native code gets the address.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from numba import cfunc, njit, types

from pagefire.guest_workload.atomics import fence, load_u64, store_u32, store_u64
from pagefire.guest_workload.native import copy_bytes, text_bytes, zero_bytes
from pagefire.guest_workload.sqlite import functions, locks, place
from pagefire.guest_workload.sqlite.place import Place
from pagefire.protocol.pages import PAGE_BYTES

NAME = b"guest.db"
_MOUNT_WORDS = (locks.AT_INDEX_LOCKS + locks.INDEX_LOCKS * locks.LINE_BYTES) // 8
#: Words of a mount before those of the locks, in bytes. `AT_LOG_END`: where the newest frame of the log ends.
(AT_MEMORY, AT_PARTITION, AT_PIECE, AT_INDEX, AT_REGIONS, AT_LOG, AT_LOG_ROOM, AT_DATABASE, AT_DATABASE_ROOM) = range(
    0, 72, 8
)
AT_METHODS, AT_LOG_END = 72, 80
_FILE_BYTES = 64
_LONGEST_PATH_BYTES = 512

_OPEN_DATABASE, _OPEN_LOG = np.int32(0x100), np.int32(0x80000)
_DATABASE, _LOG = np.uint64(0), np.uint64(1)
_OK, _FULL, _NOT_FOUND, _CANNOT_OPEN, _TOO_LONG = np.int32(0), np.int32(13), np.int32(12), np.int32(14), np.int32(14)
_SHORT_READ, _NOTHING_TO_DELETE = np.int32(522), np.int32(5898)
#: A write that is interrupted damages nothing beside it (no crash happens between two stores), files grow before their size does,
#: and writes come in order.
_CHARACTERISTICS = np.int32(0x1000 | 0x200 | 0x400)
_REGION_BYTES = np.uint64(place.REGION_BYTES)

_0, _1, _8, _16 = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(16)
_FILE_MOUNT, _FILE_KIND, _FILE_LEVEL = (np.uint64(at) for at in (locks.FILE_MOUNT, locks.FILE_KIND, locks.FILE_LEVEL))
_MEMORY, _PARTITION, _PIECE = np.uint64(AT_MEMORY), np.uint64(AT_PARTITION), np.uint64(AT_PIECE)
_INDEX, _REGIONS = np.uint64(AT_INDEX), np.uint64(AT_REGIONS)
_METHODS, _LOG_END = np.uint64(AT_METHODS), np.uint64(AT_LOG_END)
_FIRST_FILE = np.uint64(AT_LOG)  # beginning and room of the log, then of the database
_LOG_EXISTS, _INDEX_REGIONS = np.uint64(place.AT_LOG_EXISTS), np.uint64(place.AT_INDEX_REGIONS)
_APP_DATA = np.uint64(32)


@njit(types.uint64(types.uint64, types.uint64), nogil=True, cache=True)
def _address(mount, at):  # type: ignore[no-untyped-def]
    """Find a byte of the stretch in this process's memory."""
    piece = load_u64(mount + _PIECE)
    return load_u64(mount + _MEMORY) + at // piece * load_u64(mount + _PARTITION) + at % piece


@njit(types.uint64(types.uint64), nogil=True, cache=True)
def _size_at(file):  # type: ignore[no-untyped-def]
    """Find the word of the control page that holds a file's size: the database's first, then the log's."""
    return load_u64(load_u64(file + _FILE_MOUNT) + _MEMORY) + load_u64(file + _FILE_KIND) * _8


@njit(types.uint64(types.uint64), nogil=True, cache=True)
def _extent_at(file):  # type: ignore[no-untyped-def]
    """Find the two words of the mount that hold a file's beginning in the stretch, and its room."""
    return load_u64(file + _FILE_MOUNT) + _FIRST_FILE + (_1 - load_u64(file + _FILE_KIND)) * _16


@njit(types.void(types.uint64, types.uint64, types.uint64, types.uint64, types.boolean), nogil=True, cache=True)
def _copy(mount, at, buffer, count, to_memory):  # type: ignore[no-untyped-def]
    """Copy between the stretch and a buffer of SQLite; a buffer at address 0 stands for zeros."""
    piece = load_u64(mount + _PIECE)
    while count != _0:
        here = min(count, piece - at % piece)
        address = _address(mount, at)
        if not to_memory:
            copy_bytes(buffer, address, here)
        elif buffer == _0:
            zero_bytes(address, here)
        else:
            copy_bytes(address, buffer, here)
        if buffer != _0:
            buffer += here
        at += here
        count -= here


@cfunc(types.int32(types.uint64), cache=True)
def _close(file):  # type: ignore[no-untyped-def]
    return _OK


@cfunc(types.int32(types.uint64, types.uint64, types.int32, types.int64), cache=True)
def _read(file, buffer, amount, offset):  # type: ignore[no-untyped-def]
    size, count, at = load_u64(_size_at(file)), np.uint64(amount), np.uint64(offset)
    there = _0
    if at < size:
        there = min(count, size - at)
    _copy(load_u64(file + _FILE_MOUNT), load_u64(_extent_at(file)) + at, buffer, there, False)
    if there == count:
        return _OK
    zero_bytes(buffer + there, count - there)
    return _SHORT_READ


@cfunc(types.int32(types.uint64, types.uint64, types.int32, types.int64), cache=True)
def _write(file, buffer, amount, offset):  # type: ignore[no-untyped-def]
    mount, extent_at = load_u64(file + _FILE_MOUNT), _extent_at(file)
    begin, room = load_u64(extent_at), load_u64(extent_at + _8)
    count, at = np.uint64(amount), np.uint64(offset)
    if at + count > room:
        return _FULL
    size = load_u64(_size_at(file))
    if at > size:
        # What lies between is what an earlier, longer file left: a file's gap reads as zeros.
        _copy(mount, begin + size, _0, at - size, True)
    _copy(mount, begin + at, buffer, count, True)
    if at + count > size:
        store_u64(_size_at(file), at + count)
    if load_u64(file + _FILE_KIND) == _LOG:
        store_u64(mount + _LOG_END, at + count)
    return _OK


@cfunc(types.int32(types.uint64, types.int64), cache=True)
def _truncate(file, size):  # type: ignore[no-untyped-def]
    store_u64(_size_at(file), np.uint64(size))
    return _OK


@cfunc(types.int32(types.uint64, types.int32), cache=True)
def _sync(file, flags):  # type: ignore[no-untyped-def]
    return _OK


@cfunc(types.int32(types.uint64, types.uint64), cache=True)
def _file_size(file, answer):  # type: ignore[no-untyped-def]
    store_u64(answer, load_u64(_size_at(file)))
    return _OK


@cfunc(types.int32(types.uint64, types.int32, types.uint64), cache=True)
def _file_control(file, operation, argument):  # type: ignore[no-untyped-def]
    return _NOT_FOUND


@cfunc(types.int32(types.uint64), cache=True)
def _sector_size(file):  # type: ignore[no-untyped-def]
    return np.int32(PAGE_BYTES)


@cfunc(types.int32(types.uint64), cache=True)
def _characteristics(file):  # type: ignore[no-untyped-def]
    return _CHARACTERISTICS


@cfunc(types.int32(types.uint64, types.int32, types.int32, types.int32, types.uint64), cache=True)
def _map_index(file, number, size_bytes, extend, answer):  # type: ignore[no-untyped-def]
    """xShmMap: give the address of a region of the log's index, in guest memory."""
    mount, region = load_u64(file + _FILE_MOUNT), np.uint64(number)
    there_at = load_u64(mount + _MEMORY) + _INDEX_REGIONS
    store_u64(answer, _0)
    if np.uint64(size_bytes) != _REGION_BYTES or region >= load_u64(mount + _REGIONS):
        return _FULL
    address = _address(mount, load_u64(mount + _INDEX) + region * _REGION_BYTES)
    there = load_u64(there_at)
    if region >= there:
        if extend == 0:
            return _OK
        zero_bytes(address, _REGION_BYTES)
        store_u64(there_at, region + _1)
    store_u64(answer, address)
    return _OK


@cfunc(types.void(types.uint64), cache=True)
def _barrier(file):  # type: ignore[no-untyped-def]
    fence()


@cfunc(types.int32(types.uint64, types.int32), cache=True)
def _unmap_index(file, delete):  # type: ignore[no-untyped-def]
    if delete:
        store_u64(load_u64(load_u64(file + _FILE_MOUNT) + _MEMORY) + _INDEX_REGIONS, _0)
    return _OK


@cfunc(types.int32(types.uint64, types.uint64, types.uint64, types.int32, types.uint64), cache=True)
def _open(vfs, name, file, flags, answer):  # type: ignore[no-untyped-def]
    mount = load_u64(vfs + _APP_DATA)
    store_u64(file, _0)
    if not flags & (_OPEN_DATABASE | _OPEN_LOG):
        return _CANNOT_OPEN
    store_u64(file + _FILE_MOUNT, mount)
    store_u64(file + _FILE_LEVEL, _0)
    if flags & _OPEN_LOG:
        store_u64(file + _FILE_KIND, _LOG)
        store_u64(load_u64(mount + _MEMORY) + _LOG_EXISTS, _1)
    else:
        store_u64(file + _FILE_KIND, _DATABASE)
    store_u64(file, load_u64(mount + _METHODS))
    if answer != _0:
        store_u32(answer, np.uint32(flags))
    return _OK


@njit(types.uint64(types.uint64), nogil=True, cache=True)
def _kind(name):  # type: ignore[no-untyped-def]
    """Tell a file by the length of its name: the database, its log (-wal), or something else (-journal), which is not there."""
    behind = text_bytes(name) - np.uint64(len(NAME))
    if behind == _0:
        return _DATABASE
    return _LOG if behind == np.uint64(4) else np.uint64(2)


@cfunc(types.int32(types.uint64, types.uint64, types.int32), cache=True)
def _delete(vfs, name, synced):  # type: ignore[no-untyped-def]
    memory = load_u64(load_u64(vfs + _APP_DATA) + _MEMORY)
    if _kind(name) != _LOG:
        return _NOTHING_TO_DELETE
    store_u64(memory + _8, _0)
    store_u64(memory + _LOG_EXISTS, _0)
    return _OK


@cfunc(types.int32(types.uint64, types.uint64, types.int32, types.uint64), cache=True)
def _access(vfs, name, flags, answer):  # type: ignore[no-untyped-def]
    memory, kind, exists = load_u64(load_u64(vfs + _APP_DATA) + _MEMORY), _kind(name), _0
    if kind == _DATABASE:
        exists = min(load_u64(memory), _1)
    elif kind == _LOG:
        exists = load_u64(memory + _LOG_EXISTS)
    store_u32(answer, np.uint32(exists))
    return _OK


@cfunc(types.int32(types.uint64, types.uint64, types.int32, types.uint64), cache=True)
def _full_path(vfs, name, room, answer):  # type: ignore[no-untyped-def]
    length = text_bytes(name) + _1
    if length > np.uint64(room):
        return _TOO_LONG
    copy_bytes(answer, name, length)
    return _OK


class Mount:
    """The database of one guest's memory as this process's SQLite knows it, under `vfs_name`; lives as long as the process.

    Nothing is read or written by making one: pages may still be missing. Raises FeatureMissing.
    """

    def __init__(self, memory_address: int, place_: Place) -> None:
        methods = (
            _close, _read, _write, _truncate, _sync, _file_size, locks.lock, locks.unlock, locks.check_reserved,
            _file_control, _sector_size, _characteristics, _map_index, locks.lock_index, _barrier, _unmap_index,
        )  # fmt: skip
        self.place = place_
        self._methods = np.array([2, *(one.address for one in methods)], np.uint64)
        # Aligned to a cache line, so that each lock has one of its own.
        self._words = np.zeros(_MOUNT_WORDS + 8, np.uint64)
        skipped = -self._words.ctypes.data % locks.LINE_BYTES // 8
        self.words: npt.NDArray[np.uint64] = self._words[skipped : skipped + _MOUNT_WORDS]
        self.words[: AT_LOG_END // 8] = (
            memory_address, place_.partition_bytes, place_.piece_bytes, place_.index_at, place_.index_regions,
            place_.log_at, place_.log_bytes, place_.database_at, place_.database_bytes, self._methods.ctypes.data,
        )  # fmt: skip
        self.address = int(self.words.ctypes.data)
        self.vfs_name = f"pagefire-{self.address:x}"
        self._name = ctypes.create_string_buffer(self.vfs_name.encode())
        self._vfs = self._make_vfs()
        functions.register_file_system(int(self._vfs.ctypes.data))
        _mounts.append(self)

    def _make_vfs(self) -> npt.NDArray[np.uint64]:
        """Fill in struct sqlite3_vfs, version 2: files are ours; time, sleep and random numbers are those of the default one."""
        vfs = np.ctypeslib.as_array((ctypes.c_uint64 * 18).from_address(functions.default_file_system())).copy()
        vfs[0] = 2 | _FILE_BYTES << 32
        vfs[1] = _LONGEST_PATH_BYTES
        vfs[2] = 0
        vfs[3:5] = ctypes.addressof(self._name), self.address
        vfs[5:9] = [one.address for one in (_open, _delete, _access, _full_path)]
        return vfs

    def size_bytes(self) -> int:
        """Tell how large the database is; reads guest memory."""
        return int(ctypes.c_uint64.from_address(int(self.words[AT_MEMORY // 8]) + place.AT_DATABASE_BYTES).value)


#: SQLite keeps the address of every file system that it was told of.
_mounts: list[Mount] = []
