"""What connections of this process lock against each other: words of process memory, changed by atomic operations alone.

No lock outlives a transaction but that of a connection on its database file, which says that it is open. So locks do not travel:
at the destination everything is unlocked until its connections open. Two kinds, as SQLite asks for them (sqlite3_io_methods):
of the file (xLock: shared, reserved, pending, exclusive), which a database with a log uses to be open, and of the log's index
(xShmLock: eight words, each shared by some or held by one), by which readers and the one writer pass each other.

A connection that finds a lock taken sleeps until some lock is given back, by a count of such events; SQLite asks again then. That
waiting has no order: who gives the writer's lock back and asks again at once has it before the sleeper is awake (measured: of two
vCPUs at full speed one wrote on until the log was full, while the other waited to empty it). So writers queue before they ask
SQLite, in the order of their arrival, and find its lock free.
"""

from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from pagefire.guest_workload.atomics import add_u32, load_u32, load_u64, store_u32, store_u64, swap_u64
from pagefire.guest_workload.native import futex_wait, futex_wake_all

#: Where the words lie among those of a mount (`file_system`), in bytes; each index lock has a cache line of its own.
AT_GIVEN_BACK = 128  # u32, a futex word: how often a lock was given back
AT_WAITERS = 132  # u32
AT_ARRIVED = 136  # u32, writers that have joined the queue so far
AT_SERVED = 140  # u32, a futex word: those that have left it
AT_SHARED, AT_RESERVED, AT_PENDING = 192, 200, 208
AT_INDEX_LOCKS = 256
INDEX_LOCKS, LINE_BYTES = 8, 64
#: Where an open file (struct sqlite3_file and what follows it) keeps what it is and holds, in bytes.
FILE_MOUNT, FILE_KIND, FILE_LEVEL = 8, 16, 24

NONE, SHARED, RESERVED, PENDING, EXCLUSIVE = range(5)
_UNLOCK, _SHARED_FLAG = 1, 4

_OK, _BUSY = np.int32(0), np.int32(5)
_0, _1 = np.uint64(0), np.uint64(1)
_HELD_BY_ONE = np.uint64(1 << 32)
_GIVEN_BACK, _WAITERS = np.uint64(AT_GIVEN_BACK), np.uint64(AT_WAITERS)
_SHARED, _RESERVED, _PENDING = np.uint64(AT_SHARED), np.uint64(AT_RESERVED), np.uint64(AT_PENDING)
_ARRIVED, _SERVED = np.uint64(AT_ARRIVED), np.uint64(AT_SERVED)
_MOUNT, _LEVEL = np.uint64(FILE_MOUNT), np.uint64(FILE_LEVEL)
_INDEX_LOCKS, _LINE = np.uint64(AT_INDEX_LOCKS), np.uint64(LINE_BYTES)
#: A count of events is read behind the attempt that failed: an event between the two is slept over for so long at most.
_NAP_NS = np.uint64(500_000)
#: After so many naps (some 20 s) the transaction fails with SQLITE_BUSY instead of waiting for ever.
_MOST_NAPS = 40_000


@njit(types.void(types.uint64), nogil=True, cache=True)
def _give_back(mount):  # type: ignore[no-untyped-def]
    """Tell those who wait that a lock is free."""
    add_u32(mount + _GIVEN_BACK, np.uint32(1))
    if load_u32(mount + _WAITERS) != np.uint32(0):
        futex_wake_all(mount + _GIVEN_BACK)


@njit(types.void(types.uint64), nogil=True, cache=True)
def join_writers(mount):  # type: ignore[no-untyped-def]
    """Wait until every writer that came before has left."""
    mine = add_u32(mount + _ARRIVED, np.uint32(1))
    while True:
        served = load_u32(mount + _SERVED)
        if served == mine:
            return
        futex_wait(mount + _SERVED, served, _0)


@njit(types.void(types.uint64), nogil=True, cache=True)
def leave_writers(mount):  # type: ignore[no-untyped-def]
    """Let the next writer go."""
    last = np.uint32(add_u32(mount + _SERVED, np.uint32(1)) + np.uint32(1))
    if load_u32(mount + _ARRIVED) != last:
        futex_wake_all(mount + _SERVED)


@njit(types.void(types.uint64, types.int64), nogil=True, cache=True)
def _add(word, difference):  # type: ignore[no-untyped-def]
    """Add to a word, atomically."""
    while True:
        before = load_u64(word)
        if swap_u64(word, before, before + np.uint64(difference)):
            return


@cfunc(types.int32(types.uint64, types.int32), cache=True)
def wait_for_lock(mount, naps):  # type: ignore[no-untyped-def]
    """sqlite3_busy_handler: sleep until a lock is given back; 1: ask again, 0: give up."""
    if naps > _MOST_NAPS:
        return np.int32(0)
    seen = load_u32(mount + _GIVEN_BACK)
    add_u32(mount + _WAITERS, np.uint32(1))
    futex_wait(mount + _GIVEN_BACK, seen, _NAP_NS)
    add_u32(mount + _WAITERS, np.uint32(0xFFFF_FFFF))
    return np.int32(1)


@cfunc(types.int32(types.uint64, types.int32), cache=True)
def lock(file, wanted):  # type: ignore[no-untyped-def]
    """xLock: raise the level of this file's lock; one step of it may stay when the rest is refused, as SQLite expects."""
    mount, level = load_u64(file + _MOUNT), np.int32(load_u64(file + _LEVEL))
    if level >= wanted:
        return _OK
    if level == NONE:
        # Counted first, then looked: whoever wants the file alone says so first, then counts. One of two sees the other.
        _add(mount + _SHARED, 1)
        if load_u64(mount + _PENDING) != _0:
            _add(mount + _SHARED, -1)
            return _BUSY
        store_u64(file + _LEVEL, np.uint64(SHARED))
        level = np.int32(SHARED)
    if wanted >= RESERVED and level == SHARED:
        if not swap_u64(mount + _RESERVED, _0, _1):
            return _BUSY
        store_u64(file + _LEVEL, np.uint64(RESERVED))
    if wanted == EXCLUSIVE:
        swap_u64(mount + _PENDING, _0, _1)
        store_u64(file + _LEVEL, np.uint64(PENDING))
        if load_u64(mount + _SHARED) != _1:
            return _BUSY
        store_u64(file + _LEVEL, np.uint64(EXCLUSIVE))
    return _OK


@cfunc(types.int32(types.uint64, types.int32), cache=True)
def unlock(file, wanted):  # type: ignore[no-untyped-def]
    """xUnlock: lower the level, to shared or to none."""
    mount, level = load_u64(file + _MOUNT), np.int32(load_u64(file + _LEVEL))
    if level <= wanted:
        return _OK
    if level >= PENDING:
        store_u64(mount + _PENDING, _0)
    if level >= RESERVED:
        store_u64(mount + _RESERVED, _0)
    if wanted == NONE:
        _add(mount + _SHARED, -1)
    store_u64(file + _LEVEL, np.uint64(wanted))
    _give_back(mount)
    return _OK


@cfunc(types.int32(types.uint64, types.uint64), cache=True)
def check_reserved(file, answer):  # type: ignore[no-untyped-def]
    """xCheckReservedLock: tell whether anybody is about to write."""
    store_u32(answer, np.uint32(load_u64(load_u64(file + _MOUNT) + _RESERVED)))
    return _OK


@cfunc(types.int32(types.uint64, types.int32, types.int32, types.int32), cache=True)
def lock_index(file, first, count, flags):  # type: ignore[no-untyped-def]
    """xShmLock: take or give back some of the eight locks of the log's index, all of them or none."""
    mount = load_u64(file + _MOUNT)
    shared = flags & _SHARED_FLAG != 0
    for number in range(first, first + count):
        word = mount + _INDEX_LOCKS + np.uint64(number) * _LINE
        if flags & _UNLOCK:
            if shared:
                _add(word, -1)
            else:
                store_u64(word, _0)
        elif shared:
            while True:
                holders = load_u64(word)
                if holders == _HELD_BY_ONE:
                    return _BUSY
                if swap_u64(word, holders, holders + _1):
                    break
        elif not swap_u64(word, _0, _HELD_BY_ONE):
            for taken in range(first, number):
                store_u64(mount + _INDEX_LOCKS + np.uint64(taken) * _LINE, _0)
            return _BUSY
    if flags & _UNLOCK:
        _give_back(mount)
    return _OK
