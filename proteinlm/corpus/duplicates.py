"""What the digests of all kept records tell: which repeat an earlier one, and what validation shares with training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus.digest_spool import (
    CLUSTER,
    NAME_COLUMNS,
    NO_CLUSTER,
    PLACE,
    SEQUENCE_COLUMNS,
    DigestSpool,
    split_of_place,
)
from proteinlm.corpus.equal_digests import DigestTable, EqualRows, equal_rows
from proteinlm.corpus.layout import LeakEntry
from proteinlm.corpus.record_set import RecordSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PARTS_FOLDER = "parts"
_NUM_SPLITS = 256
_STEP = 1 << 16  # records looked at together
# odd, so that multiplying by it modulo 2^64 is one to one; it spreads numbers that are counted up
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Records, by number among the kept ones, that repeat an earlier record."""

    sequences: RecordSet
    names: RecordSet


def find_duplicates(spool: DigestSpool, *, memory_bytes: int, drop: bool = False) -> Duplicates:
    """Find the records whose sequence, or whose name, is that of an earlier one.

    Args:
        spool: of all kept records.
        memory_bytes: how much memory to use, roughly; a quarter of a byte for each record comes
            on top of what is small.
        drop: whether the records with an earlier sequence are dropped; their names are then
            no one's.
    """
    sequences = _repeats(spool, SEQUENCE_COLUMNS, None, memory_bytes)
    return Duplicates(sequences, _repeats(spool, NAME_COLUMNS, sequences if drop else None, memory_bytes))


def find_leaks(
    spool: DigestSpool,
    split_numbers: Mapping[str, int],
    *,
    train: str,
    memory_bytes: int,
    dropped: RecordSet | None = None,
) -> dict[str, LeakEntry]:
    """Return for each split but ``train`` what it shares with ``train``, in proteins.

    Args:
        spool: of all kept records, with the columns ``columns_needed`` names; where it has none,
            no leak is possible.
        split_numbers: by name of the split, its number in the spool.
        train: name of the split to compare with.
        memory_bytes: how much memory to use, roughly.
        dropped: records that are not in the corpus after all.
    """
    number, parts = split_numbers[train], spool.folder / _PARTS_FOLDER
    equal, relatives = np.zeros(_NUM_SPLITS, dtype=np.int64), None
    if PLACE in spool.columns:
        table = _SpoolTable(spool, SEQUENCE_COLUMNS, dropped, payload=PLACE)
        equal = _count_beside(number, table, parts, memory_bytes)
    if CLUSTER in spool.columns and _has_clusters(spool, number, dropped):
        relatives = _count_beside(number, _ClusterTable(spool, dropped), parts, memory_bytes)
    return {
        split: LeakEntry(equal_sequences=int(equal[n]), same_cluster=None if relatives is None else int(relatives[n]))
        for split, n in split_numbers.items()
        if split != train
    }


class _SpoolTable:
    """The records of a spool but the dropped ones; ``payload`` is a column, or their numbers."""

    def __init__(
        self, spool: DigestSpool, halves: tuple[str, str], dropped: RecordSet | None, payload: str | None = None
    ) -> None:
        self.num_rows = spool.num_records - (len(dropped) if dropped is not None else 0)
        self._spool = spool
        self._dropped = dropped
        self._columns = {"low": halves[0], "high": halves[1], "payload": payload}

    def column(self, name: str, step: int) -> Iterator[NDArray[np.uint64]]:
        for start in range(0, self._spool.num_records, step):
            stop = min(start + step, self._spool.num_records)
            values = self._values(self._columns[name], start, stop)
            yield values if self._dropped is None else values[~self._dropped.mask(start, stop)]

    def _values(self, column: str | None, start: int, stop: int) -> NDArray[np.uint64]:
        return np.arange(start, stop, dtype=np.uint64) if column is None else self._spool.read(column, start, stop)


class _ClusterTable:
    """The records that are in a cluster, with the cluster in the place of a digest."""

    def __init__(self, spool: DigestSpool, dropped: RecordSet | None) -> None:
        self._records = _SpoolTable(spool, (CLUSTER, CLUSTER), dropped, payload=PLACE)
        self.num_rows = self._records.num_rows

    def column(self, name: str, step: int) -> Iterator[NDArray[np.uint64]]:
        values = self._records.column(name, step)
        for clusters, found in zip(self._records.column("low", step), values, strict=True):
            known = found[clusters != NO_CLUSTER]
            yield known if name == "payload" else known * _SPREAD


class _SharedWithTrain:
    """Counts, by split, the rows whose group has a row of ``train``."""

    def __init__(self, train: int) -> None:
        self.counts = np.zeros(_NUM_SPLITS, dtype=np.int64)
        self._train = train
        # of the group that the next rows may go on with
        self._open = np.zeros(_NUM_SPLITS, dtype=np.int64)

    def add(self, rows: EqualRows) -> None:
        if not len(rows.is_first):
            return
        splits = split_of_place(rows.payload)
        # group 0 is the open one, which may have no row here
        group = np.cumsum(rows.is_first)
        last = int(group[-1])
        has_train = np.bincount(group[splits == self._train], minlength=last + 1) > 0
        counted = splits[has_train[group] & (group > 0) & (group < last)]
        self.counts += np.bincount(counted, minlength=_NUM_SPLITS)
        self._open += np.bincount(splits[group == 0], minlength=_NUM_SPLITS)
        if last > 0:
            self.close()
            self._open += np.bincount(splits[group == last], minlength=_NUM_SPLITS)

    def close(self) -> None:
        """Count the open group."""
        if self._open[self._train]:
            self.counts += self._open
        self._open[:] = 0


def _repeats(spool: DigestSpool, halves: tuple[str, str], dropped: RecordSet | None, memory_bytes: int) -> RecordSet:
    found = RecordSet(spool.num_records)
    table = _SpoolTable(spool, halves, dropped)
    for rows in equal_rows(table, spool.folder / _PARTS_FOLDER, memory_bytes=memory_bytes):
        found.add(rows.payload[~rows.is_first])
    return found


def _count_beside(train: int, table: DigestTable, folder: Path, memory_bytes: int) -> NDArray[np.int64]:
    """Return for every split how many rows have the digest of a row of ``train``."""
    shared = _SharedWithTrain(train)
    for rows in equal_rows(table, folder, memory_bytes=memory_bytes):
        shared.add(rows)
    shared.close()
    return shared.counts


def _has_clusters(spool: DigestSpool, split: int, dropped: RecordSet | None) -> bool:
    """Say whether any record of a split is in a cluster."""
    table = _SpoolTable(spool, (CLUSTER, PLACE), dropped)
    return any(
        np.any((clusters != NO_CLUSTER) & (split_of_place(places) == split))
        for clusters, places in zip(table.column("low", _STEP), table.column("high", _STEP), strict=True)
    )
