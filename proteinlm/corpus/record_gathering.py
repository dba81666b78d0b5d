"""Which records of a block go where, and their bytes one after the other, in compiled loops.

A loop that is done in less time than a thread waits to get the interpreter's lock back keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from proteinlm.corpus.token_account import TokenAccount, take_in
from proteinlm.sequence.addresses import address_of, copy_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

# tokens that are copied, counted and hashed before the next: few enough for a core's nearest caches
_TAKEN_IN_AT_ONCE = 1 << 15


def group_records(
    groups: NDArray[np.uint8], numbers: NDArray[np.int64], offsets: NDArray[np.int64], firsts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sort some records of a block by group; those of one group stay in their order.

    Args:
        groups: uint8 (K,), the group of each record, below G.
        numbers: int64 (K,), the records, rising.
        offsets: int64 (N + 1,), record i has the residues ``offsets[i]`` to ``offsets[i + 1]``.
        firsts: int64 (G,), how many records each group has already.

    Returns:
        int64 (K,) places in ``numbers`` of the records of group 0, then of group 1, and so on; int64 (G + 1,) where
        the groups begin in it, and the end; int64 (K,), for each of these, residues of its group up to its end;
        int64 (K,), for each record in its old place, its number within its group.
    """
    order, ends, places = (np.empty(len(groups), dtype=np.int64) for _ in range(3))
    bounds = np.zeros(len(firsts) + 1, dtype=np.int64)
    _group_records(groups, numbers, offsets, firsts, order, bounds, ends, places)
    return order, bounds, ends, places


@njit(cache=True)  # type: ignore[untyped-decorator]
def _group_records(
    groups: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    offsets: NDArray[np.int64],
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
        sums[group] += offsets[numbers[record] + 1] - offsets[numbers[record]]
        order[place], ends[place] = record, sums[group]
        places[record] = firsts[group] + place - bounds[group]


@njit(cache=True)  # type: ignore[untyped-decorator]
def fill_ends(offsets: NDArray[np.int64], numbers: NDArray[np.int64], ends: NDArray[np.int64], start: int) -> int:
    """Tell where some records end that are to stand one after the other.

    Args:
        offsets: (N + 1,), record i goes from ``offsets[i]`` to ``offsets[i + 1]``.
        numbers: (M,), which ones.
        ends: (M,), is filled.
        start: where the first of them begins.

    Returns:
        the sum of their sizes.
    """
    end = start
    for place in range(len(numbers)):
        end += offsets[numbers[place] + 1] - offsets[numbers[place]]
        ends[place] = end
    return end - start


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _end_of_run(numbers: NDArray[np.int64], first: int) -> int:
    """Return up to where the numbers from ``first`` on follow each other without a gap."""
    stop = first + 1
    while stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1:
        stop += 1
    return stop


@njit(cache=True)  # type: ignore[untyped-decorator]
def copy_records(
    values: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    numbers: NDArray[np.int64],
    target: NDArray[np.uint8],
) -> None:
    """Copy some records, one after the other.

    Args:
        values: of all records.
        offsets: (N + 1,), record i is ``values[offsets[i]:offsets[i + 1]]``.
        numbers: (M,), which ones, rising.
        target: is filled from its beginning.
    """
    done = first = 0
    while first < len(numbers):
        stop = _end_of_run(numbers, first)
        begin, end = offsets[numbers[first]], offsets[numbers[stop - 1] + 1]
        copy_bytes(address_of(target) + np.uint64(done), address_of(values) + np.uint64(begin), end - begin)
        done += end - begin
        first = stop


def gather_tokens(
    tokens: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    numbers: NDArray[np.int64],
    ends: NDArray[np.int64],
    account: TokenAccount,
) -> NDArray[np.uint8]:
    """Return the tokens of some records, one after the other, and take them into an account.

    Arguments are as for ``copy_records`` and ``fill_ends``; ends are counted from the first token of the account.
    """
    target = np.empty(fill_ends(offsets, numbers, ends, len(account)), dtype=np.uint8)
    with account.taking_in(len(target)) as accounting:
        _gather_tokens(tokens, offsets, numbers, target, accounting)
    return target


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _gather_tokens(tokens: Any, offsets: Any, numbers: Any, target: Any, accounting: Any) -> None:
    source, into = address_of(tokens), address_of(target)
    done = num_taken = first = 0
    while first < len(numbers):
        stop = _end_of_run(numbers, first)
        begin, end = offsets[numbers[first]], offsets[numbers[stop - 1] + 1]
        for place in range(begin, end, _TAKEN_IN_AT_ONCE):
            size = min(_TAKEN_IN_AT_ONCE, end - place)
            copy_bytes(into + np.uint64(done), source + np.uint64(place), size)
            done += size
            if done - num_taken >= _TAKEN_IN_AT_ONCE:
                take_in(into + np.uint64(num_taken), _TAKEN_IN_AT_ONCE, accounting)
                num_taken += _TAKEN_IN_AT_ONCE
        first = stop
    take_in(into + np.uint64(num_taken), done - num_taken, accounting)
