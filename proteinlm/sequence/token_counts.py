"""How often each token occurs, counted in one compiled pass without the interpreter lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from proteinlm.sequence.alphabet import VOCAB_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

# counters of pairs are 32 bits wide
_COUNTED_AT_ONCE = 1 << 31


class TokenCounter:
    """Counts how often each token of the alphabet occurs; bytes that are no token are left out."""

    def __init__(self) -> None:
        self._counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
        # equal pairs often follow each other, and a counter that was just written is slow to read again
        self._tables = [np.zeros(1 << 16, dtype=np.uint32) for _ in range(2)]
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
            if self._num_in_tables + len(part) > _COUNTED_AT_ONCE:
                self._empty_tables()
            self._num_in_tables += len(part)
            even = len(part) & ~1
            # a pair is read as one number; a view at an odd address is none to compiled code
            pairs = np.require(part[:even], requirements="A").view(np.uint16)
            if pairs.ctypes.data % 2:
                pairs = part[:even].copy().view(np.uint16)
            _count_pairs(pairs, *self._tables)
            for token in part[even:].tolist():
                if token < VOCAB_SIZE:
                    self._counts[token] += 1

    def _empty_tables(self) -> None:
        for table in self._tables:
            pairs = table.reshape(256, 256).astype(np.int64)
            self._counts += pairs.sum(axis=0)[:VOCAB_SIZE] + pairs.sum(axis=1)[:VOCAB_SIZE]
            table[:] = 0
        self._num_in_tables = 0


def count_tokens(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each token of the alphabet occurs in ``tokens``, as int64[33].

    Bytes that are no token are left out, so the sum is then below the length.
    """
    counter = TokenCounter()
    counter.add(tokens)
    return counter.counts


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count_pairs(pairs: NDArray[np.uint16], first: NDArray[np.uint32], second: NDArray[np.uint32]) -> None:
    even = len(pairs) & ~1
    for place in range(0, even, 2):
        first[pairs[place]] += np.uint32(1)
        second[pairs[place + 1]] += np.uint32(1)
    if even < len(pairs):
        first[pairs[even]] += np.uint32(1)
