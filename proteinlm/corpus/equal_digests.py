"""Rows that have one digest of 128 bits in common, found by sorting within a given memory.

The digests of most rows are theirs alone, and half a digest shows it: the low halves are sorted, each
with its last bits replaced by the number of its row, and only rows whose neighbour begins with the
same bits are looked at again. What does not fit in memory is first parted by leading bits into files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HALF_BITS = 64
_DIGEST_BITS = 128

# bytes of memory for each row that is sorted, and for each that begins like its neighbour
_SORTED_BYTES = 16
_LIKE_BYTES = 96
# fewer rows than this are always sorted at once
_MIN_ROWS = 64

_MAX_PARTITION_BITS = 6  # three open files for each part
_MAX_WRITE_BYTES = 1 << 18


class EqualRows(NamedTuple):
    """Rows in groups of one digest, in the order of the table within a group.

    A group whose first row is not marked goes on from the rows before. A group may have one row.
    """

    payload: NDArray[np.uint64]
    is_first: NDArray[np.bool_]


class Rows(NamedTuple):
    """Some rows of a table: halves of their digests, and what the one who asks knows them by."""

    low: NDArray[np.uint64]
    high: NDArray[np.uint64]
    payload: NDArray[np.uint64]


class DigestTable(Protocol):
    """Rows that can be read again and again."""

    num_rows: int  # at most

    def column(self, name: str, step: int) -> Iterator[NDArray[np.uint64]]:
        """Yield the column ``low``, ``high`` or ``payload``, at most ``step`` rows at a time."""


def equal_rows(table: DigestTable, folder: Path, *, memory_bytes: int) -> Iterator[EqualRows]:
    """Yield the rows of every digest that more than one row of ``table`` has.

    Args:
        table: the rows.
        folder: where parts may be written; it is emptied before and removed after.
        memory_bytes: how much memory to use, roughly.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield from _equal_rows(table, folder, memory_bytes, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _equal_rows(table: DigestTable, folder: Path, memory_bytes: int, num_common: int) -> Iterator[EqualRows]:
    """Yield equal rows of a table whose digests all begin with the same ``num_common`` bits."""
    step = max(memory_bytes // (2 * _LIKE_BYTES), _MIN_ROWS)
    if num_common == _DIGEST_BITS:
        yield from _all_equal(table, step)
        return
    if table.num_rows <= max(memory_bytes // _SORTED_BYTES, _MIN_ROWS):
        rows, is_first = _rows_like_their_neighbour(table, step, num_common)
        if not len(rows):
            return
        if len(rows) <= step:
            yield _decided(table, rows, is_first, step)
            return
    for part in _parts(table, folder, memory_bytes, num_common):
        if part.num_rows > 1:
            yield from _equal_rows(part, part.folder, memory_bytes, part.num_common())
        part.remove()


def _all_equal(table: DigestTable, step: int) -> Iterator[EqualRows]:
    is_begun = False
    for payload in table.column("payload", step):
        is_first = np.zeros(len(payload), dtype=np.bool_)
        is_first[:1] = not is_begun
        is_begun |= len(payload) > 0
        yield EqualRows(payload, is_first)


def _rows_like_their_neighbour(
    table: DigestTable, step: int, num_common: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the rows whose digest begins like another's, such rows together, and which is first of its kind."""
    half, num_known = ("low", num_common) if num_common < _HALF_BITS else ("high", num_common - _HALF_BITS)
    keys = _whole_column(table, half, step)
    num_bits = np.uint64(max(len(keys) - 1, 1).bit_length())
    row_bits = (np.uint64(1) << num_bits) - np.uint64(1)
    for start in range(0, len(keys), step):
        part = keys[start : start + step]
        part <<= np.uint64(num_known)
        part &= ~row_bits
        part |= np.arange(start, start + len(part), dtype=np.uint64)
    # the numbers within keep equal ones in order, so the fastest sort will do
    keys.sort()
    is_like_previous = np.zeros(len(keys) + 1, dtype=np.bool_)
    for start in range(0, len(keys) - 1, step):
        part = keys[start : start + step + 1]
        is_like_previous[start + 1 : start + len(part)] = (part[1:] ^ part[:-1]) <= row_bits
    found = np.flatnonzero(is_like_previous[:-1] | is_like_previous[1:])
    rows = (keys[found] & row_bits).astype(np.int64)
    return rows, ~is_like_previous[found]


def _whole_column(table: DigestTable, name: str, step: int) -> NDArray[np.uint64]:
    values = np.empty(table.num_rows, dtype=np.uint64)
    end = 0
    for part in table.column(name, step):
        values[end : end + len(part)] = part
        end += len(part)
    return values[:end]


def _decided(table: DigestTable, rows: NDArray[np.int64], is_first: NDArray[np.bool_], step: int) -> EqualRows:
    """Return which of the rows that begin alike are equal in all 128 bits."""
    low = _whole_column(table, "low", step)[rows]
    high = _whole_column(table, "high", step)[rows]
    is_equal = _is_equal_to_previous(low, high)
    if (unlike := ~(is_first | is_equal)).any():
        # a digest may stand between two of another: order what begins like one that is not equal
        group = np.cumsum(is_first) - 1
        is_mixed = np.zeros(group[-1] + 1, dtype=np.bool_)
        is_mixed[group[unlike]] = True
        mixed = np.flatnonzero(is_mixed[group])
        ordered = mixed[np.lexsort((rows[mixed], high[mixed], low[mixed]))]
        for values in (low, high, rows):
            values[mixed] = values[ordered]
        is_equal = _is_equal_to_previous(low, high)
    return EqualRows(_whole_column(table, "payload", step)[rows], ~is_equal)


def _is_equal_to_previous(low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.bool_]:
    is_equal = np.zeros(len(low), dtype=np.bool_)
    is_equal[1:] = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return is_equal


def _parts(table: DigestTable, folder: Path, memory_bytes: int, num_common: int) -> list[_Part]:
    """Return the rows in files by the bits that follow the first ``num_common``."""
    num_parts = table.num_rows // max(memory_bytes // _LIKE_BYTES, _MIN_ROWS)
    num_bits = min(max(num_parts.bit_length(), 1), _MAX_PARTITION_BITS, _HALF_BITS - num_common % _HALF_BITS)
    half, num_known = divmod(num_common, _HALF_BITS)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_Part(folder / f"{number:02d}") for number in range(1 << num_bits)]
    step = max(memory_bytes // (2 * _LIKE_BYTES), _MIN_ROWS)
    with ExitStack() as opened:
        for part in parts:
            part.open(opened, min(max(memory_bytes // (8 * len(parts)), 512), _MAX_WRITE_BYTES))
        for rows in zip(*(table.column(name, step) for name in Rows._fields), strict=True):
            bits = rows[half] << np.uint64(num_known) >> np.uint64(_HALF_BITS - num_bits)
            # of bytes this sort is one of counting, which keeps the order
            order = np.argsort(bits.astype(np.uint8), kind="stable")
            ends = np.cumsum(np.bincount(bits.astype(np.int64), minlength=len(parts))).tolist()
            ordered = Rows(*(values[order] for values in rows))
            for part, (start, end) in zip(parts, pairwise([0, *ends]), strict=True):
                part.append(Rows(*(values[start:end] for values in ordered)))
    return parts


class _Part:
    """A table in three files of a folder of its own, whose rows have come from a larger one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_rows = 0
        self._files: list[IO[bytes]] = []
        self._smallest = [np.iinfo(np.uint64).max] * 2
        self._largest = [0] * 2

    def open(self, opened: ExitStack, buffer_bytes: int) -> None:
        self.folder.mkdir()
        self._files = [
            opened.enter_context(self._path(name).open("wb", buffering=buffer_bytes)) for name in Rows._fields
        ]

    def append(self, rows: Rows) -> None:
        if not len(rows.low):
            return
        self.num_rows += len(rows.low)
        for half in (0, 1):
            self._smallest[half] = min(self._smallest[half], int(rows[half].min()))
            self._largest[half] = max(self._largest[half], int(rows[half].max()))
        for file, values in zip(self._files, rows, strict=True):
            file.write(values.data)

    def num_common(self) -> int:
        """Return with how many bits alike all digests begin."""
        low, high = (
            _HALF_BITS - (smallest ^ largest).bit_length()
            for smallest, largest in zip(self._smallest, self._largest, strict=True)
        )
        return low + high if low == _HALF_BITS else low

    def column(self, name: str, step: int) -> Iterator[NDArray[np.uint64]]:
        with self._path(name).open("rb") as file:
            while len(values := np.fromfile(file, dtype=np.uint64, count=step)):
                yield values

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / name
