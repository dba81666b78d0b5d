"""A text of whole records, scanned in one compiled pass: where everything stands, tokens, hashes, counts.

The text has LF line ends and begins with ``>``. Plain records are done here: letters with a token
of their own, in either case, and stops at the end, which no setting treats in different ways. A
record that holds anything else, or whose identifier is unusual, is only marked NOT_PLAIN; its
treatment is defined by the parser of proteinlm.sequence.fasta.

Sequence lines are translated 64 bytes at a time where the processor looks up 64 bytes at once
(AVX-512 VBMI) or 32 (AVX2), and byte by byte elsewhere, at about a third of the speed.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from proteinlm.sequence.alphabet import STANDARD, TOKENS
from proteinlm.sequence.record_blocks import FRAGMENT, NUCLEOTIDES
from proteinlm.sequence.xxh3 import address_of, xxh3_128

# a bit of the marks beside those of a RecordBlock
NOT_PLAIN = 128

_WIDTH = 64  # a usual line and its end: one step
_LINE_FEED, _GREATER, _BLANK, _TAB, _BAR, _BRACKET, _STOP = b"\n> \t|(*"
_JOINT = 1  # joins the headers of identical proteins in NCBI's nr
_UPPER_CASE = "ABCDEFGHIKLMNOPQRSTUVWXYZ"  # J has no token
_NO_TOKEN = 128
_TOKEN_OF = np.full(256, _NO_TOKEN, dtype=np.uint8)
for _letter in _UPPER_CASE:
    _TOKEN_OF[[ord(_letter), ord(_letter.lower())]] = TOKENS.index(_letter)
_LOWER = 0x20  # the bit that only letters in lower case have
# the standard residues stand first, so one comparison tells the others
_FIRST_AMBIGUOUS = int(STANDARD.max()) + 1
_IS_PREDICTABLE = np.isin(np.arange(256), [*STANDARD.tolist(), *(TOKENS.index(letter) for letter in "BUZO")])
_IS_NUCLEOTIDE = np.isin(np.arange(256), [TOKENS.index(letter) for letter in "ACGTUN"])
_FRAGMENT = np.frombuffer(b"(Fragment", dtype=np.uint8)

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_I8, _WIDTH)
_LOOKUP = ir.VectorType(_I8, 32)


@functools.cache
def is_wide() -> bool:
    """Say whether 64 bytes can be translated at once here."""
    return has_feature("avx2")


def has_feature(name: str) -> bool:
    """Say whether code is generated for a feature, which NUMBA_CPU_FEATURES may set below what the processor has."""
    return f"+{name}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def _every(value: int) -> Any:
    return ir.Constant(_BYTES, [value] * _WIDTH)


def _bits(builder: Any, found: Any) -> Any:
    """Return a mask, the first byte's bit lowest, of a vector of truths."""
    return builder.bitcast(found, _I64)


def _vector_at(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, _BYTES.as_pointer()), align=1)


def _chosen(builder: Any, vectors: tuple[Any, Any], numbers: range) -> Any:
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
    tables = [ir.Constant(_BYTES, _TOKEN_OF[first : first + _WIDTH].tolist()) for first in (0, _WIDTH)]
    found = builder.call(permute, [tables[0], letters, tables[1]])
    return found, builder.or_(letters, found)


def _looked_up_by_halves(builder: Any, letters: Any) -> Any:
    """Return the tokens of bytes from ``@`` on, of either case; they are wrong, but below 128, for other bytes."""
    kind = ir.FunctionType(_LOOKUP, [_LOOKUP, _LOOKUP])
    shuffle = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pshuf.b")
    parts = [_chosen(builder, (letters, letters), range(start, start + 32)) for start in (0, 32)]
    halves = []
    for first in (0x40, 0x50):
        table = ir.Constant(_LOOKUP, _TOKEN_OF[first : first + 16].tolist() * 2)
        first_part, second_part = (builder.call(shuffle, [table, part]) for part in parts)
        halves.append(_chosen(builder, (first_part, second_part), range(_WIDTH)))
    is_second = builder.icmp_unsigned("!=", builder.and_(letters, _every(0x10)), _every(0))
    return builder.select(is_second, halves[1], halves[0])


@intrinsic  # type: ignore[untyped-decorator]
def _translate(typing_context: Any, text: Any, tokens: Any) -> Any:
    """Write the tokens of 64 bytes; return masks of the bytes without one, of ambiguous residues, of lower case.

    The masks say nothing of use about bytes without a token but the first.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not is_wide():
            return cgutils.pack_array(builder, [_I64(1), _I64(0), _I64(0)])
        letters = _vector_at(builder, arguments[0])
        found, without = _looked_up(builder, letters)
        builder.store(found, builder.inttoptr(arguments[1], _BYTES.as_pointer()), align=1)
        is_without = builder.icmp_signed("<", without, _every(0))
        is_ambiguous = builder.icmp_signed(">=", found, _every(_FIRST_AMBIGUOUS))
        is_lower = builder.icmp_unsigned("!=", builder.and_(letters, _every(_LOWER)), _every(0))
        return cgutils.pack_array(builder, [_bits(builder, found) for found in (is_without, is_ambiguous, is_lower)])

    return types.UniTuple(types.uint64, 3)(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _header_masks(typing_context: Any, text: Any) -> Any:
    """Return masks, in 64 bytes, of what may end an identifier, of line feeds and of opening brackets."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        letters = _vector_at(builder, arguments[0])
        ends = builder.icmp_signed("<=", letters, _every(_BLANK))  # bytes from 128 on are negative
        feeds = builder.icmp_unsigned("==", letters, _every(_LINE_FEED))
        brackets = builder.icmp_unsigned("==", letters, _every(_BRACKET))
        return cgutils.pack_array(builder, [_bits(builder, found) for found in (ends, feeds, brackets)])

    return types.UniTuple(types.uint64, 3)(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy(typing_context: Any, source: Any, target: Any) -> Any:
    """Copy 64 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = builder.inttoptr(arguments[1], _BYTES.as_pointer())
        builder.store(_vector_at(builder, arguments[0]), target, align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _first_bit(typing_context: Any, mask: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _num_bits(typing_context: Any, mask: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _is_fragment_at(text: Any, position: Any) -> Any:
    if position + len(_FRAGMENT) > len(text):
        return False
    num_equal = 1
    while num_equal < len(_FRAGMENT) and text[position + num_equal] == _FRAGMENT[num_equal]:
        num_equal += 1
    return num_equal == len(_FRAGMENT)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _header(text: Any, start: Any) -> Any:
    """Return the ends of the identifier and of the line, and whether the rest says (Fragment."""
    base, size = address_of(text), len(text)
    identifier_end, is_fragment = -1, False
    here = start
    while here + _WIDTH <= size:
        ends, feeds, brackets = _header_masks(base + np.uint64(here))
        if identifier_end < 0 and ends:
            identifier_end = here + _first_bit(ends)
        if feeds:
            brackets &= (feeds & (~feeds + np.uint64(1))) - np.uint64(1)
        while brackets:
            position = here + _first_bit(brackets)
            is_fragment |= -1 < identifier_end < position and _is_fragment_at(text, position)
            brackets &= brackets - np.uint64(1)
        if feeds:
            return identifier_end, here + _first_bit(feeds), is_fragment
        here += _WIDTH
    while text[here] != _LINE_FEED:
        if identifier_end < 0 and (text[here] <= _BLANK or text[here] >= 128):
            identifier_end = here
        if text[here] == _BRACKET and -1 < identifier_end < here:
            is_fragment |= _is_fragment_at(text, here)
        here += 1
    return (here if identifier_end < 0 else identifier_end), here, is_fragment


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accession(text: Any, start: Any, end: Any) -> Any:
    """Return start and end of the accession, as ``accession`` of proteinlm.sequence.fasta finds it."""
    if end - start < 5 or text[start + 2] != _BAR:
        return start, end
    first, second = text[start], text[start + 1]
    if not ((first == ord("s") and second == ord("p")) or (first == ord("t") and second == ord("r"))):
        return start, end
    bar = -1
    for position in range(start + 3, end):
        if text[position] == _BAR:
            if bar >= 0:
                return start, end
            bar = position
    return (start + 3, bar) if bar > start + 3 else (start, end)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _copied(text: Any, start: Any, end: Any, target: Any, at: Any) -> Any:
    """Copy ``text[start:end]`` and return where it ends; ``target`` may be written for 64 bytes on."""
    here = start
    while here < end and here + _WIDTH <= len(text):
        _copy(address_of(text) + np.uint64(here), address_of(target) + np.uint64(at + here - start))
        here += _WIDTH
    while here < end:
        target[at + here - start] = text[here]
        here += 1
    return at + end - start


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _skipped(text: Any, here: Any) -> Any:
    """Return where the next record begins and how many lines end before it."""
    num_lines = 0
    while here < len(text):
        if text[here] == _LINE_FEED:
            num_lines += 1
            if here + 1 == len(text) or text[here + 1] == _GREATER:
                return here + 1, num_lines
        here += 1
    return here, num_lines


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _body(text: Any, here: Any, tokens: Any, at: Any, wide: Any) -> Any:
    """Translate sequence lines up to the next record or the first byte without a token.

    Returns:
        where that is, whether it is the next record, the end of the tokens, the number of lines,
        of ambiguous residues and of residues in lower case.
    """
    source, target, size = address_of(text), address_of(tokens), len(text)
    num_lines = num_ambiguous = num_lower = 0
    is_line_start = True
    while here < size:
        if is_line_start and text[here] == _GREATER:
            break
        is_line_start = False
        if wide and here + _WIDTH <= size:
            without, ambiguous, lower = _translate(source + np.uint64(here), target + np.uint64(at))
            length = _WIDTH
            if without:
                length = _first_bit(without)
                before = (np.uint64(1) << np.uint64(length)) - np.uint64(1)
                ambiguous &= before
                lower &= before
            if ambiguous | lower:
                num_ambiguous += _num_bits(ambiguous)
                num_lower += _num_bits(lower)
            here += length
            at += length
            if not without:
                continue
        else:
            token = _TOKEN_OF[text[here]]
            if token < _NO_TOKEN:
                tokens[at] = token
                num_ambiguous += 1 if token >= _FIRST_AMBIGUOUS else 0
                num_lower += 1 if text[here] & _LOWER else 0
                here += 1
                at += 1
                continue
        if text[here] != _LINE_FEED:
            return here, False, at, num_lines, num_ambiguous, num_lower
        num_lines += 1
        here += 1
        is_line_start = True
    return here, True, at, num_lines, num_ambiguous, num_lower


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _stops(text: Any, here: Any) -> Any:
    """Pass over stops and line ends; return what _body does of place and lines, and the number of stops."""
    num_stops = num_lines = 0
    while text[here] == _STOP or text[here] == _LINE_FEED:
        if text[here] == _STOP:
            num_stops += 1
        else:
            num_lines += 1
            if here + 1 == len(text) or text[here + 1] == _GREATER:
                return here + 1, True, num_lines, num_stops
        here += 1
    return here, False, num_lines, num_stops


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _looks_like_nucleotides(tokens: Any, start: Any, end: Any) -> Any:
    """Say what looks_like_nucleotides of proteinlm.sequence.screening says."""
    num_others = 0
    for number in range(start, min(end, start + 30)):
        num_others += not _IS_NUCLEOTIDE[tokens[number]]
        if num_others > 3:
            return False
    for number in range(start + 30, end):
        num_others += not _IS_NUCLEOTIDE[tokens[number]]
    return end - start >= 30 and num_others <= (1 - 0.95) * (end - start)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _num_predictable(tokens: Any, start: Any, end: Any) -> Any:
    found = 0
    for number in range(start, end):
        found += _IS_PREDICTABLE[tokens[number]]
    return found


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def scan_text(
    text: Any, wide: Any, tokens: Any, identifiers: Any, places: Any, counts: Any, hashes: Any, marks: Any
) -> Any:
    """Scan a text; what becomes of its records is that of the plain parser, for every FastaConfig.

    Args:
        text: uint8 (T,), whole records.
        wide: whether to translate 64 bytes at a time; needs is_wide().
        tokens: uint8, at least (T,); is filled.
        identifiers: uint8, at least (T,); is filled.
        places: int64 (M + 1, 3), filled with each record's start in the text, in the tokens and in the
            identifiers, and behind the last with their ends.
        counts: int64 (M, 4), filled with the number of the header's line, from 0, of residues that can be
            predicted, of ambiguous residues and of residues in lower case.
        hashes: uint64 (M, 4), filled with both halves of the hash of the tokens and of the accession.
        marks: uint8 (M,), filled with NUCLEOTIDES, FRAGMENT, NOT_PLAIN; a record that is not plain
            has neither tokens nor identifier.

    Returns:
        the numbers of records, -1 where there is no room for them, of lines, of stops that were taken
        away at the ends of plain records, and of residues in lower case.
    """
    here = at = name = line = number = all_stops = all_lower = 0
    places[0] = 0
    while here < len(text):
        if number == len(marks):
            return -1, 0, 0, 0
        identifier_end, header_end, is_fragment = _header(text, here + 1)
        is_plain = identifier_end > here + 1 and text[identifier_end] in (_BLANK, _LINE_FEED, _TAB, _JOINT)
        following, is_whole, end, num_lines, num_ambiguous, num_lower = _body(text, header_end + 1, tokens, at, wide)
        num_stops = 0
        if not is_whole:
            following, is_whole, num_stop_lines, num_stops = _stops(text, following)
            num_lines += num_stop_lines
        counts[number, 0] = line
        if is_plain and is_whole:
            name_end = _copied(text, here + 1, identifier_end, identifiers, name)
            _hash_record(tokens, at, end, identifiers, name, name_end, hashes[number])
            counts[number, 1] = _num_predictable(tokens, at, end) if num_ambiguous else end - at
            counts[number, 2], counts[number, 3] = num_ambiguous, num_lower
            marks[number] = FRAGMENT * is_fragment | NUCLEOTIDES * _looks_like_nucleotides(tokens, at, end)
            at, name = end, name_end
            all_stops += num_stops
            all_lower += num_lower
        else:
            following, num_skipped = _skipped(text, following) if not is_whole else (following, 0)
            num_lines += num_skipped
            counts[number, 3] = 0
            marks[number] = NOT_PLAIN
        here = following
        line += 1 + num_lines
        number += 1
        places[number, 0], places[number, 1], places[number, 2] = here, at, name
    return number, line, all_stops, all_lower


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _hash_record(tokens: Any, start: Any, end: Any, names: Any, name_start: Any, name_end: Any, hashes: Any) -> None:
    accession_start, accession_end = _accession(names, name_start, name_end)
    hashes[0], hashes[1] = xxh3_128(tokens, start, end)
    hashes[2], hashes[3] = xxh3_128(names, accession_start, accession_end)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def measure_records(
    numbers: Any,
    tokens: Any,
    offsets: Any,
    identifiers: Any,
    identifier_offsets: Any,
    counts: Any,
    hashes: Any,
    marks: Any,
) -> None:
    """Do for the records with these numbers what scan_text does for plain ones.

    ``counts``, but for lines and lower case, and ``hashes`` are filled, NUCLEOTIDES is added to ``marks``.
    """
    for number in numbers:
        start, end = offsets[number], offsets[number + 1]
        _hash_record(
            tokens, start, end, identifiers, identifier_offsets[number], identifier_offsets[number + 1], hashes[number]
        )
        counts[number, 1] = _num_predictable(tokens, start, end)
        num_standard = 0
        for place in range(start, end):
            num_standard += tokens[place] < _FIRST_AMBIGUOUS
        counts[number, 2] = end - start - num_standard
        marks[number] |= NUCLEOTIDES * _looks_like_nucleotides(tokens, start, end)
