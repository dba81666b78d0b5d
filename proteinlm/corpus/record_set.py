"""A set of records by number, one bit for each record that could be in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# records looked at together; a multiple of 8
_STEP = 1 << 20


class RecordSet:
    """Some of the records 0 to ``num_records``."""

    def __init__(self, num_records: int) -> None:
        self.num_records = num_records
        self._count = 0
        self._bits = np.zeros(-(-num_records // 8), dtype=np.uint8)

    def add(self, numbers: NDArray[np.uint64]) -> None:
        """Add records; ``numbers`` are in any order, none of them twice or in the set already."""
        if not len(numbers):
            return
        self._count += len(numbers)
        # in order, those that share a byte stand together
        numbers = np.sort(numbers)
        bits = np.left_shift(np.uint8(1), (numbers & np.uint64(7)).astype(np.uint8))
        places = (numbers >> np.uint64(3)).astype(np.int64)
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        self._bits[places[starts]] |= np.bitwise_or.reduceat(bits, starts)

    def __len__(self) -> int:
        return self._count

    def mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of the records ``start`` to ``stop`` are in the set."""
        first = start // 8
        bits = np.unpackbits(self._bits[first : -(-stop // 8)], bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].view(np.bool_)

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """Yield the numbers in order, many at a time, none of the arrays empty."""
        for start in range(0, self.num_records, _STEP):
            found = np.flatnonzero(self.mask(start, min(start + _STEP, self.num_records)))
            if len(found):
                yield found + start

    def numbers(self) -> NDArray[np.int64]:
        """Return all numbers in order, 8 bytes each."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self.blocks()])
