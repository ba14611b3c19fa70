"""Atomic operations for Numba code, which has none: one LLVM instruction each, on an address given as an integer.

Without them a polled flag is hoisted out of a loop and never seen to change, and two threads' `+= 1` on one word lose counts
(both happened). Ordering: loads acquire, stores release, read-modify-write sequentially consistent.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types

#: Its type stubs take the context for an argument of every call.
intrinsic: Any = extending.intrinsic

_U32 = ir.IntType(32)
_U64 = ir.IntType(64)


def _word(builder: Any, address: Any, kind: ir.IntType) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(kind: ir.IntType, returned: Any) -> Any:
    def typed(_context: Any, address: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.load_atomic(_word(builder, arguments[0], kind), "acquire", kind.width // 8)

        return returned(types.uint64), generate

    return typed


def _store(kind: ir.IntType, stored: Any) -> Any:
    def typed(_context: Any, address: Any, value: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            builder.store_atomic(arguments[1], _word(builder, arguments[0], kind), "release", kind.width // 8)
            return target.get_dummy_value()

        return types.void(types.uint64, stored), generate

    return typed


def _add(kind: ir.IntType, added: Any) -> Any:
    def typed(_context: Any, address: Any, value: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.atomic_rmw("add", _word(builder, arguments[0], kind), arguments[1], "seq_cst")

        return added(types.uint64, added), generate

    return typed


def _compare_and_swap(_context: Any, address: Any, expected: Any, wanted: Any) -> Any:
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = _word(builder, arguments[0], _U64)
        outcome = builder.cmpxchg(word, arguments[1], arguments[2], "seq_cst", "acquire")
        return builder.extract_value(outcome, 1)

    return types.boolean(types.uint64, types.uint64, types.uint64), generate


#: load_u32(address) -> u32, and so on; addresses are uint64, aligned to the word.
load_u32 = intrinsic(_load(_U32, types.uint32))
load_u64 = intrinsic(_load(_U64, types.uint64))
store_u32 = intrinsic(_store(_U32, types.uint32))
store_u64 = intrinsic(_store(_U64, types.uint64))
#: add_u32(address, value) -> the value before.
add_u32 = intrinsic(_add(_U32, types.uint32))
#: swap_u64(address, expected, wanted) -> whether the word was `expected` and is now `wanted`.
swap_u64 = intrinsic(_compare_and_swap)


@intrinsic
def fence(_context: Any) -> Any:
    """Let no load or store behind it come before one ahead of it."""

    def generate(target: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return target.get_dummy_value()

    return types.void(), generate
