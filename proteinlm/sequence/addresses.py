"""Bytes at addresses, for compiled loops.

An array that is handed to a compiled function is counted as in use, two locked instructions; where that is done
for each record, an address is handed over instead. Whoever has the array keeps it alive.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def address_of(typing_context: Any, array: Any) -> Any:
    """Return where the elements of an array lie in memory; one that is not C-contiguous is refused when compiled."""
    if array.layout != "C":
        raise TypingError(f"the address of a {array} does not tell where its elements lie; it must be C-contiguous")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.uint64(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(_typing: Any, _target: Any, _source: Any, _count: Any) -> Any:
    """Copy ``count`` bytes, int64, to one address, uint64, from another that is not among them."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        target, source = (builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64), generate


def load_at(builder: Any, address: Any, kind: Any) -> Any:
    """Return what builds the unaligned load of a ``kind`` at an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _reader(bits: int) -> Any:
    """Return what reads an unaligned little-endian word of so many bits at an address, as uint64."""

    @intrinsic  # type: ignore[untyped-decorator]
    def read(_typing: Any, _address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.zext(load_at(builder, arguments[0], ir.IntType(bits)), ir.IntType(64))

        return types.uint64(types.uint64), generate

    return read


read_8, read_32, read_64 = _reader(8), _reader(32), _reader(64)


@intrinsic  # type: ignore[untyped-decorator]
def byte_at(_typing: Any, _address: Any, _place: Any) -> Any:
    """Return the byte, uint8, that stands ``place``, int64, bytes behind an address."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return load_at(builder, builder.add(*arguments), ir.IntType(8))

    return types.uint8(types.uint64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_byte(_typing: Any, _address: Any, _place: Any, _byte: Any) -> Any:
    """Write a byte, uint8, ``place``, int64, bytes behind an address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, place, byte = arguments
        builder.store(byte, builder.inttoptr(builder.add(address, place), ir.IntType(8).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.uint8), generate
