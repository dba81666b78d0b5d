"""Which records of a block go where, and their bytes one after the other, in compiled loops.

A loop that is done in less time than a thread waits to get the interpreter's lock back keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from proteinlm.sequence.addresses import address_of, copy_bytes
from proteinlm.sequence.token_counts import TokenCounter, add_counts, pairs_of
from proteinlm.sequence.token_planes import can_count_planes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from proteinlm.sequence.token_counts import Counters


def group_records(
    groups: NDArray[np.uint8], num_groups: int, lengths: NDArray[np.int64], firsts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sort records by group; those of one group stay in their order.

    Args:
        groups: uint8 (K,), the group of each record, below ``num_groups``.
        num_groups: G.
        lengths: int64 (K,), their residues.
        firsts: int64 (G,), how many records each group has already.

    Returns:
        int64 (K,) the records of group 0, then those of group 1, and so on; int64 (G + 1,) where the groups
        begin in it, and the end; int64 (K,), for each of these, residues of its group up to its end;
        int64 (K,), for each record in its old place, its number within its group.
    """
    order, ends, places = (np.empty(len(groups), dtype=np.int64) for _ in range(3))
    bounds = np.zeros(num_groups + 1, dtype=np.int64)
    _group_records(groups, lengths, firsts, order, bounds, ends, places)
    return order, bounds, ends, places


@njit(cache=True)  # type: ignore[untyped-decorator]
def _group_records(
    groups: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    firsts: NDArray[np.int64],
    order: NDArray[np.int64],
    bounds: NDArray[np.int64],
    ends: NDArray[np.int64],
    places: NDArray[np.int64],
) -> None:
    for group in groups:
        bounds[group + 1] += 1
    for group in range(len(firsts)):
        bounds[group + 1] += bounds[group]
    following, sums = bounds[:-1].copy(), np.zeros(len(firsts), np.int64)
    for record in range(len(groups)):
        group = groups[record]
        place = following[group]
        following[group] += 1
        sums[group] += lengths[record]
        order[place], ends[place] = record, sums[group]
        places[record] = firsts[group] + place - bounds[group]


def size_of_records(offsets: NDArray[np.int64], numbers: NDArray[np.int64]) -> int:
    """Return the sum of the sizes of some records; record i goes from ``offsets[i]`` to ``offsets[i + 1]``."""
    return int((offsets[numbers + 1] - offsets[numbers]).sum())


@njit(cache=True)  # type: ignore[untyped-decorator]
def copy_records(
    values: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    numbers: NDArray[np.int64],
    target: NDArray[np.uint8],
    ends: NDArray[np.int64],
    start: int,
) -> None:
    """Copy some records, one after the other.

    Args:
        values: of all records.
        offsets: (N + 1,), record i is ``values[offsets[i]:offsets[i + 1]]``.
        numbers: (M,), which ones, rising.
        target: is filled from its beginning.
        ends: (M,), filled with where each record ends in ``target``, counted from ``start``.
        start: where ``target`` begins.
    """
    done = first = 0
    while first < len(numbers):
        stop = first + 1
        # neighbours are copied at once
        while stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1:
            stop += 1
        begin, end = offsets[numbers[first]], offsets[numbers[stop - 1] + 1]
        copy_bytes(address_of(target) + np.uint64(done), address_of(values) + np.uint64(begin), end - begin)
        for number in range(first, stop):
            ends[number] = start + done + offsets[numbers[number] + 1] - begin
        done += end - begin
        first = stop


def gather_tokens(
    tokens: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    numbers: NDArray[np.int64],
    ends: NDArray[np.int64],
    start: int,
    counter: TokenCounter,
) -> NDArray[np.uint8]:
    """Return the tokens of some records, one after the other, and count them; arguments as for ``copy_records``."""
    target = np.empty(size_of_records(offsets, numbers), dtype=np.uint8)
    counted = pairs_of(target), can_count_planes(), counter.counters_for(len(target))
    _gather_tokens(tokens, offsets, numbers, target, ends, start, counted)
    return target


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _gather_tokens(
    tokens: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    numbers: NDArray[np.int64],
    target: NDArray[np.uint8],
    ends: NDArray[np.int64],
    start: int,
    counted: tuple[NDArray[np.uint16], bool, Counters],
) -> None:
    copy_records(tokens, offsets, numbers, target, ends, start)
    add_counts(target, *counted)
