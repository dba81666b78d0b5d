"""Where a split is cut into shards: the borders depend on nothing but the records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ShardPart:
    """Records that follow each other, of one shard.

    Attributes:
        shard: its number.
        start: the first record.
        stop: one past the last.
        begins: whether another shard became full before them.
    """

    shard: int
    start: int
    stop: int
    begins: bool


class ShardBorders:
    """Tells the shards of the records of one split; one that is longer than a shard has a shard of its own.

    Args:
        shard_residues: upper size of a shard.
        shard: number of the shard that is open.
        num_residues: its residues.
        num_sequences: records of the split so far.
    """

    def __init__(self, shard_residues: int, *, shard: int = 0, num_residues: int = 0, num_sequences: int = 0) -> None:
        self._shard_residues = shard_residues
        self._shard, self._num_residues = shard, num_residues
        self.num_sequences = num_sequences

    def parts(self, ends: NDArray[np.int64]) -> Iterator[ShardPart]:
        """Yield the parts of the split's next records; ``ends``, int64 (M,), are the sums of their residues."""
        start = before = 0
        begins = False
        while start < len(ends):
            room = self._shard_residues - self._num_residues
            stop = int(np.searchsorted(ends, before + room, side="right"))
            if stop <= start and self._num_residues:
                self._shard, self._num_residues, begins = self._shard + 1, 0, True
                continue
            stop = max(stop, start + 1)
            yield ShardPart(self._shard, start, stop, begins)
            end = int(ends[stop - 1])
            self._num_residues += end - before
            start, before, begins = stop, end, False
        self.num_sequences += len(ends)
