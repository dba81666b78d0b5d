"""Whether a corpus still holds the bytes that were written, and where the first that it does not hold are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.layout import ShardEntry
from proteinlm.corpus.shard_file import block_digests, content_digest, reading
from proteinlm.corpus.shard_reader import Corpus, open_shard
from proteinlm.errors import ShardError
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence import VOCAB_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DIGEST_LENGTH = 16  # hex digits of xxh3_64


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What was read again and found whole; ``num_bytes`` of shard files."""

    num_shards: int
    num_sequences: int
    num_residues: int
    num_bytes: int


def verify_corpus(corpus: Corpus, *, progress: Progress = SILENT) -> VerificationReport:
    """Read every shard again and compare it with the digests and the counts of the index.

    Raises:
        ShardError: names the first shard that is not what was written, and the first of its bytes
            that are not; or the split whose tokens are not those counted.
    """
    splits = corpus.index.splits
    progress.start("verifying", sum(split.num_residues for split in splits.values()), "residue")
    try:
        for name, split in splits.items():
            token_counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
            for entry in split.shards:
                token_counts += _verified(corpus.path / entry.file, entry)
                progress.advance(entry.num_residues)
            if token_counts.tolist() != list(split.token_counts):
                raise ShardError(
                    f"{corpus.path / layout.INDEX_FILE}: splits.{name}.token_counts are not those of its shards; "
                    "ingest again"
                )
    finally:
        progress.finish()
    files = [corpus.path / shard.file for split in splits.values() for shard in split.shards]
    return VerificationReport(
        num_shards=len(files),
        num_sequences=sum(split.num_sequences for split in splits.values()),
        num_residues=sum(split.num_residues for split in splits.values()),
        num_bytes=sum(map(_size, files)),
    )


def _verified(path: Path, entry: ShardEntry) -> NDArray[np.int64]:
    """Return the counts of a shard's tokens, int64[33], if the file is what was written."""
    from proteinlm.sequence.token_counts import count_tokens

    # before HDF5 sees the file: damage to what is not content can end the process there
    compare_blocks(path, entry.block_digests)
    shard = open_shard(path, entry)
    datasets = {name: region.map(path) for name, region in shard.regions.items()}
    if (found := content_digest(datasets)) != entry.digest:
        raise ShardError(f"{path}: is damaged (its content has digest {found}, not {entry.digest}); ingest again")
    return count_tokens(datasets[layout.TOKENS_DATASET])


def compare_blocks(path: Path, digests: str) -> None:
    """Read a shard file and compare it with the digests of its blocks.

    Raises:
        ShardError: names the first bytes that are not what was written.
    """
    num_blocks = 0
    try:
        with reading(path):
            for found in block_digests(path):
                start = num_blocks * _DIGEST_LENGTH
                if found != digests[start : start + _DIGEST_LENGTH]:
                    raise ShardError(f"{path}: is damaged, first in {_place(path, num_blocks)}; ingest again")
                num_blocks += 1
    except ShardError as error:
        if num_blocks and error.__cause__ is not None:
            raise ShardError(f"{error}, in {_place(path, num_blocks)}") from error
        raise
    if len(digests) > num_blocks * _DIGEST_LENGTH:
        raise ShardError(f"{path}: is cut off after byte {num_blocks * layout.BLOCK_BYTES:,}; ingest again")


def _place(path: Path, block: int) -> str:
    start = block * layout.BLOCK_BYTES
    return f"bytes {start:,} to {min(start + layout.BLOCK_BYTES, _size(path)):,}"


def _size(path: Path) -> int:
    with reading(path):
        return path.stat().st_size
