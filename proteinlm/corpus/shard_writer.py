"""Sequences in, shards out: plain HDF5 whose bytes depend on nothing but the sequences."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.layout import ShardEntry, SplitEntry
from proteinlm.errors import OutputError
from proteinlm.sequence import VOCAB_SIZE, alphabet_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COUNTED_AT_ONCE = 1 << 18

Datasets = dict[str, "NDArray[Any]"]


class ShardWriter:
    """Collects the sequences of one split and writes a shard whenever enough have come together.

    A shard is kept in memory until it is written, because contiguous datasets must know their size.
    """

    def __init__(self, folder: Path, split: str, *, shard_residues: int) -> None:
        self._folder = folder
        self._split = split
        self._shard_residues = shard_residues
        self._shards: list[ShardEntry] = []
        self._token_counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
        self._longest = 0
        self._begin()

    def _begin(self) -> None:
        self._tokens = bytearray()
        self._offsets = array("q", [0])
        self._identifiers = bytearray()
        self._identifier_offsets = array("q", [0])

    def add(self, identifier: str, tokens: NDArray[np.uint8]) -> None:
        """Append a sequence, uint8[L]; one longer than a shard gets a shard of its own."""
        if self._tokens and len(self._tokens) + len(tokens) > self._shard_residues:
            self._write()
        self._tokens += tokens.data
        self._offsets.append(len(self._tokens))
        self._identifiers += identifier.encode()
        self._identifier_offsets.append(len(self._identifiers))
        self._longest = max(self._longest, len(tokens))

    def close(self) -> SplitEntry:
        """Write what is left and return what the split holds."""
        if len(self._offsets) > 1:
            self._write()
        return SplitEntry(
            num_sequences=sum(shard.num_sequences for shard in self._shards),
            num_residues=sum(shard.num_residues for shard in self._shards),
            longest=self._longest,
            token_counts=tuple(self._token_counts.tolist()),
            shards=tuple(self._shards),
        )

    def _write(self) -> None:
        datasets: Datasets = {
            layout.TOKENS_DATASET: np.frombuffer(self._tokens, dtype=np.uint8),
            layout.OFFSETS_DATASET: np.array(self._offsets, dtype="<i8"),
            layout.IDENTIFIERS_DATASET: np.frombuffer(self._identifiers, dtype=np.uint8),
            layout.IDENTIFIER_OFFSETS_DATASET: np.array(self._identifier_offsets, dtype="<i8"),
        }
        file = layout.shard_file(self._split, len(self._shards))
        sha256 = content_sha256(datasets)
        write_shard(self._folder / file, datasets, sha256=sha256)
        self._token_counts += count_tokens(datasets[layout.TOKENS_DATASET])
        entry = ShardEntry(
            file=file,
            num_sequences=len(self._offsets) - 1,
            num_residues=len(self._tokens),
            sha256=sha256,
            block_digests="".join(block_digests(self._folder / file)),
        )
        self._shards.append(entry)
        self._begin()


def count_tokens(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each token of the alphabet occurs, int64[33]."""
    counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
    # bincount turns its input into int64: eight times the memory of a whole shard
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        counts += np.bincount(tokens[start : start + _COUNTED_AT_ONCE], minlength=VOCAB_SIZE)
    return counts


def content_sha256(datasets: Datasets) -> str:
    """Return the sha256 of the datasets' bytes in the order of their names in the format."""
    digest = hashlib.sha256()
    for values in datasets.values():
        digest.update(values.data)
    return digest.hexdigest()


def block_digests(path: Path) -> Iterator[str]:
    """Yield the xxh3_64 of each 1 MiB of a file, the last block shorter, in 16 hex digits."""
    import xxhash

    # read, not mapped: a sector that cannot be read ends a process that maps it, without a word
    with path.open("rb") as file:
        while block := file.read(layout.BLOCK_BYTES):
            yield xxhash.xxh3_64_hexdigest(block)


def write_shard(path: Path, datasets: Datasets, *, sha256: str) -> None:
    """Write contiguous, uncompressed datasets and the attributes that tell what they are.

    Raises:
        OutputError: if the disk is full or the file cannot be written for another reason.
    """
    import h5py

    try:
        with h5py.File(path, "w") as file:
            file.attrs["format_version"] = layout.FORMAT_VERSION
            file.attrs["alphabet"] = alphabet_digest()
            file.attrs["sha256"] = sha256
            for name, values in datasets.items():
                # without times the same sequences give the same bytes
                file.create_dataset(name, data=values, track_times=False)
    except (OSError, RuntimeError) as error:
        # HDF5 tells of a full disk in either, with the reason inside a long text
        found = re.search(r"error message = '([^']+)'", str(error))
        raise OutputError(f"{path.name}: cannot be written ({found[1] if found else error})") from error
