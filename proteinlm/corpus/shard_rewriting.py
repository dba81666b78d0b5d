"""Shards without the sequences that turned out to be duplicates; it may break off and go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.ingestion_state import append_shard, read_shards
from proteinlm.corpus.open_shard import OpenShard
from proteinlm.corpus.ordered_threads import Worker
from proteinlm.corpus.repeat_finder import places_in_shards
from proteinlm.corpus.shard_file import start_of_tokens
from proteinlm.corpus.shard_reader import Shard, open_shard
from proteinlm.corpus.shard_tokens import ShardTokens
from proteinlm.corpus.work_folder import WorkFolder
from proteinlm.corpus.written_shard import WrittenShard

if TYPE_CHECKING:
    from numpy.typing import NDArray


def settle_rewritten(folder: WorkFolder, shards: Sequence[WrittenShard]) -> list[WrittenShard]:
    """Put in place what was written again before the work broke off, and return the shards as they are."""
    rewritten = {shard.entry.file: shard for shard in read_shards(folder.rewritten)}
    for shard in rewritten.values():
        _put_in_place(folder, shard)
    return [rewritten.get(shard.entry.file, shard) for shard in shards]


def rewrite_shards(folder: WorkFolder, shards: Sequence[WrittenShard]) -> list[WrittenShard]:
    """Take out of the shards what ``RepeatFinder`` has found.

    Borders between shards stay where they are; a shard that loses all its sequences goes.

    Args:
        folder: where the corpus is.
        shards: as they were before any of them was written again.

    Returns:
        the shards that the corpus then has.
    """
    done = {shard.entry.file: shard for shard in read_shards(folder.rewritten)}
    for shard, places in places_in_shards(folder, shards):
        if shard.entry.file not in done:
            again = _rewritten(folder, shard, places)
            # from this line on the replacement counts and not what it replaces
            append_shard(folder.rewritten, again)
            _put_in_place(folder, again)
            done[shard.entry.file] = again
    found = [done.get(shard.entry.file, shard) for shard in shards]
    return [shard for shard in found if shard.entry.num_sequences]


def _put_in_place(folder: WorkFolder, shard: WrittenShard) -> None:
    new, place = folder.replacements / shard.entry.file, folder.corpus / shard.entry.file
    if not shard.entry.num_sequences:
        place.unlink(missing_ok=True)
    elif new.exists():
        os.replace(new, place)


def _rewritten(folder: WorkFolder, shard: WrittenShard, places: NDArray[np.int64]) -> WrittenShard:
    """Write a shard without the sequences at ``places``, beside it."""
    numbers = np.delete(np.arange(shard.entry.num_sequences), places)
    if not len(numbers):
        nothing = replace(shard.entry, num_sequences=0, num_residues=0, digest="", block_digests="")
        return replace(shard, entry=nothing, longest=0, token_counts=(0,) * len(shard.token_counts))
    before = open_shard(folder.corpus / shard.entry.file, shard.entry)
    has_clusters = layout.CLUSTERS_DATASET in before.regions
    clusters = before[layout.CLUSTERS_DATASET][numbers] if has_clusters else None
    growing = folder.replacements / f"{shard.entry.file}.{layout.TOKENS_DATASET}"
    tokens = ShardTokens(growing, start=start_of_tokens(growing), worker=Worker(is_threaded=False))
    after = OpenShard(shard.split, layout.shard_number(shard.entry.file), tokens, has_clusters=has_clusters)
    after.append(_ShardRecords(before), numbers, clusters)
    return after.finish(folder.replacements)


@dataclass(frozen=True, slots=True)
class _ShardRecords:
    """The records of a shard file."""

    shard: Shard

    @property
    def tokens(self) -> NDArray[np.uint8]:
        return self.shard[layout.TOKENS_DATASET]

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self.shard[layout.OFFSETS_DATASET]

    @property
    def identifiers(self) -> NDArray[np.uint8]:
        return self.shard[layout.IDENTIFIERS_DATASET]

    @property
    def identifier_offsets(self) -> NDArray[np.int64]:
        return self.shard[layout.IDENTIFIER_OFFSETS_DATASET]
