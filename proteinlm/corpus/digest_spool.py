"""What must be known of every kept record when all have been read, in files of one column each.

A record takes up to 56 bytes on disk and none in memory. The columns are raw uint64, low byte first,
in the order of the records, so that what was written up to a record is found by its number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from proteinlm.errors import OutputError
from proteinlm.sequence.record_blocks import RecordBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEQUENCE_COLUMNS = ("sequence_low", "sequence_high")  # halves of the digest of the tokens
NAME_COLUMNS = ("name_low", "name_high")  # halves of the digest of the accession
PLACE = "place"  # the number of the split, 8 bits, and that of the sequence within it, 56 bits
LINE = "line"  # the number of the source, 16 bits, and the line of the header, 48 bits
CLUSTER = "cluster"

DUPLICATE_COLUMNS = (*SEQUENCE_COLUMNS, *NAME_COLUMNS, PLACE, LINE)
LEAK_COLUMNS = (*SEQUENCE_COLUMNS, PLACE, CLUSTER)

# stands for the cluster of a record that is in none
NO_CLUSTER = np.uint64((1 << 64) - 1)

# how many files a spool can tell apart
MAX_SOURCES = 1 << 16

_NUMBER = np.dtype("<u8")
_PLACE_BITS = 56
_LINE_BITS = 48
_WRITE_BYTES = 1 << 18


def columns_needed(*, duplicates: str, has_clusters: bool, may_part_equals: bool) -> tuple[str, ...]:
    """Return the columns that a corpus needs.

    Args:
        duplicates: as in ``ScreeningConfig``.
        has_clusters: whether clusters are known.
        may_part_equals: whether equal sequences can be in two splits; if not, nothing can leak.
    """
    needed: tuple[str, ...] = DUPLICATE_COLUMNS if duplicates != "ignore" else ()
    if has_clusters or may_part_equals:
        needed += LEAK_COLUMNS if has_clusters else (*SEQUENCE_COLUMNS, PLACE)
    return tuple(dict.fromkeys(needed))


class DigestSpool:
    """Columns of the kept records in files of a folder, to append to and to read from.

    Args:
        folder: made if it is not there; files of an earlier spool in it are emptied.
        columns: those to write, ``columns_needed``.
    """

    def __init__(self, folder: Path, *, columns: Collection[str] = DUPLICATE_COLUMNS) -> None:
        self.folder = folder
        self.columns = tuple(columns)
        self._num_records = 0
        self._open("wb")

    @classmethod
    def resumed(cls, folder: Path, num_records: int, *, columns: Collection[str] = DUPLICATE_COLUMNS) -> DigestSpool:
        """Return the spool of ``folder`` as it was after its first ``num_records`` records.

        Raises:
            OutputError: if the files hold fewer.
        """
        spool = cls.__new__(cls)
        spool.folder, spool.columns, spool._num_records = folder, tuple(columns), num_records
        for column in spool.columns:
            _truncate(spool.path(column), num_records)
        spool._open("ab")
        return spool

    def _open(self, mode: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[bytes]] = {
            column: self.path(column).open(mode, buffering=_WRITE_BYTES) for column in self.columns
        }

    @property
    def num_records(self) -> int:
        """How many records have been appended."""
        return self._num_records

    def path(self, column: str) -> Path:
        """Return the file of a column."""
        return self.folder / f"{column}.u64"

    def append(
        self,
        block: RecordBlock,
        kept: NDArray[np.bool_],
        splits: NDArray[np.uint8],
        places: NDArray[np.int64],
        source: int,
        clusters: NDArray[np.uint64] | None = None,
    ) -> None:
        """Add the kept records of a block.

        Args:
            block: of N records.
            kept: which of them, (N,).
            splits: number of the split of each of the K kept ones, (K,).
            places: number of each within its split, (K,).
            source: number of the source.
            clusters: number of the cluster of each, (K,), or ``NO_CLUSTER``.
        """
        assert 0 <= source < MAX_SOURCES
        assert (CLUSTER in self.columns) == (clusters is not None)
        values: dict[str, Callable[[], NDArray[Any] | None]] = {
            "sequence_low": lambda: block.digests[kept, 0],
            "sequence_high": lambda: block.digests[kept, 1],
            "name_low": lambda: block.name_digests[kept, 0],
            "name_high": lambda: block.name_digests[kept, 1],
            PLACE: lambda: _joined(splits, places, _PLACE_BITS),
            LINE: lambda: _joined(source, block.lines[kept], _LINE_BITS),
            CLUSTER: lambda: clusters,
        }
        for column, file in self._files.items():
            file.write(np.ascontiguousarray(values[column](), dtype=_NUMBER).data)
        self._num_records += int(np.count_nonzero(kept))

    def append_sequences(self, digests: NDArray[np.uint64]) -> None:
        """Add records of which the digests of their tokens, low half and high half (K, 2), are all that matters."""
        assert self.columns == SEQUENCE_COLUMNS
        for half, column in enumerate(SEQUENCE_COLUMNS):
            self._files[column].write(np.ascontiguousarray(digests[:, half], dtype=_NUMBER).data)
        self._num_records += len(digests)

    def flush(self) -> None:
        """Hand everything appended to the system."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Flush and close the files; the spool can still be read."""
        with ExitStack() as closing:
            # all of them, though the disk may be too full for one to be flushed
            for file in self._files.values():
                closing.callback(file.close)
        self._files = {}

    def __enter__(self) -> DigestSpool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, column: str, start: int, stop: int) -> NDArray[np.uint64]:
        """Return a column of the records ``start`` to ``stop``, in memory of its own."""
        if column in self._files:
            self._files[column].flush()
        return np.fromfile(self.path(column), dtype=_NUMBER, count=stop - start, offset=start * _NUMBER.itemsize)

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the split of each of these records, and its number within the split."""
        return _parted(self._at(PLACE, numbers), _PLACE_BITS)

    def lines(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each of these records, and the line of its header."""
        return _parted(self._at(LINE, numbers), _LINE_BITS)

    def _at(self, column: str, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
        if not len(numbers):
            return np.empty(0, dtype=np.uint64)
        # records that follow each other are read at once
        first, last = int(numbers.min()), int(numbers.max())
        if last - first < 2 * len(numbers):
            return self.read(column, first, last + 1)[numbers - first]
        self.flush()
        return np.array(np.memmap(self.path(column), dtype=_NUMBER, mode="r")[numbers])


def split_of_place(place: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the numbers of the splits in a column of places."""
    return (place >> np.uint64(_PLACE_BITS)).astype(np.uint8)


def _joined(high: NDArray[np.uint8] | int, low: NDArray[np.int64], num_low_bits: int) -> NDArray[np.uint64]:
    assert not len(low) or 0 <= int(low.max()) < 1 << num_low_bits
    return np.asarray(high, dtype=np.uint64) << np.uint64(num_low_bits) | low.astype(np.uint64)


def _parted(values: NDArray[np.uint64], num_low_bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    low = values & np.uint64((1 << num_low_bits) - 1)
    return (values >> np.uint64(num_low_bits)).astype(np.int64), low.astype(np.int64)


def _truncate(path: Path, num_records: int) -> None:
    try:
        found = path.stat().st_size // _NUMBER.itemsize
        if found >= num_records:
            os.truncate(path, num_records * _NUMBER.itemsize)
            return
    except FileNotFoundError:
        found = 0
    raise OutputError(
        f"{path}: holds {found:,} records where {num_records:,} were written; remove {path.parent} and start again"
    )
