"""What is done to 64 bytes of a text at once: compiled for the processor at hand, called from compiled loops.

Residues are looked up 64 at once where the processor can (AVX-512 VBMI), or 32 (AVX2). Elsewhere
``translate`` does nothing and must not be called.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from proteinlm.sequence.addresses import load_at
from proteinlm.sequence.alphabet import STANDARD, TOKENS

WIDTH = 64  # a usual line and its end: one step
LOWER = 0x20  # the bit that only letters in lower case have
NO_TOKEN = 128
# NUL, a return, the first byte of a byte order mark: a text with one is looked at more closely
NEED_CARE = b"\0\r\xef"
TOKEN_OF = np.full(256, NO_TOKEN, dtype=np.uint8)
for _letter in "ABCDEFGHIKLMNOPQRSTUVWXYZ":  # J has no token
    TOKEN_OF[[ord(_letter), ord(_letter.lower())]] = TOKENS.index(_letter)
NUCLEOTIDE_TOKENS = [TOKENS.index(letter) for letter in "ACGTUN"]
# the standard residues stand first, so one comparison tells the others
FIRST_AMBIGUOUS = int(STANDARD.max()) + 1

_BLANK, _LINE_FEED, _BRACKET = b" \n("
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_I8, WIDTH)
_LOOKUP = ir.VectorType(_I8, 32)


@functools.cache
def is_wide() -> bool:
    """Say whether 64 bytes can be translated at once here."""
    return has_feature("avx2")


def has_feature(name: str) -> bool:
    """Say whether code is generated for a feature, which NUMBA_CPU_FEATURES may set below what the processor has."""
    return f"+{name}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def _every(value: int) -> Any:
    return ir.Constant(_BYTES, [value] * WIDTH)


def _bits(builder: Any, found: Any) -> Any:
    """Return a mask, the first byte's bit lowest, of a vector of truths."""
    return builder.bitcast(found, _I64)


def chosen(builder: Any, vectors: tuple[Any, Any], numbers: Sequence[int]) -> Any:
    """Return the elements with these numbers, counted through both vectors."""
    return builder.shuffle_vector(*vectors, ir.Constant(ir.VectorType(_I32, len(numbers)), [*numbers]))


def _looked_up(builder: Any, letters: Any) -> tuple[Any, Any]:
    """Return the tokens of 64 bytes, and a vector that is negative where a byte has none."""
    if not has_feature("avx512vbmi"):
        found = _looked_up_by_halves(builder, letters)
        is_outside = builder.icmp_unsigned("!=", builder.and_(letters, _every(0xC0)), _every(0x40))
        return found, builder.or_(builder.sext(is_outside, _BYTES), found)
    permute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_BYTES, [_BYTES] * 3), "llvm.x86.avx512.vpermi2var.qi.512"
    )
    tables = [ir.Constant(_BYTES, TOKEN_OF[first : first + WIDTH].tolist()) for first in (0, WIDTH)]
    found = builder.call(permute, [tables[0], letters, tables[1]])
    return found, builder.or_(letters, found)


def _looked_up_by_halves(builder: Any, letters: Any) -> Any:
    """Return the tokens of bytes from ``@`` on, of either case; they are wrong, but below 128, for other bytes."""
    kind = ir.FunctionType(_LOOKUP, [_LOOKUP, _LOOKUP])
    shuffle = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pshuf.b")
    parts = [chosen(builder, (letters, letters), range(start, start + 32)) for start in (0, 32)]
    halves = []
    for first in (0x40, 0x50):
        table = ir.Constant(_LOOKUP, TOKEN_OF[first : first + 16].tolist() * 2)
        first_part, second_part = (builder.call(shuffle, [table, part]) for part in parts)
        halves.append(chosen(builder, (first_part, second_part), range(WIDTH)))
    is_second = builder.icmp_unsigned("!=", builder.and_(letters, _every(0x10)), _every(0))
    return builder.select(is_second, halves[1], halves[0])


@intrinsic  # type: ignore[untyped-decorator]
def translate(typing_context: Any, text: Any, tokens: Any) -> Any:
    """Write the tokens of 64 bytes; return masks of the bytes without one, of ambiguous residues, of lower case.

    The masks say nothing of use about bytes without a token but the first.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not is_wide():
            return cgutils.pack_array(builder, [_I64(1), _I64(0), _I64(0)])
        letters = load_at(builder, arguments[0], _BYTES)
        found, without = _looked_up(builder, letters)
        builder.store(found, builder.inttoptr(arguments[1], _BYTES.as_pointer()), align=1)
        is_without = builder.icmp_signed("<", without, _every(0))
        is_ambiguous = builder.icmp_signed(">=", found, _every(FIRST_AMBIGUOUS))
        is_lower = builder.icmp_unsigned("!=", builder.and_(letters, _every(LOWER)), _every(0))
        return cgutils.pack_array(builder, [_bits(builder, found) for found in (is_without, is_ambiguous, is_lower)])

    return types.UniTuple(types.uint64, 3)(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def header_masks(typing_context: Any, text: Any) -> Any:
    """Return masks, in 64 bytes, of what may end an identifier, of line feeds and of opening brackets."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        letters = load_at(builder, arguments[0], _BYTES)
        ends = builder.icmp_signed("<=", letters, _every(_BLANK))  # bytes from 128 on are negative
        feeds = builder.icmp_unsigned("==", letters, _every(_LINE_FEED))
        brackets = builder.icmp_unsigned("==", letters, _every(_BRACKET))
        return cgutils.pack_array(builder, [_bits(builder, found) for found in (ends, feeds, brackets)])

    return types.UniTuple(types.uint64, 3)(types.uint64), generate


def _finder(wanted: bytes) -> Any:
    """Return what gives a mask, in the 64 bytes from an address on, of those that are wanted."""

    @intrinsic  # type: ignore[untyped-decorator]
    def find(typing_context: Any, text: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            letters = load_at(builder, arguments[0], _BYTES)
            found = [builder.icmp_unsigned("==", letters, _every(byte)) for byte in wanted]
            return _bits(builder, functools.reduce(builder.or_, found))

        return types.uint64(types.uint64), generate

    return find


care_mask = _finder(NEED_CARE)
nucleotide_mask = _finder(bytes(NUCLEOTIDE_TOKENS))


@intrinsic  # type: ignore[untyped-decorator]
def first_bit(typing_context: Any, mask: Any) -> Any:
    """Return the number of the lowest bit that is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def num_bits(typing_context: Any, mask: Any) -> Any:
    """Return how many bits are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate
