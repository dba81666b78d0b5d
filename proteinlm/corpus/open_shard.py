"""The shard of a split that is being filled: flat arrays in memory that grow at their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from proteinlm.corpus import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

# elements for which a new column has room; residues may have more from the beginning
_FIRST_ROOM = 1 << 12
_MOST_ROOM = 1 << 26


class Records(Protocol):
    """Records in flat arrays: what a block and a shard have in common."""

    @property
    def tokens(self) -> NDArray[np.uint8]:
        """The residues, one record after the other."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (N + 1), where the records begin in ``tokens``, and the end."""

    @property
    def identifiers(self) -> NDArray[np.uint8]:
        """The UTF-8 bytes of the identifiers, one after the other."""

    @property
    def identifier_offsets(self) -> NDArray[np.int64]:
        """int64 (N + 1) into ``identifiers``."""


class Column:
    """One dataset as far as it goes. Views of it stay what they are while it grows."""

    def __init__(self, dtype: str, room: int = _FIRST_ROOM) -> None:
        self._values: NDArray[Any] = np.empty(room, dtype=dtype)
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
            # pages that are never touched cost nothing, and twice the room keeps copying rare
            grown = np.empty(max(self._size, 2 * len(self._values)), dtype=self._values.dtype)
            grown[:start] = self._values[:start]
            self._values = grown
        return self._values[start : self._size]

    def clear(self) -> None:
        """Forget all elements and keep the room."""
        self._size = 0


class OpenShard:
    """The records that will be shard ``number`` of ``split``.

    Args:
        has_clusters: whether clusters are known.
        room: residues that it will hold, as far as that is known.

    Attributes:
        columns: by dataset, in the order of the format.
        longest: residues of the longest record.
    """

    def __init__(self, *, has_clusters: bool, room: int = _FIRST_ROOM) -> None:
        # memory that is not touched yet costs nothing, and residues need not be moved when more come
        rooms = {layout.TOKENS_DATASET: min(room, _MOST_ROOM)}
        self.columns = {
            name: Column(dtype, rooms.get(name, _FIRST_ROOM))
            for name, dtype in layout.DTYPES.items()
            if has_clusters or name != layout.CLUSTERS_DATASET
        }
        self.begin("", 0)

    def begin(self, split: str, number: int) -> None:
        """Make it the empty shard with this number."""
        self.split, self.number = split, number
        self.longest = 0
        for column in self.columns.values():
            column.clear()
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

    @property
    def num_residues(self) -> int:
        """How many residues it holds."""
        return len(self.columns[layout.TOKENS_DATASET])

    @property
    def datasets(self) -> dict[str, NDArray[Any]]:
        """Its content by dataset, as views."""
        return {name: column.values for name, column in self.columns.items()}

    def append(self, records: Records, numbers: NDArray[np.int64], clusters: NDArray[np.uint64] | None = None) -> None:
        """Take in some records.

        Args:
            records: where they are.
            numbers: int64 (M,), which ones, rising.
            clusters: uint64 (M,), the cluster of each, where clusters are known.
        """
        if not len(numbers):
            return
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        runs = np.append(0, breaks), np.append(breaks, len(numbers)) - 1
        firsts, ends = numbers[runs[0]], numbers[runs[1]] + 1
        lengths = self._append_runs(
            layout.TOKENS_DATASET, layout.OFFSETS_DATASET, (records.tokens, records.offsets), (numbers, firsts, ends)
        )
        self._append_runs(
            layout.IDENTIFIERS_DATASET,
            layout.IDENTIFIER_OFFSETS_DATASET,
            (records.identifiers, records.identifier_offsets),
            (numbers, firsts, ends),
        )
        if clusters is not None:
            self.columns[layout.CLUSTERS_DATASET].extend(len(numbers))[:] = clusters
        self.longest = max(self.longest, int(lengths.max()))

    def _append_runs(
        self,
        name: str,
        offsets_name: str,
        content: tuple[NDArray[np.uint8], NDArray[np.int64]],
        runs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    ) -> NDArray[np.int64]:
        """Copy records, each run of neighbours at once, and return their lengths."""
        values, offsets = content
        numbers, firsts, ends = runs
        lengths = offsets[numbers + 1] - offsets[numbers]
        parts = [values[start:end] for start, end in zip(offsets[firsts].tolist(), offsets[ends].tolist(), strict=True)]
        before = len(self.columns[name])
        np.concatenate(parts, out=self.columns[name].extend(int(lengths.sum())))
        added = self.columns[offsets_name].extend(len(numbers))
        np.cumsum(lengths, out=added)
        added += before
        return lengths
