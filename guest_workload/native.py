"""What a vCPU needs of C without the GIL: the clock, futexes, ioctl and the copying of bytes, and functions at an address.

What libc has is called by symbol, not by address, so that compiled code can be cached: an address holds for one process. The same
words are handled from Python by `linux.futex`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from pagefire.guest_workload.linux import calls, futex

#: Its type stubs take the context for an argument of every call.
intrinsic: Any = extending.intrinsic

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_TIMESPEC = ir.ArrayType(_I64, 2)
_CLOCK_MONOTONIC = 1
_SECOND_NS = 1_000_000_000


@intrinsic
def clock_ns(_context: Any) -> Any:
    """Read CLOCK_MONOTONIC in nanoseconds (20 to 40 ns a call by way of the vDSO)."""

    def generate(_target: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        function_type = ir.FunctionType(_I32, [_I32, _TIMESPEC.as_pointer()])
        function = cgutils.get_or_insert_function(builder.module, function_type, "clock_gettime")  # type: ignore[no-untyped-call]
        timespec = cgutils.alloca_once(builder, _TIMESPEC)  # type: ignore[no-untyped-call]
        builder.call(function, [_I32(_CLOCK_MONOTONIC), timespec])
        seconds = builder.extract_value(builder.load(timespec), 0)
        nanoseconds = builder.extract_value(builder.load(timespec), 1)
        return builder.add(builder.mul(seconds, _I64(_SECOND_NS)), nanoseconds)

    return types.uint64(), generate


def _call_system(builder: Any, number: int, *arguments: Any) -> Any:
    # syscall() is variadic, but takes all of this in integer registers under both ABIs, so a plain prototype calls it right.
    function_type = ir.FunctionType(_I64, [_I64] * 7)
    function = cgutils.get_or_insert_function(builder.module, function_type, "syscall")  # type: ignore[no-untyped-call]
    padded = [_I64(number), *arguments, *[_I64(0)] * (6 - len(arguments))]
    return builder.call(function, padded)


def _call_futex(builder: Any, address: Any, operation: int, value: Any, timeout: Any) -> Any:
    timeout_at = builder.ptrtoint(timeout, _I64)
    return _call_system(builder, futex.SYSCALL, address, _I64(operation), builder.zext(value, _I64), timeout_at)


@intrinsic
def ioctl(_context: Any, fd: Any, request: Any, argument: Any) -> Any:
    """Issue one ioctl whose argument lies at an address; gives the error number, 0 when it succeeded."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        returned = _call_system(builder, calls.IOCTL_SYSCALL, builder.zext(arguments[0], _I64), *arguments[1:])
        errno_type = ir.FunctionType(_I32.as_pointer(), [])
        errno_at = cgutils.get_or_insert_function(builder.module, errno_type, "__errno_location")  # type: ignore[no-untyped-call]
        errno = builder.load(builder.call(errno_at, []))
        return builder.select(builder.icmp_signed("<", returned, _I64(0)), errno, _I32(0))

    return types.uint32(types.uint32, types.uint64, types.uint64), generate


@intrinsic
def futex_wait(_context: Any, address: Any, expected: Any, timeout_ns: Any) -> Any:
    """Sleep while the u32 at `address` is `expected`, at most `timeout_ns` (0: for ever); returns for any reason at all."""

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address_value, expected_value, timeout_value = arguments
        timespec = cgutils.alloca_once(builder, _TIMESPEC)  # type: ignore[no-untyped-call]
        seconds = builder.udiv(timeout_value, _I64(_SECOND_NS))
        filled = builder.insert_value(ir.Constant(_TIMESPEC, ir.Undefined), seconds, 0)
        filled = builder.insert_value(filled, builder.urem(timeout_value, _I64(_SECOND_NS)), 1)
        builder.store(filled, timespec)
        never = builder.icmp_unsigned("==", timeout_value, _I64(0))
        timeout = builder.select(never, ir.Constant(_TIMESPEC.as_pointer(), None), timespec)
        _call_futex(builder, address_value, futex.FUTEX_WAIT, expected_value, timeout)
        return target.get_dummy_value()

    return types.void(types.uint64, types.uint32, types.uint64), generate


@intrinsic
def futex_wake_all(_context: Any, address: Any) -> Any:
    """Wake every sleeper of the u32 at `address`."""

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        nothing = ir.Constant(_TIMESPEC.as_pointer(), None)
        _call_futex(builder, arguments[0], futex.FUTEX_WAKE, _I32(0x7FFF_FFFF), nothing)
        return target.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def copy_bytes(_context: Any, to: Any, of: Any, count: Any) -> Any:
    """Copy so many bytes from one address to another (memcpy): plain loads and stores, which may wait for a missing page."""

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(_I64, [_I64] * 3)
        function = cgutils.get_or_insert_function(builder.module, function_type, "memcpy")  # type: ignore[no-untyped-call]
        builder.call(function, arguments)
        return target.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), generate


@intrinsic
def zero_bytes(_context: Any, to: Any, count: Any) -> Any:
    """Make so many bytes from an address on zero (memset)."""

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(_I64, [_I64] * 3)
        function = cgutils.get_or_insert_function(builder.module, function_type, "memset")  # type: ignore[no-untyped-call]
        builder.call(function, [arguments[0], _I64(0), arguments[1]])
        return target.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic
def call(_context: Any, function: Any, first: Any, second: Any, third: Any, fourth: Any, fifth: Any) -> Any:
    """Call the C function at an address with five integers or pointers; one that takes fewer does not see the rest.

    True of both ABIs (x86-64, aarch64): the first five arguments are in registers, and nobody clears them away. Of a function that
    returns an int the upper half of what comes back means nothing.
    """

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(_I64, [_I64] * 5)
        return builder.call(builder.inttoptr(arguments[0], function_type.as_pointer()), arguments[1:])

    return types.uint64(*[types.uint64] * 6), generate


@intrinsic
def text_bytes(_context: Any, text: Any) -> Any:
    """Count the bytes of a C string (strlen)."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I64, [_I64]), "strlen")  # type: ignore[no-untyped-call]
        return builder.call(function, arguments)

    return types.uint64(types.uint64), generate
