"""Packing in compiled loops: proteins are cut into pieces, and pieces put into windows by first fit.

Import it inside the function that needs it: loading numba takes longer than most commands.
"""

from __future__ import annotations

import numpy
from numba import njit
from numpy.typing import NDArray

Integers = NDArray[numpy.signedinteger]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def cut_long(
    order: Integers, lengths: Integers, special_tokens: int, capacity: int, like: Integers
) -> tuple[Integers, Integers, Integers]:
    """Return protein, first token and end of every piece where only proteins longer than a window are cut.

    Args:
        order: (N,), in which order to take the proteins.
        lengths: residues of each protein, by number.
        special_tokens: tokens that are added to each protein.
        capacity: positions in a window.
        like: of the type that the results are to have.
    """
    num_pieces = len(order)
    for number in order:
        if lengths[number] + special_tokens > capacity:
            num_pieces += (lengths[number] + special_tokens - 1) // capacity
    sequence = numpy.empty(num_pieces, like.dtype)
    begin, end = numpy.empty_like(sequence), numpy.empty_like(sequence)
    piece = 0
    for number in order:
        length, first = lengths[number] + special_tokens, 0
        while first < length:
            sequence[piece], begin[piece], end[piece] = number, first, min(length, first + capacity)
            piece += 1
            first += capacity
    return sequence, begin, end


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def cut_equally(
    order: Integers, lengths: Integers, special_tokens: int, capacity: int, like: Integers
) -> tuple[Integers, Integers, Integers, NDArray[numpy.int64]]:
    """Return the pieces of proteins that follow each other in full windows, wherever that cuts them.

    Arguments and the first three results are those of ``cut_long``; the fourth, int64 (W + 1,), says
    where the pieces of each window begin.
    """
    total = 0
    for number in order:
        total += lengths[number] + special_tokens
    window_offsets = numpy.zeros((total + capacity - 1) // capacity + 1, numpy.int64)
    # each protein has a last piece, and each window but the last another that ends where it does
    most = len(order) + total // capacity
    sequence = numpy.empty(most, like.dtype)
    begin, end = numpy.empty_like(sequence), numpy.empty_like(sequence)
    piece = window = 0
    room = capacity
    for number in order:
        length, first = lengths[number] + special_tokens, 0
        while first < length:
            stop = min(length, first + room)
            sequence[piece], begin[piece], end[piece] = number, first, stop
            piece += 1
            room -= stop - first
            first = stop
            if room == 0:
                room = capacity
                window += 1
                window_offsets[window] = piece
    window_offsets[-1] = piece
    return sequence[:piece], begin[:piece], end[:piece], window_offsets


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def first_fit(sizes: Integers, capacity: int) -> NDArray[numpy.int32]:
    """Return for each size the first window that has room for it, int32 (P,).

    A tree over the room left in each window finds it in O(log W). Node i has the children 2 i and
    2 i + 1, and holds the larger of their rooms.

    Args:
        sizes: (P,), each from 1 to ``capacity``.
        capacity: positions in a window, below 2 ** 31.
    """
    total = 0
    for size in sizes:
        total += size
    # two windows together hold more than one can, so there are fewer than 2 total / capacity + 1
    most = min(len(sizes), 2 * total // capacity + 1)
    leaves = 1
    while leaves < most:
        leaves *= 2
    room = numpy.full(2 * leaves, capacity, numpy.int32)
    windows = numpy.empty(len(sizes), numpy.int32)
    for piece in range(len(sizes)):
        size = sizes[piece]
        node = 1
        while node < leaves:
            node = 2 * node + (room[2 * node] < size)
        windows[piece] = node - leaves
        room[node] -= size
        while node > 1:
            node //= 2
            left = max(room[2 * node], room[2 * node + 1])
            if room[node] == left:
                break
            room[node] = left
    return windows


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def window_offsets_of(windows: NDArray[numpy.int32]) -> NDArray[numpy.int64]:
    """Return where the pieces of each window begin once they stand window by window, int64 (W + 1,)."""
    num_windows = 0
    for window in windows:
        num_windows = max(num_windows, window + 1)
    offsets = numpy.zeros(num_windows + 1, numpy.int64)
    for window in windows:
        offsets[window + 1] += 1
    return numpy.cumsum(offsets)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def in_windows(values: Integers, windows: NDArray[numpy.int32], window_offsets: NDArray[numpy.int64]) -> Integers:
    """Return the values of pieces window by window, in each window as they stood.

    Args:
        values: (P,).
        windows: int32 (P,), window of each piece.
        window_offsets: int64 (W + 1,), where each window's pieces begin in the result.
    """
    places = window_offsets.copy()
    result = numpy.empty_like(values)
    for piece in range(len(values)):
        window = windows[piece]
        result[places[window]] = values[piece]
        places[window] += 1
    return result
