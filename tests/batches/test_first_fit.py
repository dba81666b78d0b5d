"""The compiled loops of packing, beside plain ones."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.batches.first_fit import cut_equally, cut_long, first_fit, in_windows, window_offsets_of


def plain_first_fit(sizes, capacity):
    """Return the first window with room for each size, looking at one window after the other."""
    room: list[int] = []
    windows = []
    for size in sizes:
        window = next((i for i, left in enumerate(room) if left >= size), len(room))
        if window == len(room):
            room.append(capacity)
        room[window] -= size
        windows.append(window)
    return windows


def integers(values, dtype=numpy.int32):
    return numpy.array(values, dtype=dtype)


@pytest.mark.parametrize("dtype", [numpy.int32, numpy.int64])
# the first call compiles
@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=80))
def test_first_fit_equals_a_plain_search(sizes, dtype):
    assert first_fit(integers(sizes, dtype), 20).tolist() == plain_first_fit(sizes, 20)


@pytest.mark.parametrize("smallest", [1, 3000, 4097], ids=["any", "two a window", "one a window"])
def test_first_fit_of_thousands_equals_a_plain_search(smallest):
    sizes = numpy.random.default_rng(3).integers(smallest, 8193, size=3000)
    assert first_fit(sizes, 8192).tolist() == plain_first_fit(sizes.tolist(), 8192)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=80))
def test_values_stand_window_by_window_as_a_stable_sort_leaves_them(sizes):
    windows = first_fit(integers(sizes), 20)
    offsets = window_offsets_of(windows)
    assert numpy.diff(offsets).tolist() == numpy.bincount(windows, minlength=0).tolist()
    order = numpy.argsort(windows, kind="stable")
    assert in_windows(integers(range(len(sizes))), windows, offsets).tolist() == order.tolist()


proteins = st.lists(st.integers(0, 60), max_size=40)


def _order(lengths):
    # some proteins only, and not as they stand
    return integers(numpy.random.default_rng(len(lengths)).permutation(len(lengths))[: len(lengths) * 3 // 4])


@settings(deadline=None)
@given(proteins, st.integers(8, 30))
def test_a_protein_longer_than_a_window_is_cut_from_its_beginning(lengths, capacity):
    order, like = _order(lengths), integers([])
    expected = [
        (number, begin, min(begin + capacity, lengths[number] + 2))
        for number in order
        for begin in range(0, lengths[number] + 2, capacity)
    ]
    found = cut_long(order, integers(lengths, numpy.int64), 2, capacity, like)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


@settings(deadline=None)
@given(proteins, st.integers(8, 30))
def test_equal_cuts_are_where_tokens_in_a_row_are_cut(lengths, capacity):
    order, like = _order(lengths), integers([])
    tokens = [(number, place) for number in order.tolist() for place in range(lengths[number] + 1)]
    *parts, offsets = cut_equally(order, integers(lengths, numpy.int64), 1, capacity, like)
    pieces = list(zip(*(part.tolist() for part in parts), strict=True))
    for window, first in enumerate(range(0, len(tokens), capacity)):
        of_window = pieces[offsets[window] : offsets[window + 1]]
        assert [(n, place) for n, begin, end in of_window for place in range(begin, end)] == tokens[first:][:capacity]
    assert len(offsets) == -(-len(tokens) // capacity) + 1
    assert offsets[-1] == len(pieces)
