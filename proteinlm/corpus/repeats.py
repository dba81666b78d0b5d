"""How many sequences of a corpus are equal to an earlier one of it, found on disk within a given memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from proteinlm.corpus.equal_digests import equal_rows
from proteinlm.corpus.shard_reader import Corpus
from proteinlm.errors import OutputError
from proteinlm.progress import SILENT, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

# of memory; a corpus of ten times as many sequences as fit takes a tenth longer
MEMORY_BYTES = 1 << 30
_DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])
_STEP = 1 << 14  # sequences hashed between two writes


def count_repeats(
    corpus: Corpus, *, memory_bytes: int = MEMORY_BYTES, folder: Path | None = None, progress: Progress = SILENT
) -> dict[str, int]:
    """Return, by split, how many sequences are equal to an earlier one of the corpus.

    The splits follow each other in the order of the index. Sequences are told by xxh3_128 of their
    tokens.

    Args:
        corpus: all of it is read.
        memory_bytes: how much memory to use, roughly.
        folder: where 16 bytes for each sequence are written, and removed after; the system's folder
            for such files if None.
        progress: hears of residues.

    Raises:
        OutputError: if the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="proteinlm-", dir=folder) as place:
            table = _digests(corpus, Path(place) / "digests", progress)
            repeats = np.zeros(len(table.ends), dtype=np.int64)
            for rows in equal_rows(table, Path(place) / "parts", memory_bytes=memory_bytes):
                repeats += np.bincount(
                    np.searchsorted(table.ends, rows.payload[~rows.is_first], side="right"), minlength=len(repeats)
                )
    except OSError as error:
        raise OutputError(
            f"{folder or tempfile.gettempdir()}: 16 bytes for each sequence cannot be written there "
            f"({error.strerror or error}); TMPDIR names another folder"
        ) from error
    return dict(zip(corpus.index.splits, repeats.tolist(), strict=True))


class _DigestFile:
    """The digests of all sequences in a file; the payload of a row is its number."""

    def __init__(self, path: Path, ends: NDArray[np.int64]) -> None:
        self._path = path
        self.ends = ends
        self.num_rows = int(ends[-1]) if len(ends) else 0

    def column(self, name: str, step: int) -> Iterator[NDArray[np.uint64]]:
        for start in range(0, self.num_rows, step):
            stop = min(start + step, self.num_rows)
            if name == "payload":
                yield np.arange(start, stop, dtype=np.uint64)
            else:
                found = np.fromfile(self._path, _DIGEST, stop - start, offset=start * _DIGEST.itemsize)
                yield found[name].astype(np.uint64)


def _digests(corpus: Corpus, path: Path, progress: Progress) -> _DigestFile:
    ends = []
    number = 0
    progress.start("hashing", sum(split.num_residues for split in corpus.splits.values()), "residues")
    try:
        with path.open("wb") as file:
            for name in corpus.index.splits:
                sequences = corpus.sequences(name)
                for start in range(0, len(sequences), _STEP):
                    tokens = [sequences.tokens(place) for place in range(start, min(start + _STEP, len(sequences)))]
                    file.write(b"".join([xxhash.xxh3_128_digest(each.data) for each in tokens]))
                    progress.advance(sum(len(each) for each in tokens))
                number += len(sequences)
                ends.append(number)
    finally:
        progress.finish()
    return _DigestFile(path, np.array(ends, dtype=np.int64))
