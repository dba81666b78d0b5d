"""How often each token occurs, counted in one compiled pass without the interpreter lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from proteinlm.sequence.addresses import address_of, read_8, read_64
from proteinlm.sequence.alphabet import VOCAB_SIZE
from proteinlm.sequence.token_planes import (
    GROUP,
    NUM_COUNTED,
    NUM_GROUPS,
    NUM_LANES,
    NUM_PLANES,
    can_count_planes,
    count_planes,
    store_planes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # by pair of tokens, the first and the second of every two pairs; by token, as ``count_planes`` adds to them;
    # the planes of as many tokens as it counts at once
    Counters = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint64]]

# counters are 32 bits wide, and of so many tokens all may go into one
_COUNTED_AT_ONCE = 1 << 31
# stands beside a token without another
_NO_TOKEN = 255


class TokenCounter:
    """Counts how often each token of the alphabet occurs; bytes that are no token are left out."""

    def __init__(self) -> None:
        self._counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
        # equal pairs often follow each other, and a counter that was just written is slow to read again
        first, second = (np.zeros(1 << 16, dtype=np.uint32) for _ in range(2))
        planes = np.empty(NUM_GROUPS * NUM_PLANES * NUM_LANES, dtype=np.uint64)
        self._counters = first, second, np.zeros((NUM_COUNTED, NUM_LANES), dtype=np.uint64), planes
        self._num_in_tables = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """The counts so far, int64[33]."""
        self._empty_tables()
        return self._counts.copy()

    def add(self, tokens: NDArray[np.uint8]) -> None:
        """Count the bytes of an array, contiguous."""
        for start in range(0, len(tokens), _COUNTED_AT_ONCE):
            part = tokens[start : start + _COUNTED_AT_ONCE]
            _add_array(part, can_count_planes(), self.counters_for(len(part)))

    def counters_for(self, num_tokens: int) -> Counters:
        """Return where ``add_counts`` counts so many more tokens, at most 2^31."""
        if self._num_in_tables + num_tokens > _COUNTED_AT_ONCE:
            self._empty_tables()
        self._num_in_tables += num_tokens
        return self._counters

    def _empty_tables(self) -> None:
        first, second, sums, _ = self._counters
        for table in (first, second):
            pairs = table.reshape(256, 256).astype(np.int64)
            self._counts += pairs.sum(axis=0)[:VOCAB_SIZE] + pairs.sum(axis=1)[:VOCAB_SIZE]
            table[:] = 0
        self._counts[:NUM_COUNTED] += sums.sum(axis=1).astype(np.int64)
        sums[:] = 0
        self._num_in_tables = 0


def count_tokens(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each token of the alphabet occurs in ``tokens``, as int64[33].

    Bytes that are no token are left out, so the sum is then below the length.
    """
    counter = TokenCounter()
    counter.add(tokens)
    return counter.counts


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_array(tokens: Any, in_planes: Any, counters: Any) -> None:
    add_counts(address_of(tokens), len(tokens), in_planes, counters)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_counts(tokens: Any, size: Any, in_planes: Any, counters: Any) -> None:
    """Count tokens in the counters of a ``TokenCounter``.

    Args:
        tokens: the address of the first, uint64.
        size: how many there are, int64.
        in_planes: whether to count in planes; needs can_count_planes().
        counters: are added to.
    """
    first, second, sums, planes = counters
    slab, into = NUM_GROUPS * GROUP, address_of(planes)
    while in_planes and size >= slab:
        are_low = True
        for group in range(NUM_GROUPS):
            are_low &= store_planes(
                tokens + np.uint64(group * GROUP), into + np.uint64(group * 8 * NUM_PLANES * NUM_LANES)
            )
        if are_low:
            count_planes(into, address_of(sums))
        else:
            _add_pairs(tokens, slab, first, second)
        tokens += np.uint64(slab)
        size -= slab
    _add_pairs(tokens, size, first, second)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_pairs(tokens: Any, size: Any, first: Any, second: Any) -> None:
    for place in range(0, size - 7, 8):
        word = read_64(tokens + np.uint64(place))
        first[word & np.uint64(0xFFFF)] += np.uint32(1)
        second[(word >> np.uint64(16)) & np.uint64(0xFFFF)] += np.uint32(1)
        first[(word >> np.uint64(32)) & np.uint64(0xFFFF)] += np.uint32(1)
        second[word >> np.uint64(48)] += np.uint32(1)
    for place in range(size & ~7, size):
        first[read_8(tokens + np.uint64(place)) + np.uint64(256 * _NO_TOKEN)] += np.uint32(1)
