"""How many sequences of a corpus are equal to an earlier one of it, found on disk within a given memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from proteinlm.corpus.digest_spool import SEQUENCE_COLUMNS, DigestSpool
from proteinlm.corpus.duplicates import find_equal_sequences
from proteinlm.corpus.shard_reader import Corpus
from proteinlm.errors import OutputError
from proteinlm.progress import SILENT, Progress

# a corpus of ten times as many sequences as fit takes a tenth longer
MEMORY_BYTES = 1 << 30


def count_repeats(
    corpus: Corpus, *, memory_bytes: int = MEMORY_BYTES, folder: Path | None = None, progress: Progress = SILENT
) -> dict[str, int]:
    """Return, by split, how many sequences are equal to an earlier one of the corpus.

    The splits follow each other in the order of the index. Sequences are told by xxh3_128 of their
    tokens.

    Args:
        corpus: all of it is read.
        memory_bytes: how much memory to use, roughly, beside one bit for each sequence.
        folder: where 16 bytes for each sequence are written, and removed after; the system's folder
            for such files if None.
        progress: hears of residues.

    Raises:
        OutputError: if the folder cannot be written.
        ShardError: if a shard is missing or damaged.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="proteinlm-", dir=folder) as place:
            with DigestSpool(Path(place), columns=SEQUENCE_COLUMNS) as spool:
                ends = _fill(spool, corpus, progress)
            repeats = np.zeros(len(ends), dtype=np.int64)
            for numbers in find_equal_sequences(spool, memory_bytes=memory_bytes).blocks():
                repeats += np.bincount(np.searchsorted(ends, numbers, side="right"), minlength=len(ends))
    except OSError as error:
        raise OutputError(
            f"{folder or tempfile.gettempdir()}: 16 bytes for each sequence cannot be written there "
            f"({error.strerror or error}); TMPDIR names another folder"
        ) from error
    return dict(zip(corpus.index.splits, repeats.tolist(), strict=True))


def _fill(spool: DigestSpool, corpus: Corpus, progress: Progress) -> list[int]:
    """Append the digests of all sequences, and return how many there are up to the end of each split."""
    from proteinlm.sequence.xxh3 import digests

    ends = []
    progress.start("hashing", sum(split.num_residues for split in corpus.splits.values()), "residues")
    try:
        for name in corpus.index.splits:
            for tokens, offsets in corpus.sequences(name).by_shard():
                spool.append_sequences(digests(tokens, offsets))
                progress.advance(len(tokens))
            ends.append(spool.num_records)
    finally:
        progress.finish()
    return ends
