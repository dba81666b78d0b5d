"""A text of whole records, scanned in one compiled pass: where everything stands, tokens, hashes, counts.

The text has LF line ends and begins with ``>``. Plain records are done here: letters with a token
of their own, in either case, and stops at the end, which no setting treats in different ways. A
record that holds anything else, or whose identifier is unusual, is only marked NOT_PLAIN; its
treatment is defined by the parser of proteinlm.sequence.fasta.

``text``, ``tokens`` and ``names`` of the private functions are addresses (``addresses`` says why), ``size`` is that
of the text.

Sequence lines are translated 64 bytes at a time where proteinlm.sequence.wide_bytes can for this
processor, and byte by byte elsewhere, at about a third of the speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from proteinlm.sequence.accession_bounds import accession_bounds
from proteinlm.sequence.addresses import address_of, byte_at, copy_bytes, put_byte
from proteinlm.sequence.alphabet import STANDARD, TOKENS
from proteinlm.sequence.record_blocks import FRAGMENT, NUCLEOTIDES
from proteinlm.sequence.wide_bytes import (
    FIRST_AMBIGUOUS,
    LOWER,
    NO_TOKEN,
    NUCLEOTIDE_TOKENS,
    TOKEN_OF,
    WIDTH,
    first_bit,
    header_masks,
    nucleotide_mask,
    num_bits,
    translate,
)
from proteinlm.sequence.xxh3 import xxh3_128

# a bit of the marks beside those of a RecordBlock
NOT_PLAIN = 128

_LINE_FEED, _GREATER, _BLANK, _TAB, _BRACKET, _STOP = b"\n> \t(*"
_JOINT = 1  # joins the headers of identical proteins in NCBI's nr
_IS_PREDICTABLE = np.isin(np.arange(256), [*STANDARD.tolist(), *(TOKENS.index(letter) for letter in "BUZO")])
_IS_NUCLEOTIDE = np.isin(np.arange(256), NUCLEOTIDE_TOKENS)
_FIRST_30 = np.uint64((1 << 30) - 1)
_FRAGMENT = np.frombuffer(b"(Fragment", dtype=np.uint8)
# rows of the counts
LINE, NUM_PREDICTABLE, NUM_AMBIGUOUS, NUM_LOWER = range(4)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _is_fragment_at(text: Any, size: Any, position: Any) -> Any:
    if position + len(_FRAGMENT) > size:
        return False
    num_equal = 1
    while num_equal < len(_FRAGMENT) and byte_at(text, position + num_equal) == _FRAGMENT[num_equal]:
        num_equal += 1
    return num_equal == len(_FRAGMENT)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _header(text: Any, size: Any, start: Any) -> Any:
    """Return the ends of the identifier and of the line, and whether the rest says (Fragment."""
    identifier_end, is_fragment = -1, False
    here = start
    while here + WIDTH <= size:
        ends, feeds, brackets = header_masks(text + np.uint64(here))
        if identifier_end < 0 and ends:
            identifier_end = here + first_bit(ends)
        if feeds:
            brackets &= (feeds & (~feeds + np.uint64(1))) - np.uint64(1)
        while brackets:
            position = here + first_bit(brackets)
            is_fragment |= -1 < identifier_end < position and _is_fragment_at(text, size, position)
            brackets &= brackets - np.uint64(1)
        if feeds:
            return identifier_end, here + first_bit(feeds), is_fragment
        here += WIDTH
    while byte_at(text, here) != _LINE_FEED:
        if identifier_end < 0 and (byte_at(text, here) <= _BLANK or byte_at(text, here) >= 128):
            identifier_end = here
        if byte_at(text, here) == _BRACKET and -1 < identifier_end < here:
            is_fragment |= _is_fragment_at(text, size, here)
        here += 1
    return (here if identifier_end < 0 else identifier_end), here, is_fragment


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _skipped(text: Any, size: Any, here: Any) -> Any:
    """Return where the next record begins and how many lines end before it."""
    num_lines = 0
    while here < size:
        if byte_at(text, here) == _LINE_FEED:
            num_lines += 1
            if here + 1 == size or byte_at(text, here + 1) == _GREATER:
                return here + 1, num_lines
        here += 1
    return here, num_lines


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _equal_lines(text: Any, size: Any, here: Any, tokens: Any, at: Any, width: Any) -> Any:
    """Translate lines of exactly ``width`` residues, at most 63, as long as one follows another.

    The processor takes up the next line before it knows what stands in this one, as its place depends on
    nothing that is found here.

    Returns:
        what _body does, but for whether the next record follows.
    """
    end = np.uint64(1) << np.uint64(width)
    before = end - np.uint64(1)
    num_lines = num_ambiguous = num_lower = 0
    while here + WIDTH <= size:
        without, ambiguous, lower = translate(text + np.uint64(here), tokens + np.uint64(at))
        if without & (end | before) != end or byte_at(text, here + width) != _LINE_FEED:
            break
        if (ambiguous | lower) & before:
            num_ambiguous += num_bits(ambiguous & before)
            num_lower += num_bits(lower & before)
        here += width + 1
        at += width
        num_lines += 1
    return here, at, num_lines, num_ambiguous, num_lower


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _letters(text: Any, size: Any, here: Any, tokens: Any, at: Any, wide: Any) -> Any:
    """Translate letters: up to 64, or one.

    Returns:
        how many, whether a byte without a token follows, and how many are ambiguous and in lower case.
    """
    if wide and here + WIDTH <= size:
        without, ambiguous, lower = translate(text + np.uint64(here), tokens + np.uint64(at))
        if not without:
            return WIDTH, False, num_bits(ambiguous), num_bits(lower)
        before = (without & (~without + np.uint64(1))) - np.uint64(1)
        return first_bit(without), True, num_bits(ambiguous & before), num_bits(lower & before)
    letter = byte_at(text, here)
    token = TOKEN_OF[letter]
    if token >= NO_TOKEN:
        return 0, True, 0, 0
    put_byte(tokens, at, token)
    return 1, False, np.int64(token >= FIRST_AMBIGUOUS), np.int64(letter & LOWER != 0)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _body(text: Any, size: Any, here: Any, tokens: Any, at: Any, wide: Any, width: Any) -> Any:
    """Translate sequence lines up to the next record or the first byte without a token.

    Args:
        width: residues of the last line so far behind which its sequence goes on; 0 if it did not fit into one step.

    Returns:
        where that is, whether it is the next record, the end of the tokens, the number of lines,
        of ambiguous residues and of residues in lower case, and the new ``width``.
    """
    num_lines = num_ambiguous = num_lower = 0
    line_start = here
    while here < size:
        if here == line_start:
            if wide and width:
                here, at, num_more, ambiguous, lower = _equal_lines(text, size, here, tokens, at, width)
                num_lines, num_ambiguous, num_lower = num_lines + num_more, num_ambiguous + ambiguous, num_lower + lower
                line_start = here
            if here == size or byte_at(text, here) == _GREATER:
                break
        length, is_stopped, ambiguous, lower = _letters(text, size, here, tokens, at, wide)
        here, at = here + length, at + length
        num_ambiguous, num_lower = num_ambiguous + ambiguous, num_lower + lower
        if is_stopped:
            if byte_at(text, here) != _LINE_FEED:
                return here, False, at, num_lines, num_ambiguous, num_lower, width
            # the last line of a record tells nothing of the others
            if here + 1 < size and byte_at(text, here + 1) != _GREATER:
                width = here - line_start if here - line_start < WIDTH else 0
            num_lines += 1
            here += 1
            line_start = here
    return here, True, at, num_lines, num_ambiguous, num_lower, width


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _stops(text: Any, size: Any, here: Any) -> Any:
    """Pass over stops and line ends; return what _body does of place and lines, and the number of stops."""
    num_stops = num_lines = 0
    while byte_at(text, here) == _STOP or byte_at(text, here) == _LINE_FEED:
        if byte_at(text, here) == _STOP:
            num_stops += 1
        else:
            num_lines += 1
            if here + 1 == size or byte_at(text, here + 1) == _GREATER:
                return here + 1, True, num_lines, num_stops
        here += 1
    return here, False, num_lines, num_stops


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _looks_like_nucleotides(tokens: Any, start: Any, end: Any) -> Any:
    """Say what looks_like_nucleotides of proteinlm.sequence.screening says."""
    # most proteins are told at once, where the loop ends at another place for each
    if end - start >= WIDTH and num_bits(~nucleotide_mask(tokens + np.uint64(start)) & _FIRST_30) > 3:
        return False
    num_others = 0
    for number in range(start, min(end, start + 30)):
        num_others += not _IS_NUCLEOTIDE[byte_at(tokens, number)]
        if num_others > 3:
            return False
    for number in range(start + 30, end):
        num_others += not _IS_NUCLEOTIDE[byte_at(tokens, number)]
    return end - start >= 30 and num_others <= (1 - 0.95) * (end - start)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _num_predictable(tokens: Any, start: Any, end: Any) -> Any:
    found = 0
    for number in range(start, end):
        found += _IS_PREDICTABLE[byte_at(tokens, number)]
    return found


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _size_of(text: Any) -> Any:
    # loops that have no other end stop there
    if len(text) and text[-1] != _LINE_FEED:
        raise ValueError("a text to scan ends with a line feed")
    return len(text)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def scan_text(
    text: Any, wide: Any, tokens: Any, identifiers: Any, places: Any, counts: Any, digests: Any, marks: Any
) -> Any:
    """Scan a text; what becomes of its records is that of the plain parser, for every FastaConfig.

    Args:
        text: uint8 (T,), whole records; it is a ValueError if it does not end with a line feed.
        wide: whether to translate 64 bytes at a time; needs is_wide().
        tokens: uint8, at least (T,); is filled.
        identifiers: uint8; is filled.
        places: int64 (3, M + 1), filled with where each record begins in the text, in the tokens and in the
            identifiers, and behind the last with their ends.
        counts: int64 (4, M), filled with the line of the header, from 0, and the numbers of residues that can
            be predicted, that are ambiguous and that are in lower case.
        digests: uint64 (2, M, 2), filled with both halves of the hashes of the tokens and of the accession.
        marks: uint8 (M,), filled with NUCLEOTIDES, FRAGMENT, NOT_PLAIN; a record that is not plain
            has neither tokens nor identifier.

    Returns:
        the numbers of records, -1 where there is no room for them or their identifiers, of lines, of records
        that are not plain, of stops that were taken away at the ends of the others, and of residues in lower case.
    """
    here = at = name = line = number = num_odd = all_stops = all_lower = width = 0
    places[:, 0] = 0
    size, text_at, tokens_at, names_at = _size_of(text), address_of(text), address_of(tokens), address_of(identifiers)
    while here < size:
        identifier_end, header_end, is_fragment = _header(text_at, size, here + 1)
        if number == len(marks) or name + identifier_end - here - 1 > len(identifiers):
            return -1, 0, 0, 0, 0
        is_plain = identifier_end > here + 1 and text[identifier_end] in (_BLANK, _LINE_FEED, _TAB, _JOINT)
        following, is_whole, end, num_lines, num_ambiguous, num_lower, width = _body(
            text_at, size, header_end + 1, tokens_at, at, wide, width
        )
        num_stops = 0
        if not is_whole:
            following, is_whole, num_stop_lines, num_stops = _stops(text_at, size, following)
            num_lines += num_stop_lines
        counts[LINE, number] = line
        if is_plain and is_whole:
            name_end = name + identifier_end - here - 1
            copy_bytes(names_at + np.uint64(name), text_at + np.uint64(here + 1), name_end - name)
            digests[0, number, 0], digests[0, number, 1] = xxh3_128(tokens_at, at, end)
            digests[1, number, 0], digests[1, number, 1] = _accession_hash(text_at, here + 1, identifier_end)
            counts[NUM_PREDICTABLE, number] = _num_predictable(tokens_at, at, end) if num_ambiguous else end - at
            counts[NUM_AMBIGUOUS, number], counts[NUM_LOWER, number] = num_ambiguous, num_lower
            marks[number] = FRAGMENT * is_fragment | NUCLEOTIDES * _looks_like_nucleotides(tokens_at, at, end)
            at, name = end, name_end
            all_stops += num_stops
            all_lower += num_lower
        else:
            following, num_skipped = _skipped(text_at, size, following) if not is_whole else (following, 0)
            num_lines += num_skipped
            counts[NUM_LOWER, number] = 0
            marks[number] = NOT_PLAIN
            num_odd += 1
        here = following
        line += 1 + num_lines
        number += 1
        places[0, number], places[1, number], places[2, number] = here, at, name
    return number, line, num_odd, all_stops, all_lower


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accession_hash(names: Any, start: Any, end: Any) -> Any:
    accession_start, accession_end = accession_bounds(names, start, end)
    return xxh3_128(names, accession_start, accession_end)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def measure_records(
    numbers: Any,
    tokens: Any,
    offsets: Any,
    identifiers: Any,
    identifier_offsets: Any,
    counts: Any,
    digests: Any,
    marks: Any,
) -> None:
    """Do for the records with these numbers what scan_text does for plain ones.

    ``counts``, but for lines and lower case, and ``digests`` are filled, NUCLEOTIDES is added to ``marks``.
    """
    tokens_at, names_at = address_of(tokens), address_of(identifiers)
    for number in numbers:
        start, end = offsets[number], offsets[number + 1]
        name_start, name_end = identifier_offsets[number], identifier_offsets[number + 1]
        digests[0, number, 0], digests[0, number, 1] = xxh3_128(tokens_at, start, end)
        digests[1, number, 0], digests[1, number, 1] = _accession_hash(names_at, name_start, name_end)
        counts[NUM_PREDICTABLE, number] = _num_predictable(tokens_at, start, end)
        num_standard = 0
        for place in range(start, end):
            num_standard += tokens[place] < FIRST_AMBIGUOUS
        counts[NUM_AMBIGUOUS, number] = end - start - num_standard
        marks[number] |= NUCLEOTIDES * _looks_like_nucleotides(tokens_at, start, end)
