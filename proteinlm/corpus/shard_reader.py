"""Sequences of a corpus, read where they lie: memory-mapped, safe to fork and to pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.layout import CorpusIndex, ShardEntry, read_index
from proteinlm.corpus.shard_writer import content_sha256, count_tokens
from proteinlm.errors import ShardError
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence import VOCAB_SIZE, alphabet_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """What a split holds; ``token_counts`` is int64[33]."""

    num_sequences: int
    num_residues: int
    token_counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """An open corpus folder; no sequence is read before it is asked for."""

    path: Path
    index: CorpusIndex

    @property
    def digest(self) -> str:
        """The sha256 of the content, whatever the folder is called."""
        return self.index.digest

    @property
    def splits(self) -> Mapping[str, SplitSummary]:
        """The splits by name."""
        return MappingProxyType(
            {
                name: SplitSummary(
                    entry.num_sequences, entry.num_residues, np.array(entry.token_counts, dtype=np.int64)
                )
                for name, entry in self.index.splits.items()
            }
        )

    def sequences(self, split: str) -> SequenceSet:
        """Return the sequences of a split.

        Raises:
            ShardError: if there is no such split, or a shard is missing, cut off or of another kind.
        """
        if split not in self.index.splits:
            raise ShardError(f"{self.path}: has no split '{split}'; it has {', '.join(self.index.splits)}")
        return SequenceSet([_open_shard(self.path / shard.file, shard) for shard in self.index.splits[split].shards])

    def verify(self, progress: Progress = SILENT) -> None:
        """Read every shard and compare its content with the index.

        Raises:
            ShardError: names the first shard whose content is not that of its sha256, or the split
                whose tokens are not those counted.
        """
        progress.start("verifying", sum(split.num_residues for split in self.index.splits.values()), "residue")
        try:
            for name, split in self.index.splits.items():
                token_counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
                for entry in split.shards:
                    token_counts += _verified(_open_shard(self.path / entry.file, entry), entry)
                    progress.advance(entry.num_residues)
                if token_counts.tolist() != list(split.token_counts):
                    raise ShardError(
                        f"{self.path / layout.INDEX_FILE}: splits.{name}.token_counts are not those of its shards; "
                        "ingest again"
                    )
        finally:
            progress.finish()


def open_corpus(path: Path | str) -> Corpus:
    """Open a corpus folder.

    The index is checked; the content of the shards is not, which ``Corpus.verify`` does.

    Raises:
        ShardError: if it is missing, damaged, or of another format version or alphabet.
    """
    return Corpus(Path(path), read_index(Path(path)))


@dataclass(frozen=True, slots=True)
class _Region:
    """Where a dataset lies in its file; ``position`` is None for one without elements."""

    position: int | None
    length: int
    dtype: str

    def map(self, path: Path) -> NDArray[Any]:
        if self.position is None:
            return np.empty(0, dtype=self.dtype)
        # as a plain array: views of numpy.memmap itself cost several times as much to make
        return np.asarray(
            np.memmap(path, dtype=self.dtype, mode="r", offset=self.position, shape=(self.length,)),
        )


@dataclass
class _Shard:
    path: Path
    regions: Mapping[str, _Region]
    _maps: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def __getitem__(self, dataset: str) -> NDArray[Any]:
        found = self._maps.get(dataset)
        if found is None:
            found = self.regions[dataset].map(self.path)
            if dataset in _OFFSETS_OF:
                self._check_offsets(dataset, found)
            self._maps[dataset] = found
        return found

    def _check_offsets(self, dataset: str, offsets: NDArray[np.int64]) -> None:
        end = self.regions[_OFFSETS_OF[dataset]].length
        if not len(offsets) or (offsets[0], offsets[-1]) != (0, end) or (offsets[1:] < offsets[:-1]).any():
            raise ShardError(f"{self.path}: dataset '{dataset}' does not rise from 0 to {end:,}; ingest again")

    def __getstate__(self) -> tuple[Path, Mapping[str, _Region]]:
        return self.path, self.regions

    def __setstate__(self, state: tuple[Path, Mapping[str, _Region]]) -> None:
        self.path, self.regions = state
        self._maps = {}


class SequenceSet:
    """The sequences of one split, counted from 0 in the order of the files that were ingested."""

    def __init__(self, shards: list[_Shard]) -> None:
        self._shards = shards
        self._ends = np.cumsum([shard.regions[layout.OFFSETS_DATASET].length - 1 for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The number of residues of every sequence, int64[N], without special tokens."""
        parts = [np.diff(shard[layout.OFFSETS_DATASET]) for shard in self._shards]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def tokens(self, number: int) -> NDArray[np.uint8]:
        """Return the residues of a sequence, uint8[L], a read-only view of the file."""
        shard, place = self._locate(number)
        start, end = shard[layout.OFFSETS_DATASET][place : place + 2].tolist()
        view: NDArray[np.uint8] = shard[layout.TOKENS_DATASET][start:end]
        return view

    def identifier(self, number: int) -> str:
        """Return the first word of the header of a sequence."""
        shard, place = self._locate(number)
        start, end = shard[layout.IDENTIFIER_OFFSETS_DATASET][place : place + 2].tolist()
        return shard[layout.IDENTIFIERS_DATASET][start:end].tobytes().decode()

    def _locate(self, number: int) -> tuple[_Shard, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sequence {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right")) if len(self._shards) > 1 else 0
        return self._shards[shard], number - (int(self._ends[shard - 1]) if shard else 0)


_OFFSETS_OF = {
    layout.OFFSETS_DATASET: layout.TOKENS_DATASET,
    layout.IDENTIFIER_OFFSETS_DATASET: layout.IDENTIFIERS_DATASET,
}
_DTYPES = {
    layout.TOKENS_DATASET: "|u1",
    layout.OFFSETS_DATASET: "<i8",
    layout.IDENTIFIERS_DATASET: "|u1",
    layout.IDENTIFIER_OFFSETS_DATASET: "<i8",
}


def _open_shard(path: Path, entry: ShardEntry) -> _Shard:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _check_attributes(path, dict(file.attrs), entry)
            shard = _Shard(path, {name: _region(path, file, name) for name in _DTYPES})
    except FileNotFoundError as error:
        raise ShardError(f"{path}: no such file, though {layout.INDEX_FILE} names it; ingest again") from error
    except OSError as error:
        raise ShardError(f"{path}: is damaged or cut off ({error}); ingest again") from error
    lengths = {name: region.length for name, region in shard.regions.items()}
    if lengths[layout.IDENTIFIER_OFFSETS_DATASET] != lengths[layout.OFFSETS_DATASET]:
        raise ShardError(f"{path}: has not one identifier for each sequence; ingest again")
    found = lengths[layout.TOKENS_DATASET], lengths[layout.OFFSETS_DATASET] - 1
    if found != (entry.num_residues, entry.num_sequences):
        raise ShardError(
            f"{path}: holds {found[1]:,} sequences and {found[0]:,} residues where {layout.INDEX_FILE} says "
            f"{entry.num_sequences:,} and {entry.num_residues:,}; ingest again"
        )
    return shard


def _verified(shard: _Shard, entry: ShardEntry) -> NDArray[np.int64]:
    """Return the counts of a shard's tokens, int64[33], if its content is what it says."""
    if (found := content_sha256({name: shard[name] for name in _DTYPES})) != entry.sha256:
        raise ShardError(f"{shard.path}: is damaged (its content has sha256 {found}, not {entry.sha256}); ingest again")
    return count_tokens(shard[layout.TOKENS_DATASET])


def _check_attributes(path: Path, found: Mapping[str, Any], entry: ShardEntry) -> None:
    expected = {
        "format_version": layout.FORMAT_VERSION,
        "alphabet": alphabet_digest(),
        "sha256": entry.sha256,
    }
    for name, value in expected.items():
        if found.get(name) != value:
            raise ShardError(f"{path}: has {name} {found.get(name)} where {value} is expected; ingest again")


def _region(path: Path, file: Any, name: str) -> _Region:
    if name not in file:
        raise ShardError(f"{path}: has no dataset '{name}'; ingest again")
    dataset = file[name]
    if dataset.ndim != 1 or dataset.dtype.str != _DTYPES[name] or dataset.chunks is not None:
        raise ShardError(f"{path}: dataset '{name}' is not flat, contiguous {_DTYPES[name]}; ingest again")
    return _Region(dataset.id.get_offset(), dataset.shape[0], _DTYPES[name])
