"""What is known of a shard when it is on disk, and of the split that consists of such shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proteinlm.corpus.layout import ShardEntry, SplitEntry
from proteinlm.sequence import VOCAB_SIZE


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard on disk, and what a split sums up; ``token_counts`` has one number for every token."""

    split: str
    entry: ShardEntry
    longest: int
    token_counts: tuple[int, ...]


def split_entry(shards: Sequence[WrittenShard]) -> SplitEntry:
    """Return what a split holds that consists of these shards."""
    counts = np.array([shard.token_counts for shard in shards], dtype=np.int64).reshape(len(shards), VOCAB_SIZE)
    return SplitEntry(
        num_sequences=sum(shard.entry.num_sequences for shard in shards),
        num_residues=sum(shard.entry.num_residues for shard in shards),
        longest=max((shard.longest for shard in shards), default=0),
        token_counts=tuple(counts.sum(axis=0).tolist()),
        shards=tuple(shard.entry for shard in shards),
    )
