"""Rows of numbers, put in order within a memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS = 8
# held rows are joined, ordered and copied before they are let go
_COPIES = 6


class PartitionedRows:
    """Rows of C numbers, gathered in any order and given back in parts by the size of the first number.

    The first number must be a hash, so that the parts are about equally large. Rows that outgrow the
    budget lie in a file for each part, ``NAME.00`` to ``NAME.ff`` in ``folder``, until they are given
    back.
    """

    def __init__(self, folder: Path, name: str, num_columns: int, *, memory_bytes: int) -> None:
        self._folder = folder
        self._name = name
        self._num_columns = num_columns
        self._most_bytes = memory_bytes // _COPIES
        self._held: list[NDArray[np.uint64]] = []
        self._held_bytes = 0
        self._is_spilled = False

    def add(self, *columns: NDArray[np.uint64]) -> None:
        """Take in rows: one array (N,) for each column."""
        rows = np.stack(columns, axis=1)
        self._held.append(rows)
        self._held_bytes += rows.nbytes
        if self._held_bytes > self._most_bytes:
            self._spill()

    def partitions(self) -> Iterator[NDArray[np.uint64]]:
        """Yield all rows (N, C): each part's first numbers are above those of the part before.

        Inside a part the rows are in the order in which they came.
        """
        if not self._is_spilled:
            yield self._joined()
            return
        self._spill()
        for part in range(1 << _BITS):
            if (path := self._file(part)).exists():
                yield np.fromfile(path, dtype=np.uint64).reshape(-1, self._num_columns)
                path.unlink()

    def _joined(self) -> NDArray[np.uint64]:
        rows = np.concatenate([np.empty((0, self._num_columns), dtype=np.uint64), *self._held])
        self._held, self._held_bytes = [], 0
        return rows

    def _spill(self) -> None:
        self._is_spilled = True
        rows = self._joined()
        parts = (rows[:, 0] >> np.uint64(64 - _BITS)).astype(np.uint8)
        rows = rows[np.argsort(parts, kind="stable")]
        start = 0
        for part, count in enumerate(np.bincount(parts, minlength=1 << _BITS).tolist()):
            if count:
                with self._file(part).open("ab") as file:
                    rows[start : start + count].tofile(file)
            start += count

    def _file(self, part: int) -> Path:
        return self._folder / f"{self._name}.{part:02x}"
