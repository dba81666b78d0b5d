"""What shows when all records have been read: those that repeat an earlier one, and leaks between splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from proteinlm.corpus.digest_spool import DigestSpool
from proteinlm.corpus.duplicates import find_duplicates, find_leaks
from proteinlm.corpus.ingestion_state import Repeats
from proteinlm.corpus.layout import TRAIN
from proteinlm.corpus.record_set import RecordSet
from proteinlm.corpus.screening_list import MOST_NOTED, list_row
from proteinlm.corpus.shard_reader import SequenceSet, open_shard
from proteinlm.corpus.work_folder import WorkFolder
from proteinlm.corpus.written_shard import WrittenShard
from proteinlm.sequence.screening import DUPLICATE, DUPLICATE_IDENTIFIER

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RepeatFinder:
    """Finds and lists repeats in a corpus all of whose shards are written.

    Args:
        folder: where the corpus is.
        spool: of all kept records.
        splits: names of the splits by their numbers in the spool.
        sources: names of the sources by their numbers.
        shards: all shards, those of each split in order.
        memory_bytes: how much memory to use, roughly.
    """

    def __init__(
        self,
        folder: WorkFolder,
        spool: DigestSpool,
        *,
        splits: Sequence[str],
        sources: Sequence[str],
        shards: Sequence[WrittenShard],
        memory_bytes: int,
    ) -> None:
        self._folder, self._spool, self._memory_bytes = folder, spool, memory_bytes
        self._splits, self._sources, self._shards = splits, sources, shards

    def find(self, table: IO[str], *, duplicates: str) -> Repeats:
        """Find repeats, list them, and say which sequences are to be taken out.

        Args:
            table: takes the rows of the list.
            duplicates: what to do with them, as in ``ScreeningConfig``.
        """
        is_drop = duplicates == "drop"
        sequences = names = RecordSet(0)
        if duplicates != "ignore":
            found = find_duplicates(self._spool, memory_bytes=self._memory_bytes, drop=is_drop)
            sequences, names = found.sequences, found.names
            self._list(table, sequences, "dropped" if is_drop else "noted", DUPLICATE)
            self._list(table, names, "noted", DUPLICATE_IDENTIFIER)
        if is_drop:
            self._say_what_goes(sequences)
        leaks = find_leaks(
            self._spool,
            {split: number for number, split in enumerate(self._splits)},
            train=TRAIN,
            memory_bytes=self._memory_bytes,
            dropped=sequences if is_drop else None,
        )
        return Repeats(num_sequences=len(sequences), num_names=len(names), leaks=leaks)

    def _list(self, table: IO[str], records: RecordSet, outcome: str, reason: str) -> None:
        """Write the rows of records, of those that were kept no more than ``MOST_NOTED``."""
        left = MOST_NOTED if outcome == "noted" else records.num_records
        contents = [self._sequences(split) for split in self._splits]
        for numbers in records.blocks():
            chosen = numbers[:left]
            left -= len(chosen)
            columns = (*self._spool.places(chosen), *self._spool.lines(chosen))
            rows = zip(*(column.tolist() for column in columns), strict=True)
            for split, place, source, line in rows:
                identifier = contents[split].identifier(place)
                table.write(list_row(outcome, reason, self._sources[source], line, identifier))
            if not left:
                return

    def _sequences(self, split: str) -> SequenceSet:
        shards = [shard.entry for shard in self._shards if shard.split == split]
        return SequenceSet([open_shard(self._folder.corpus / entry.file, entry) for entry in shards])

    def _say_what_goes(self, records: RecordSet) -> None:
        """Write the places that records have in their splits to a file for each split."""
        files = [places_file(self._folder, split).open("wb") for split in self._splits]
        try:
            for numbers in records.blocks():
                splits, places = self._spool.places(numbers)
                for split, file in enumerate(files):
                    file.write(places[splits == split].astype("<i8").data)
        finally:
            for file in files:
                file.close()


def places_file(folder: WorkFolder, split: str) -> Path:
    """Return the file of the places, rising, of the sequences that are to be taken out of a split."""
    return folder.path / f"duplicates-{split}.i64"


def places_in_shards(
    folder: WorkFolder, shards: Sequence[WrittenShard]
) -> Iterator[tuple[WrittenShard, NDArray[np.int64]]]:
    """Yield the shards with sequences that are to be taken out, and the places of these in each."""
    for split in dict.fromkeys(shard.split for shard in shards):
        path = places_file(folder, split)
        if not path.stat().st_size:
            continue
        places = np.memmap(path, dtype="<i8", mode="r")
        start = 0
        for shard in (shard for shard in shards if shard.split == split):
            stop = start + shard.entry.num_sequences
            first, last = np.searchsorted(places, [start, stop]).tolist()
            if last > first:
                yield shard, np.array(places[first:last]) - start
            start = stop
