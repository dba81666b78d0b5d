"""Bits of many tokens side by side, to count them: compiled for the processor at hand, called from compiled loops.

Tokens below 32 are five planes of bits. A token occurs where each plane, or its inverse, has a bit, so
counting is AND and the number of bits set, of 512 tokens at once: no counter waits for what was written to it
just now, as those of a table do. Needs AVX-512 with VBMI, VPOPCNTDQ and GFNI; elsewhere neither
``store_planes`` nor ``count_planes`` may be called.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from proteinlm.sequence.addresses import load_at
from proteinlm.sequence.wide_bytes import chosen, has_feature

# tokens of a group, and the groups that are counted at once
GROUP, NUM_GROUPS = 512, 8
# words of a plane, and of a counter
NUM_LANES = 8
NUM_PLANES = 5
# tokens that planes tell apart
NUM_COUNTED = 1 << NUM_PLANES

_I8, _I64 = ir.IntType(8), ir.IntType(64)
_BYTES, _WORDS = ir.VectorType(_I8, 64), ir.VectorType(_I64, NUM_LANES)


@functools.cache
def can_count_planes() -> bool:
    """Say whether tokens can be counted in planes here."""
    return all(has_feature(name) for name in ("avx512vbmi", "avx512vpopcntdq", "gfni"))


def _planes_of_64(builder: Any, tokens: Any) -> Any:
    """Return the eight planes of 64 tokens, a word each."""
    kind = ir.FunctionType(_BYTES, [_BYTES, _BYTES, _I8])
    product = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.vgf2p8affineqb.512")
    # a matrix of bits, the bytes of a word, times a vector with one bit set is a column of it
    columns = ir.Constant(_BYTES, [1 << bit for bit in range(8)] * 8)
    turned = builder.call(product, [columns, tokens, _I8(0)])
    gathered = chosen(builder, (turned, turned), [8 * word + plane for plane in range(8) for word in range(8)])
    return builder.bitcast(gathered, _WORDS)


def _planes_of_group(builder: Any, parts: list[Any]) -> list[Any]:
    """Return five planes of 512 tokens for the planes of eight times 64."""
    # the order of the tokens within a plane is of no interest, as long as all planes have the same
    even, odd = [0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]
    pairs = [[chosen(builder, (parts[n], parts[n + 1]), numbers) for n in (0, 2, 4, 6)] for numbers in (even, odd)]
    planes = []
    for plane in range(NUM_PLANES):
        of_two = pairs[plane % 2]
        first = plane // 2 * 2
        numbers = [first, first + 1, first + 8, first + 9]
        of_four = [chosen(builder, (of_two[n], of_two[n + 1]), numbers) for n in (0, 2)]
        planes.append(chosen(builder, (of_four[0], of_four[1]), range(8)))
    return planes


def _parted(builder: Any, sets: list[Any], plane: Any) -> list[Any]:
    """Return those of each set whose bit in the plane is 0, then those whose bit is 1."""
    inverted = builder.not_(plane)
    return [builder.and_(one, inverted) for one in sets] + [builder.and_(one, plane) for one in sets]


def _words_at(builder: Any, address: Any, number: int) -> Any:
    """Return where the words with this number stand."""
    return builder.inttoptr(builder.add(address, _I64(number * 8 * NUM_LANES)), _WORDS.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def store_planes(typing_context: Any, tokens: Any, planes: Any) -> Any:
    """Write the planes of 512 tokens; return whether all of these are below 32.

    Arguments are the addresses of the tokens and of the planes, ``NUM_PLANES`` times eight uint64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not can_count_planes():
            return cgutils.false_bit
        tokens, planes = arguments
        parts = [load_at(builder, builder.add(tokens, _I64(64 * n)), _BYTES) for n in range(8)]
        found = _planes_of_group(builder, [_planes_of_64(builder, part) for part in parts])
        for number, plane in enumerate(found):
            builder.store(plane, _words_at(builder, planes, number), align=1)
        joined = functools.reduce(builder.or_, parts)
        is_high = builder.icmp_unsigned(">=", joined, ir.Constant(_BYTES, [NUM_COUNTED] * 64))
        return builder.icmp_unsigned("==", builder.bitcast(is_high, _I64), _I64(0))

    return types.boolean(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def count_planes(typing_context: Any, planes: Any, counts: Any) -> Any:
    """Count the tokens of ``NUM_GROUPS`` times 512.

    Arguments are the addresses of their planes, one group after the other, and of the counters, uint64 (32, 8):
    the occurrences of a token are the sum of its row.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        planes, counts = arguments
        kind = ir.FunctionType(_WORDS, [_WORDS])
        population = cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.v8i64")
        groups = [
            [builder.load(_words_at(builder, planes, NUM_PLANES * n + plane), align=1) for plane in range(NUM_PLANES)]
            for n in range(NUM_GROUPS)
        ]
        # eight tokens at once, or there are more sums than registers
        for quarter in range(4):
            sums = [ir.Constant(_WORDS, [0] * NUM_LANES)] * 8
            for *low, fourth, fifth in groups:
                both = [plane if quarter >> n & 1 else builder.not_(plane) for n, plane in enumerate((fourth, fifth))]
                sets = functools.reduce(functools.partial(_parted, builder), low, [builder.and_(*both)])
                sums = [builder.add(a, builder.call(population, [one])) for a, one in zip(sums, sets, strict=True)]
            for number, one in enumerate(sums):
                place = _words_at(builder, counts, 8 * quarter + number)
                builder.store(builder.add(builder.load(place, align=1), one), place, align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate
