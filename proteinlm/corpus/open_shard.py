"""The shard of a split that is being filled: residues go to its file at once, all else stays in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.layout import ShardEntry
from proteinlm.corpus.shard_tokens import Records, ShardTokens
from proteinlm.corpus.written_shard import WrittenShard
from proteinlm.sequence.timings import measured

if TYPE_CHECKING:
    from numpy.typing import NDArray

# elements for which a new column has room
_FIRST_ROOM = 1 << 12


class Column:
    """One dataset as far as it goes. Views of it stay what they are while it grows."""

    def __init__(self, dtype: str) -> None:
        self._values: NDArray[Any] = np.empty(_FIRST_ROOM, dtype=dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> NDArray[Any]:
        """All of it, a view."""
        return self._values[: self._size]

    def extend(self, amount: int) -> NDArray[Any]:
        """Return a view of ``amount`` new elements, to be filled by the caller."""
        start, self._size = self._size, self._size + amount
        if self._size > len(self._values):
            # twice the room keeps copying rare
            grown = np.empty(max(self._size, 2 * len(self._values)), dtype=self._values.dtype)
            grown[:start] = self._values[:start]
            self._values = grown
        return self._values[start : self._size]


class OpenShard:
    """The records that will be shard ``number`` of ``split``.

    Args:
        split: its name.
        number: of the shard.
        tokens: its residues, in a file that grows.
        has_clusters: whether clusters are known.

    Attributes:
        columns: all datasets but the tokens, in the order of the format.
    """

    def __init__(self, split: str, number: int, tokens: ShardTokens, *, has_clusters: bool) -> None:
        self.split, self.number, self.tokens = split, number, tokens
        self.columns = {
            name: Column(dtype)
            for name, dtype in layout.DTYPES.items()
            if name != layout.TOKENS_DATASET and (has_clusters or name != layout.CLUSTERS_DATASET)
        }
        for name in (layout.OFFSETS_DATASET, layout.IDENTIFIER_OFFSETS_DATASET):
            self.columns[name].extend(1)[0] = 0

    @property
    def file(self) -> str:
        """The name of the file that it will be."""
        return layout.shard_file(self.split, self.number)

    @property
    def num_sequences(self) -> int:
        """How many records it holds."""
        return len(self.columns[layout.OFFSETS_DATASET]) - 1

    def append(self, records: Records, numbers: NDArray[np.int64], clusters: NDArray[np.uint64] | None = None) -> None:
        """Take in some records.

        Args:
            records: where they are.
            numbers: int64 (M,), which ones, rising; at least one.
            clusters: uint64 (M,), the cluster of each, where clusters are known.

        Raises:
            OutputError: if residues cannot be written.
        """
        from proteinlm.corpus.record_gathering import copy_records, fill_ends

        columns = self.columns
        self.tokens.append(records, numbers, columns[layout.OFFSETS_DATASET].extend(len(numbers)))
        with measured(self.tokens.timings, "gather"):
            offsets, before = records.identifier_offsets, len(columns[layout.IDENTIFIERS_DATASET])
            ends = columns[layout.IDENTIFIER_OFFSETS_DATASET].extend(len(numbers))
            names = columns[layout.IDENTIFIERS_DATASET].extend(fill_ends(offsets, numbers, ends, before))
            copy_records(records.identifiers, offsets, numbers, names)
            if clusters is not None:
                columns[layout.CLUSTERS_DATASET].extend(len(numbers))[:] = clusters

    def finish(self, folder: Path) -> WrittenShard:
        """Make it a shard in ``folder``; it is of no use afterwards.

        Raises:
            OutputError: if it cannot be written.
        """
        num_residues, counts = len(self.tokens), self.tokens.counts
        others = {name: column.values for name, column in self.columns.items()}
        digest, block_digests = self.tokens.finish(folder / self.file, others)
        entry = ShardEntry(
            file=self.file,
            num_sequences=self.num_sequences,
            num_residues=num_residues,
            digest=digest,
            block_digests=block_digests,
        )
        longest = int(np.diff(others[layout.OFFSETS_DATASET]).max())
        return WrittenShard(self.split, entry, longest, tuple(counts.tolist()))
