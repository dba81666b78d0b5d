"""The tokens of a window in one compiled call, copied from where they lie in memory.

Numpy takes a microsecond for each piece of a protein, and a window has dozens. Import it inside the
function that needs it: loading numba takes longer than most commands.
"""

from __future__ import annotations

from typing import Any

import numpy
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from proteinlm.corpus.shard_reader import Addresses
from proteinlm.sequence.addresses import copy_bytes
from proteinlm.sequence.alphabet import CLS, EOS, PAD

# bytes that the processor loads at once, and how many of a protein are asked for ahead of the copying
_LINE = 64
_FETCHED = 256

Integers = NDArray[numpy.signedinteger]


@intrinsic  # type: ignore[untyped-decorator]
def _integer_at(_typing: Any, _address: Any) -> Any:
    """Return the int64 at an address."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        # a dataset may begin at any byte of a file
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), align=1)

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _fetch(_typing: Any, _address: Any) -> Any:
    """Have the cache line at an address brought near, without waiting for it."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0i8")
        # to be read, kept in all caches, as data
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def gather(
    sequence: Integers,
    begin: Integers,
    end: Integers,
    addresses: Addresses,
    is_joint: bool,
    tokens: NDArray[numpy.uint8],
    positions: NDArray[numpy.int64],
    bounds: NDArray[numpy.int64],
) -> int:
    """Fill a window with pieces of proteins, and return how many of its positions hold tokens.

    Args:
        sequence: (P,), number of each piece's protein.
        begin: (P,), first token of each piece, counted in the protein with its special tokens.
        end: (P,), one past its last token.
        addresses: where the proteins lie.
        is_joint: no ``<cls>`` stands before a protein, and the window is one segment, through which
            positions count.
        tokens: uint8 (L,), to be filled.
        positions: int64 (L,), to be filled.
        bounds: int64 (P + 2,), whose beginning is to be filled with the bounds of the segments.

    Raises:
        IndexError: if there is no such protein or it has no such piece.
    """
    starts, lengths = _locate(sequence, addresses)
    num_leading = 0 if is_joint else 1
    place = segments = 0
    bounds[0] = 0
    for piece in range(len(sequence)):
        first, stop, length = int(begin[piece]), int(end[piece]), int(lengths[piece])
        if not 0 <= first <= stop <= num_leading + length + 1 or place + stop - first > len(tokens):
            raise IndexError("a piece lies outside of its protein or window; plan with the lengths of these proteins")
        after = place + stop - first
        _count(positions[place:after], place if is_joint else first)
        if first < num_leading <= stop:
            tokens[place] = CLS
        if stop == num_leading + length + 1 and stop > first:
            tokens[after - 1] = EOS
        # of the piece, without the special tokens
        head = max(first, num_leading)
        tail = min(stop, num_leading + length)
        if tail > head:
            target = tokens.ctypes.data + place + head - first
            copy_bytes(numpy.uint64(target), starts[piece] + numpy.uint64(head - num_leading), tail - head)
        place = after
        segments = 1 if is_joint else piece + 1
        bounds[segments] = place
    if place < len(tokens):
        bounds[segments + 1] = len(tokens)
    tokens[place:] = PAD
    positions[place:] = 0
    return place


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _locate(numbers: Integers, addresses: Addresses) -> tuple[NDArray[numpy.uint64], NDArray[numpy.int64]]:
    # apart from the copying, so that the processor waits for many of these places at a time
    starts, lengths = numpy.empty(len(numbers), numpy.uint64), numpy.empty(len(numbers), numpy.int64)
    for piece in range(len(numbers)):
        number = int(numbers[piece])
        shard = numpy.searchsorted(addresses.ends, number, side="right")
        if number < 0 or shard == len(addresses.ends):
            raise IndexError("a piece is of a protein that is not there; plan with the lengths of these proteins")
        local = number - (addresses.ends[shard - 1] if shard else 0)
        place = addresses.offsets[shard] + numpy.uint64(8 * local)
        offset = _integer_at(place)
        starts[piece] = addresses.tokens[shard] + numpy.uint64(offset)
        lengths[piece] = _integer_at(place + numpy.uint64(8)) - offset
        for line in range(0, min(lengths[piece], _FETCHED), _LINE):
            _fetch(starts[piece] + numpy.uint64(line))
    return starts, lengths


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count(positions: NDArray[numpy.int64], first: int) -> None:
    for place in range(len(positions)):
        positions[place] = first + place
