"""How often each token occurs, counted in one compiled pass without the interpreter lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from proteinlm.sequence.addresses import address_of
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

    # by pair of tokens, the first and the second of every two pairs; by token, as ``count_planes`` adds to them
    Counters = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]]

# counters are 32 bits wide; of so many tokens none gets more than a quarter
_COUNTED_AT_ONCE = 1 << 31
# stands beside a last token without another
_NO_TOKEN = 255


class TokenCounter:
    """Counts how often each token of the alphabet occurs; bytes that are no token are left out."""

    def __init__(self) -> None:
        self._counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
        # equal pairs often follow each other, and a counter that was just written is slow to read again
        first, second = (np.zeros(1 << 16, dtype=np.uint32) for _ in range(2))
        self._counters = first, second, np.zeros((NUM_COUNTED, NUM_LANES), dtype=np.uint64)
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
            # a pair is read as one number; a view at an odd address is none to compiled code
            part = part if part.ctypes.data % 2 == 0 else part.copy()
            add_counts(part, pairs_of(part), can_count_planes(), self.counters_for(len(part)))

    def counters_for(self, num_tokens: int) -> Counters:
        """Return where ``add_counts`` counts so many more tokens."""
        if self._num_in_tables + num_tokens > _COUNTED_AT_ONCE:
            self._empty_tables()
        self._num_in_tables += num_tokens
        return self._counters

    def _empty_tables(self) -> None:
        *tables, sums = self._counters
        for table in tables:
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


def pairs_of(tokens: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return a view of an array at an even address, two bytes as one number."""
    return tokens[: len(tokens) & ~1].view(np.uint16)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_counts(tokens: NDArray[np.uint8], pairs: NDArray[np.uint16], wide: bool, counters: Counters) -> None:
    """Count tokens in the counters of a ``TokenCounter``.

    Args:
        tokens: bytes.
        pairs: ``pairs_of`` them.
        wide: whether to count in planes; needs can_count_planes().
        counters: are added to.
    """
    first, second, sums = counters
    done = 0
    if wide:
        # a row for each group
        planes = np.empty((NUM_GROUPS, NUM_PLANES * NUM_LANES), dtype=np.uint64)
        while done + NUM_GROUPS * GROUP <= len(tokens):
            are_low = True
            for group in range(NUM_GROUPS):
                start = address_of(tokens) + np.uint64(done + group * GROUP)
                are_low &= store_planes(start, address_of(planes[group]))
            following = done + NUM_GROUPS * GROUP
            if are_low:
                count_planes(address_of(planes), address_of(sums))
            else:
                _add_pairs(pairs[done // 2 : following // 2], first, second)
            done = following
    _add_pairs(pairs[done // 2 :], first, second)
    if len(tokens) > 2 * len(pairs):
        first[np.int64(tokens[-1]) + 256 * _NO_TOKEN] += np.uint32(1)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_pairs(pairs: NDArray[np.uint16], first: NDArray[np.uint32], second: NDArray[np.uint32]) -> None:
    even = len(pairs) & ~1
    for place in range(0, even, 2):
        first[pairs[place]] += np.uint32(1)
        second[pairs[place + 1]] += np.uint32(1)
    if even < len(pairs):
        first[pairs[even]] += np.uint32(1)
