"""Hashes of names, many at a time, compiled: of the columns of a table, of the identifiers of a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from proteinlm.sequence.accession_bounds import accession_bounds
from proteinlm.sequence.addresses import address_of
from proteinlm.sequence.xxh3 import swap64, xxh3_64, xxh3_128

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LINE_FEED, _CARRIAGE_RETURN, _TAB = 10, 13, 9
_LEVELS = tuple(np.frombuffer(word, dtype=np.uint8) for word in (b"UniRef50_", b"UniRef90_", b"UniRef100_"))


def hash_rows(
    text: NDArray[np.uint8], num_columns: int, group: int, member: int, seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the hashes of the groups and of the members of a table's rows.

    Args:
        text: whole lines, each ended by a line feed, their columns parted by tabs.
        num_columns: which every row must have.
        group: the column of the group, from 0; no row may leave it or the member empty.
        member: the column of the member.
        seed: of the groups' hash.

    Returns:
        uint64 (N,), xxh3_64 of the groups' accessions, and uint64 (N,), low half of the xxh3_128 of the
        members' accessions. Where N is below the number of lines, the next row is not as it must be.
    """
    num_rows = int(np.count_nonzero(text == _LINE_FEED))
    groups, members = np.empty(num_rows, dtype=np.uint64), np.empty(num_rows, dtype=np.uint64)
    num_good = _hash_rows(text, num_columns, group, member, np.uint64(seed), groups, members)
    return groups[:num_good], members[:num_good]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _hash_rows(text: Any, num_columns: Any, group: Any, member: Any, seed: Any, groups: Any, members: Any) -> Any:
    position, base = 0, address_of(text)
    for row in range(len(groups)):
        column = 0
        start = position
        group_start = group_end = member_start = member_end = 0
        is_line = True
        while is_line:
            letter = text[position]
            if letter in (_TAB, _LINE_FEED):
                end = position
                if letter == _LINE_FEED:
                    is_line = False
                    if end > start and text[end - 1] == _CARRIAGE_RETURN:
                        end -= 1
                if column == group:
                    group_start, group_end = start, end
                if column == member:
                    member_start, member_end = start, end
                column += 1
                start = position + 1
            position += 1
        if column != num_columns or group_start == group_end or member_start == member_end:
            return row
        group_start, group_end = accession_bounds(base, group_start, group_end)
        groups[row] = xxh3_64(base, group_start, group_end, seed)
        member_start, member_end = accession_bounds(base, member_start, member_end)
        members[row] = xxh3_128(base, member_start, member_end)[0]
    return len(groups)


def hash_accessions(
    identifiers: NDArray[np.uint8], offsets: NDArray[np.int64], which: NDArray[np.int64], seed: int
) -> NDArray[np.uint64]:
    """Return the seeded xxh3_64, uint64 (K,), of the accessions of some records of a block.

    Args:
        identifiers: their UTF-8 bytes, one after the other.
        offsets: (N + 1,), identifier i is ``identifiers[offsets[i]:offsets[i + 1]]``.
        which: (K,), the records.
        seed: of the hash.
    """
    found = np.empty(len(which), dtype=np.uint64)
    _hash_accessions(identifiers, offsets, which, np.uint64(seed), found)
    return found


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _hash_accessions(identifiers: Any, offsets: Any, which: Any, seed: Any, found: Any) -> None:
    base = address_of(identifiers)
    for place, record in enumerate(which):
        start, end = accession_bounds(base, offsets[record], offsets[record + 1])
        found[place] = xxh3_64(base, start, end, seed)


def are_of_uniref(
    identifiers: NDArray[np.uint8], offsets: NDArray[np.int64], which: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Say, bool (K,), which of some records have an identifier of UniRef; arguments as ``hash_accessions``."""
    found = np.zeros(len(which), dtype=np.bool_)
    for level in _LEVELS:
        _find_opening(identifiers, offsets, which, level, found)
    return found


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _find_opening(identifiers: Any, offsets: Any, which: Any, opening: Any, found: Any) -> None:
    for place, record in enumerate(which):
        start = offsets[record]
        # what follows the opening is the name of the cluster
        if offsets[record + 1] - start > len(opening):
            is_same = True
            for index in range(len(opening)):
                is_same &= identifiers[start + index] == opening[index]
            found[place] |= is_same


def hash_pairs(pairs: NDArray[np.uint64], rows: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return the seeded xxh3_64, uint64 (K,), of some of the 128-bit digests (N, 2), written big end first."""
    found = np.empty(len(rows), dtype=np.uint64)
    _hash_pairs(pairs, rows, np.uint64(seed), found)
    return found


# done in less time than a thread waits to get the interpreter's lock back
@njit(cache=True)  # type: ignore[untyped-decorator]
def _hash_pairs(pairs: Any, rows: Any, seed: Any, found: Any) -> None:
    text = np.empty(2, np.uint64)
    for place in range(len(rows)):
        low, high = pairs[rows[place]]
        text[0], text[1] = swap64(high), swap64(low)
        found[place] = xxh3_64(address_of(text), 0, 16, seed)
