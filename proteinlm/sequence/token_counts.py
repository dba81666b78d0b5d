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


def count_tokens(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each token of the alphabet occurs in ``tokens``, as int64[33].

    Bytes that are no token are left out, so the sum is then below the length.
    """
    counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        part = tokens[start : start + _COUNTED_AT_ONCE]
        even = len(part) & ~1
        # a pair is read as one number; a view at an odd address is none to compiled code
        pairs = np.require(part[:even], requirements="A").view(np.uint16)
        if pairs.ctypes.data % 2:
            pairs = part[:even].copy().view(np.uint16)
        table = _count_pairs(pairs).reshape(256, 256)
        counts += table.sum(axis=0)[:VOCAB_SIZE] + table.sum(axis=1)[:VOCAB_SIZE]
        for token in part[even:].tolist():
            if token < VOCAB_SIZE:
                counts[token] += 1
    return counts


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count_pairs(pairs: NDArray[np.uint16]) -> NDArray[np.int64]:
    # equal pairs often follow each other, and a counter that was just written is slow to read again
    first = np.zeros(1 << 16, dtype=np.uint32)
    second = np.zeros(1 << 16, dtype=np.uint32)
    even = len(pairs) & ~1
    for place in range(0, even, 2):
        first[pairs[place]] += np.uint32(1)
        second[pairs[place + 1]] += np.uint32(1)
    if even < len(pairs):
        first[pairs[even]] += np.uint32(1)
    return first.astype(np.int64) + second
