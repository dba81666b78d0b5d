"""Sequences of a corpus, read where they lie: memory-mapped, safe to fork and to pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.layout import CorpusIndex, ShardEntry, read_index
from proteinlm.corpus.shard_file import reading
from proteinlm.errors import ShardError
from proteinlm.sequence import alphabet_digest

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
        return SequenceSet([open_shard(self.path / shard.file, shard) for shard in self.index.splits[split].shards])


def open_corpus(path: Path | str) -> Corpus:
    """Open a corpus folder.

    The index is checked; the content of the shards is not, which ``verify_corpus`` does.

    Raises:
        ShardError: if it is missing, damaged, or of another format version or alphabet.
    """
    return Corpus(Path(path), read_index(Path(path)))


@dataclass(frozen=True, slots=True)
class Region:
    """Where a dataset lies in its file; ``position`` is None for one without elements."""

    position: int | None
    length: int
    dtype: str

    def map(self, path: Path) -> NDArray[Any]:
        """Return the dataset as a read-only view of the file."""
        if self.position is None:
            return np.empty(0, dtype=self.dtype)
        with reading(path):
            # as a plain array: views of numpy.memmap itself cost several times as much to make
            return np.asarray(
                np.memmap(path, dtype=self.dtype, mode="r", offset=self.position, shape=(self.length,)),
            )


@dataclass
class Shard:
    """An open shard; its datasets are mapped when they are first asked for."""

    path: Path
    regions: Mapping[str, Region]
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

    def __getstate__(self) -> tuple[Path, Mapping[str, Region]]:
        return self.path, self.regions

    def __setstate__(self, state: tuple[Path, Mapping[str, Region]]) -> None:
        self.path, self.regions = state
        self._maps = {}


class Addresses(NamedTuple):
    """Where the sequences of S shards lie in the memory of this process, for compiled code.

    They hold as long as the ``SequenceSet`` does, in this process and those forked from it.

    Attributes:
        ends: int64 (S,), one past the number of each shard's last sequence.
        tokens: uint64 (S,), address of each shard's tokens.
        offsets: uint64 (S,), address of its offsets, int64 at any byte.
    """

    ends: NDArray[np.int64]
    tokens: NDArray[np.uint64]
    offsets: NDArray[np.uint64]


class SequenceSet:
    """The sequences of one split, counted from 0 in the order of the files that were ingested."""

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = shards
        self._ends = np.cumsum([shard.regions[layout.OFFSETS_DATASET].length - 1 for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> tuple[type[SequenceSet], tuple[list[Shard]]]:
        # what was computed stays behind; addresses mean nothing to another process
        return SequenceSet, (self._shards,)

    @cached_property
    def addresses(self) -> Addresses:
        """Where the sequences lie in memory."""
        tokens, offsets = (
            np.array([shard[name].ctypes.data for shard in self._shards], dtype=np.uint64)
            for name in (layout.TOKENS_DATASET, layout.OFFSETS_DATASET)
        )
        return Addresses(self._ends, tokens, offsets)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The number of residues of every sequence, int64[N], without special tokens."""
        lengths = np.empty(len(self), dtype=np.int64)
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            offsets = shard[layout.OFFSETS_DATASET]
            np.subtract(offsets[1:], offsets[:-1], out=lengths[end + 1 - len(offsets) : end])
        return lengths

    @property
    def has_clusters(self) -> bool:
        """Whether every shard says to which clusters its sequences belong."""
        return all(layout.CLUSTERS_DATASET in shard.regions for shard in self._shards)

    @property
    def clusters(self) -> NDArray[np.uint64]:
        """The cluster of every sequence, uint64[N], read anew each time; equal numbers are one cluster.

        Raises:
            ShardError: if a shard does not know them.
        """
        for shard in self._shards:
            if layout.CLUSTERS_DATASET not in shard.regions:
                raise ShardError(
                    f"{shard.path}: has no dataset '{layout.CLUSTERS_DATASET}'; ingest again with a table of clusters"
                )
        parts = [shard[layout.CLUSTERS_DATASET] for shard in self._shards]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def tokens(self, number: int) -> NDArray[np.uint8]:
        """Return the residues of a sequence, uint8[L], a read-only view of the file."""
        shard, place = self._locate(number)
        start, end = shard[layout.OFFSETS_DATASET][place : place + 2].tolist()
        view: NDArray[np.uint8] = shard[layout.TOKENS_DATASET][start:end]
        return view

    def identifier(self, number: int) -> str:
        """Return the first word of the header of a sequence.

        Raises:
            ShardError: if it is no text, because the shard is damaged.
        """
        shard, place = self._locate(number)
        start, end = shard[layout.IDENTIFIER_OFFSETS_DATASET][place : place + 2].tolist()
        try:
            return shard[layout.IDENTIFIERS_DATASET][start:end].tobytes().decode()
        except UnicodeDecodeError as error:
            raise ShardError(
                f"{shard.path}: the identifier of sequence {place:,} is damaged; run proteinlm verify"
            ) from error

    def by_shard(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield the residues of each shard, uint8[R], and the offsets of its sequences, int64[N + 1]; views."""
        for shard in self._shards:
            yield np.asarray(shard[layout.TOKENS_DATASET]), np.asarray(shard[layout.OFFSETS_DATASET])

    def _locate(self, number: int) -> tuple[Shard, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sequence {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right")) if len(self._shards) > 1 else 0
        return self._shards[shard], number - (int(self._ends[shard - 1]) if shard else 0)


_OFFSETS_OF = {
    layout.OFFSETS_DATASET: layout.TOKENS_DATASET,
    layout.IDENTIFIER_OFFSETS_DATASET: layout.IDENTIFIERS_DATASET,
}


def open_shard(path: Path, entry: ShardEntry) -> Shard:
    """Open a shard and check all of it but the content of its datasets.

    Raises:
        ShardError: if it is missing, cut off, or not the shard that ``entry`` describes.
    """
    import h5py

    try:
        with reading(path), h5py.File(path, "r") as file:
            _check_attributes(path, dict(file.attrs), entry)
            shard = Shard(path, _regions(path, file))
    except ShardError:
        raise
    except Exception as error:  # HDF5 meets damage with OSError, KeyError, RuntimeError, ValueError and more
        raise ShardError(f"{path}: is damaged or cut off ({error}); ingest again") from error
    lengths = {name: region.length for name, region in shard.regions.items()}
    if lengths[layout.IDENTIFIER_OFFSETS_DATASET] != lengths[layout.OFFSETS_DATASET]:
        raise ShardError(f"{path}: has not one identifier for each sequence; ingest again")
    if lengths.get(layout.CLUSTERS_DATASET, entry.num_sequences) != entry.num_sequences:
        raise ShardError(f"{path}: has not one cluster for each sequence; ingest again")
    found = lengths[layout.TOKENS_DATASET], lengths[layout.OFFSETS_DATASET] - 1
    if found != (entry.num_residues, entry.num_sequences):
        raise ShardError(
            f"{path}: holds {found[1]:,} sequences and {found[0]:,} residues where {layout.INDEX_FILE} says "
            f"{entry.num_sequences:,} and {entry.num_residues:,}; ingest again"
        )
    return shard


def _check_attributes(path: Path, found: Mapping[str, Any], entry: ShardEntry) -> None:
    expected = {
        "format_version": layout.FORMAT_VERSION,
        "alphabet": alphabet_digest(),
        "digest": entry.digest,
    }
    for name, value in expected.items():
        if found.get(name) != value:
            raise ShardError(f"{path}: has {name} {found.get(name)} where {value} is expected; ingest again")


def _regions(path: Path, file: Any) -> dict[str, Region]:
    has_clusters = layout.CLUSTERS_DATASET in file
    names = [name for name in layout.DTYPES if has_clusters or name != layout.CLUSTERS_DATASET]
    return {name: _region(path, file, name) for name in names}


def _region(path: Path, file: Any, name: str) -> Region:
    if name not in file:
        raise ShardError(f"{path}: has no dataset '{name}'; ingest again")
    dataset = file[name]
    if dataset.ndim != 1 or dataset.dtype.str != layout.DTYPES[name] or dataset.chunks is not None:
        raise ShardError(f"{path}: dataset '{name}' is not flat, contiguous {layout.DTYPES[name]}; ingest again")
    position = dataset.id.get_offset()
    if dataset.nbytes and (position is None or position + dataset.nbytes > path.stat().st_size):
        raise ShardError(f"{path}: is damaged or cut off (dataset '{name}' does not lie within it); ingest again")
    return Region(position, dataset.shape[0], layout.DTYPES[name])
