"""Blocks of records in, a growing corpus out: screened, split, gathered into shards, and resumable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus import layout
from proteinlm.corpus.digest_spool import DigestSpool, columns_needed
from proteinlm.corpus.ingestion_state import (
    IngestionState,
    Repeats,
    Request,
    append_shard,
    write_state,
)
from proteinlm.corpus.open_shards import OpenShards
from proteinlm.corpus.ordered_threads import Worker
from proteinlm.corpus.screening_list import MOST_NOTED, begin_list, list_row, resume_list
from proteinlm.corpus.shard_borders import ShardBorders
from proteinlm.corpus.source_reading import ReadingState
from proteinlm.corpus.splitting import Splitter
from proteinlm.corpus.verification import compare_blocks
from proteinlm.corpus.work_folder import UnusableWorkError, WorkFolder
from proteinlm.corpus.written_shard import WrittenShard
from proteinlm.errors import OutputError, ShardError
from proteinlm.sequence.block_screening import REASONS, BlockScreen, nucleotides
from proteinlm.sequence.record_blocks import RecordBlock
from proteinlm.sequence.screening import NUCLEOTIDES, ScreeningConfig, ScreeningReport
from proteinlm.sequence.substitutions import total_of
from proteinlm.sequence.timings import Timings

if TYPE_CHECKING:
    from numpy.typing import NDArray

# seconds of work that may be lost where shards are slow to fill
CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Records of a block that go to one shard."""

    split: str
    shard: int
    numbers: NDArray[np.int64]
    clusters: NDArray[np.uint64] | None


class CorpusBuilder:
    """Takes blocks one after the other; everything slow is a job of the workers.

    Args:
        folder: where the corpus grows.
        request: what was asked for.
        screening: what to keep.
        splitter: tells splits and clusters.
        shard_residues: upper size of a shard.
        worker: gathers and makes states.
        writer: writes residues for it.
        timings: takes the seconds of each stage.

    Attributes:
        shards: those written, in the order in which they became full.
        table: the list of what was dropped or noted.
    """

    def __init__(
        self,
        folder: WorkFolder,
        request: Request,
        screening: ScreeningConfig,
        splitter: Splitter,
        *,
        shard_residues: int,
        worker: Worker,
        writer: Worker,
        timings: Timings,
    ) -> None:
        self._folder, self._request, self._splitter = folder, request, splitter
        self._worker, self._timings = worker, timings
        self._screen = BlockScreen(screening)
        has_clusters = splitter.clusters_entry() is not None
        self._opened = ExitStack()
        self._shard_residues = shard_residues
        self._borders = {split: ShardBorders(shard_residues) for split in splitter.splits}
        self._open = OpenShards(folder, has_clusters=has_clusters, writer=writer, timings=timings)
        self._columns = columns_needed(
            duplicates=screening.duplicates, has_clusters=has_clusters, may_part_equals=splitter.may_part_equals
        )
        self._substitutions: Counter[str] = Counter()
        self.shards: list[WrittenShard] = []
        self._has_new_shards = False
        self._last_checkpoint = time.monotonic()

    def begin(self) -> None:
        """Make the files of a corpus without records."""
        self._spool = self._opened.enter_context(DigestSpool(self._folder.digests, columns=self._columns))
        self.table = self._opened.enter_context(begin_list(self._folder.corpus))

    def resume(self, state: IngestionState, shards: list[WrittenShard]) -> None:
        """Bring everything back to what it was at ``state``, when ``shards`` had been written.

        Raises:
            UnusableWorkError: if files do not hold what was written.
        """
        self._screen = BlockScreen.resumed(self._screen.config, state.screening)
        self._substitutions = Counter(state.substitutions)
        self._splitter.restore(state.splitting)
        self.shards = shards
        try:
            spool = DigestSpool.resumed(self._folder.digests, state.num_spooled, columns=self._columns)
        except OutputError as error:
            raise UnusableWorkError(f"{self._folder.digests}: is damaged; begin anew with --restart") from error
        self._spool = self._opened.enter_context(spool)
        self.table = self._opened.enter_context(resume_list(self._folder.corpus, state.screening_bytes))
        for saved in state.open_shards:
            self._open.load(saved)
            before = sum(shard.entry.num_sequences for shard in shards if shard.split == saved.split)
            self._borders[saved.split] = ShardBorders(
                self._shard_residues,
                shard=saved.number,
                num_residues=saved.lengths[layout.TOKENS_DATASET],
                num_sequences=before + saved.num_sequences,
            )
        self._open.keep_only(state.open_shards)

    def add(self, block: RecordBlock) -> None:
        """Take in the next block."""
        measure = self._timings.measure
        with measure("screen"):
            codes = self._screened(block)
            kept = codes == 0
        with measure("split"):
            splits, clusters = self._splitter.splits_of(block, kept)
            places, parts = self._placed(block, np.flatnonzero(kept), splits, clusters)
        with measure("digests"):
            self._spool.append(block, kept, splits, places, block.end.source, clusters)
        self._worker.submit(partial(self._take_in, block, parts))

    def checkpoint(self, reading: Callable[[], ReadingState]) -> None:
        """Make it possible to go on from here, if it is time for that.

        Args:
            reading: returns where the reader is and what it has met.
        """
        if self._has_new_shards or time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS:
            self._save(reading(), is_read=False)

    def close(self, reading: ReadingState) -> None:
        """Write what is left and wait until all is on disk."""
        self._worker.submit(self._finish_all)
        self._save(reading, is_read=True)
        self._worker.finish()

    def _screened(self, block: RecordBlock) -> NDArray[np.uint8]:
        """Return the reasons, and list and count what is dropped or odd."""
        num_noted = self._screen.num_nucleotides
        codes = self._screen.judge(block)
        # most blocks have nothing to tell
        if codes.any() or self._screen.num_nucleotides > num_noted:
            self._list(block, codes, num_noted)
        if block.substitutions:
            self._substitutions.update(total_of(block.substitutions, codes == 0))
        return codes

    def _list(self, block: RecordBlock, codes: NDArray[np.uint8], num_noted: int) -> None:
        """List the records that are dropped, and those that are noted as long as ``num_noted`` were not too many."""
        odd = np.flatnonzero(nucleotides(block, codes))[: max(0, MOST_NOTED - num_noted)]
        listed = np.concatenate([np.flatnonzero(codes), odd])
        for number in np.sort(listed).tolist():
            reason = REASONS[codes[number]]
            outcome = "dropped" if reason else "noted"
            self.table.write(
                list_row(
                    outcome, reason or NUCLEOTIDES, block.source, int(block.lines[number]), block.identifier(number)
                )
            )

    def _placed(
        self,
        block: RecordBlock,
        numbers: NDArray[np.int64],
        splits: NDArray[np.uint8],
        clusters: NDArray[np.uint64] | None,
    ) -> tuple[NDArray[np.int64], list[_Part]]:
        """Return the place of each record in its split, and what goes to each shard."""
        from proteinlm.corpus.record_gathering import group_records

        firsts = np.array([borders.num_sequences for borders in self._borders.values()])
        order, bounds, ends, places = group_records(splits, numbers, block.offsets, firsts)
        found: list[_Part] = []
        for (split, borders), start, stop in zip(self._borders.items(), bounds[:-1], bounds[1:], strict=True):
            chosen = order[start:stop]
            for part in borders.parts(ends[start:stop]):
                self._has_new_shards |= part.begins
                rows = chosen[part.start : part.stop]
                found.append(_Part(split, part.shard, numbers[rows], None if clusters is None else clusters[rows]))
        return places, found

    def _take_in(self, block: RecordBlock, parts: Sequence[_Part]) -> None:
        for part in parts:
            self._finish_before(part.split, part.shard)
            self._open.get(part.split, part.shard).append(block, part.numbers, part.clusters)

    def _finish_all(self) -> None:
        for split in self._borders:
            self._finish_before(split, None)

    def _finish_before(self, split: str, number: int | None) -> None:
        """Write the open shard of a split unless it has this number."""
        with self._timings.measure("write"):
            found = self._open.finish_before(split, number)
            if found is not None:
                append_shard(self._folder.shards, found)
                self.shards.append(found)

    def _save(self, reading: ReadingState, *, is_read: bool) -> None:
        state = self._state(reading, is_read=is_read)
        self._has_new_shards = False
        self._last_checkpoint = time.monotonic()

        def job() -> None:
            with self._timings.measure("write"):
                found = replace(state, open_shards=self._open.save(), num_shards=len(self.shards))
                write_state(self._folder, found)
                self._open.keep_only(found.open_shards)

        self._worker.submit(job)

    def state(self, reading: ReadingState, repeats: Repeats) -> IngestionState:
        """Return the state when all has been read and repeats have been found and listed."""
        return self._state(reading, is_read=True, repeats=repeats)

    def _state(self, reading: ReadingState, *, is_read: bool, repeats: Repeats | None = None) -> IngestionState:
        self.table.flush()
        self._spool.flush()
        return IngestionState(
            request=self._request,
            is_read=is_read,
            reading=reading,
            screening=self._screen.state(),
            splitting=self._splitter.state(),
            substitutions=dict(self._substitutions),
            open_shards=(),
            num_shards=len(self.shards),
            screening_bytes=self.table.tell(),
            num_spooled=self._spool.num_records,
            repeats=repeats,
        )

    def close_files(self) -> None:
        """Close what is appended to, however the work ended."""
        self._open.close()
        self._opened.close()

    @property
    def substitutions(self) -> dict[str, int]:
        """Residues replaced in kept records, by kind."""
        return dict(sorted(self._substitutions.items()))

    @property
    def screening(self) -> ScreeningReport:
        """The counts of the screen."""
        return self._screen.report()

    @property
    def spool(self) -> DigestSpool:
        """What is known of the kept records for the end."""
        return self._spool


def check_shards(folder: WorkFolder, shards: list[WrittenShard]) -> None:
    """Refuse shards that are not on disk as they were written: a power cut can leave pages out.

    Raises:
        UnusableWorkError: names the first.
    """
    for shard in shards:
        try:
            compare_blocks(folder.corpus / shard.entry.file, shard.entry.block_digests)
        except ShardError as error:
            raise UnusableWorkError(
                f"{str(error).removesuffix('; ingest again')}; begin anew with --restart"
            ) from error
