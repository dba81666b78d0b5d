"""Records of a split in, shards out: the borders depend on nothing but the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus.layout import ShardEntry, SplitEntry
from proteinlm.corpus.open_shard import OpenShard
from proteinlm.corpus.shard_file import Datasets, content_digest, write_shard
from proteinlm.sequence import VOCAB_SIZE
from proteinlm.sequence.record_blocks import RecordBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard on disk, and what a split sums up; ``token_counts`` has one number for every token."""

    split: str
    entry: ShardEntry
    longest: int
    token_counts: tuple[int, ...]


class ShardPool:
    """Open shards for whoever begins one; those that were written are used again.

    Room that was touched before is several times as fast to fill as new room.
    """

    def __init__(self, *, has_clusters: bool, shard_residues: int) -> None:
        self._has_clusters = has_clusters
        self._shard_residues = shard_residues
        self._idle: SimpleQueue[OpenShard] = SimpleQueue()

    def take(self, split: str, number: int) -> OpenShard:
        """Return an empty shard."""
        try:
            shard = self._idle.get_nowait()
        except Empty:
            shard = OpenShard(has_clusters=self._has_clusters, room=self._shard_residues)
        shard.begin(split, number)
        return shard

    def give_back(self, shard: OpenShard) -> None:
        """Say that nobody needs the content of ``shard`` any more."""
        self._idle.put(shard)

    def clear(self) -> None:
        """Let go of the memory of idle shards."""
        self._idle = SimpleQueue()


class ShardWriter:
    """Collects the records of one split and hands on a shard whenever enough have come together.

    A shard is kept in memory until it is full, because contiguous datasets must know their size.
    """

    def __init__(
        self,
        split: str,
        *,
        shard_residues: int,
        pool: ShardPool,
        hand_on: Callable[[OpenShard], None],
    ) -> None:
        self._split = split
        self._shard_residues = shard_residues
        self._pool = pool
        self._hand_on = hand_on
        self.num_sequences = 0
        self.open = pool.take(split, 0)

    def resume(self, shard: OpenShard, num_sequences: int) -> None:
        """Go on with an open shard, after ``num_sequences`` records in all."""
        self.open, self.num_sequences = shard, num_sequences

    def add_block(
        self, block: RecordBlock, numbers: NDArray[np.int64], clusters: NDArray[np.uint64] | None = None
    ) -> None:
        """Append records of a block; one longer than a shard gets a shard of its own.

        Args:
            block: where they are.
            numbers: int64 (M,), which ones, rising.
            clusters: uint64 (M,), the cluster of each, where clusters are known.
        """
        ends = np.cumsum(block.offsets[numbers + 1] - block.offsets[numbers])
        start = 0
        while start < len(numbers):
            before = int(ends[start - 1]) if start else 0
            room = self._shard_residues - self.open.num_residues
            stop = int(np.searchsorted(ends, before + room, side="right"))
            if stop <= start and self.open.num_sequences:
                self._next_shard()
                continue
            stop = max(stop, start + 1)
            self.open.append(block, numbers[start:stop], None if clusters is None else clusters[start:stop])
            start = stop
        self.num_sequences += len(numbers)

    def close(self) -> None:
        """Hand on what is left."""
        if self.open.num_sequences:
            self._next_shard()

    def _next_shard(self) -> None:
        full, self.open = self.open, self._pool.take(self._split, self.open.number + 1)
        self._hand_on(full)


def written(folder: Path, shard: OpenShard) -> WrittenShard:
    """Write a shard into a corpus folder.

    Raises:
        OutputError: if it cannot be written.
    """
    return write_datasets(folder / shard.file, shard.split, shard.datasets, shard.longest)


def write_datasets(path: Path, split: str, datasets: Datasets, longest: int) -> WrittenShard:
    """Write the datasets of a shard and return what the index says of it."""
    from proteinlm.sequence.token_counts import count_tokens

    tokens, offsets, *_ = datasets.values()
    digest = content_digest(datasets)
    entry = ShardEntry(
        file=path.name,
        num_sequences=len(offsets) - 1,
        num_residues=len(tokens),
        digest=digest,
        block_digests=write_shard(path, datasets, digest=digest),
    )
    return WrittenShard(split, entry, longest, tuple(count_tokens(tokens).tolist()))


def split_entry(shards: list[WrittenShard]) -> SplitEntry:
    """Return what a split holds that consists of these shards."""
    counts = np.array([shard.token_counts for shard in shards], dtype=np.int64).reshape(len(shards), VOCAB_SIZE)
    return SplitEntry(
        num_sequences=sum(shard.entry.num_sequences for shard in shards),
        num_residues=sum(shard.entry.num_residues for shard in shards),
        longest=max((shard.longest for shard in shards), default=0),
        token_counts=tuple(counts.sum(axis=0).tolist()),
        shards=tuple(shard.entry for shard in shards),
    )
