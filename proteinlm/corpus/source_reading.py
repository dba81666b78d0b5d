"""The sources of a corpus, read in blocks by as many threads as there are, from where reading ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from proteinlm.corpus.layout import SourceEntry
from proteinlm.corpus.ordered_threads import in_order
from proteinlm.corpus.work_folder import ChangedSourceError, UnusableWorkError
from proteinlm.progress import Progress
from proteinlm.sequence import FastaConfig, ReadingTally
from proteinlm.sequence.block_reader import ScannedBlock
from proteinlm.sequence.compression import can_be_read_again, is_plain_file, name_in_folder, source_name
from proteinlm.sequence.record_blocks import ReadingPosition, RecordBlock
from proteinlm.sequence.source_blocks import EntriesBlock, read_sources, scan_source, settle_source
from proteinlm.sequence.text_blocks import TextBlock
from proteinlm.sequence.timings import Timings

_PIECE = 1 << 22
# pieces of text that may have been inflated and not yet cut
_PIECES_AHEAD = 8
# seconds between two reports of how many records have been read
_REPORT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingState:
    """Where reading is and what it has met.

    Attributes:
        position: the end of the last block that was taken in; None before the first.
        num_bytes_read: bytes of its source, as they lie on disk, that had been read for that block.
        digest_read: their xxh3_128.
        sources: those before that of ``position``; all, when all have been read.
        modified: when each of these was last changed, in ns.
        treatments: what was taken away, by kind.
    """

    position: ReadingPosition | None = None
    num_bytes_read: int = 0
    digest_read: str = ""
    sources: tuple[SourceEntry, ...] = ()
    modified: tuple[int, ...] = ()
    treatments: Mapping[str, int]


class SourceReading:
    """Reads sources once, in order.

    Args:
        paths: the sources.
        config: how they are read.
        state: where to go on.
        needs_sha256: whether to take a sha256 of each.
        jobs: how many threads may work; with one, all is done in the thread that draws.
        timings: takes the seconds of each stage.
        progress: hears of bytes read, and of records.
        block_bytes: text of a block.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        config: FastaConfig,
        state: ReadingState | None,
        *,
        needs_sha256: bool,
        jobs: int,
        timings: Timings,
        progress: Progress,
        block_bytes: int,
    ) -> None:
        self._paths, self._config, self._jobs, self._block_bytes = paths, config, jobs, block_bytes
        self._timings, self._progress = timings, progress
        self._needs_sha256 = needs_sha256
        self._tally = ReadingTally(with_sha256=needs_sha256)
        state = state or ReadingState(treatments={})
        self._start = self._position = state.position
        self._num_bytes_read, self._digest_read = state.num_bytes_read, state.digest_read
        self._before = state.sources
        self._modified = list(state.modified)
        self._treatments = Counter(state.treatments)
        self._last_report = time.monotonic()

    def check_unchanged(self) -> None:
        """Refuse sources that are not what they were when reading ended.

        Raises:
            UnusableWorkError: if reading ended within standard input or a pipe, which cannot be read again.
            ChangedSourceError: names the source that is another.
        """
        for path, source, modified in zip(self._paths, self._before, self._modified, strict=False):
            # to compare what comes but once would take it away from who reads it
            if can_be_read_again(path) and _about(path) != (source.num_bytes, modified):
                _compare(path, source.num_bytes, source.xxh3_128, is_all=True)
        if self._start is None or self._start.source < len(self._before):
            return
        path = self._paths[self._start.source]
        if not can_be_read_again(path):
            raise UnusableWorkError(
                f"{source_name(path)} cannot be read again from its beginning; begin anew with --restart"
            )
        _compare(path, self._num_bytes_read, self._digest_read, is_all=False)

    def blocks(self) -> Iterator[RecordBlock]:
        """Yield the blocks that are left."""
        for scanned in self._scanned():
            source = scanned if isinstance(scanned, EntriesBlock) else scanned.block
            with self._timings.measure("settle"):
                block = settle_source(scanned, self._treatments, self._config, self._position)
            self._finish_before(block.end.source)
            self._position = block.end
            self._num_bytes_read, self._digest_read = source.num_bytes_read, source.digest_read
            self._report()
            yield block
        self._finish_before(len(self._paths))

    def state(self) -> ReadingState:
        """Return what ``SourceReading`` goes on from."""
        return ReadingState(
            position=self._position,
            num_bytes_read=self._num_bytes_read,
            digest_read=self._digest_read,
            sources=self._before,
            modified=tuple(self._modified),
            treatments=dict(self._treatments),
        )

    @property
    def sources(self) -> tuple[SourceEntry, ...]:
        """The sources that have been read to their ends."""
        return self._before

    @property
    def num_bytes(self) -> int:
        """Bytes of sources that were read here."""
        return sum(source.digest.num_bytes for source in self._tally.sources)

    @property
    def treatments(self) -> dict[str, int]:
        """What was taken away, by kind."""
        return dict(sorted(self._treatments.items()))

    def _scanned(self) -> Iterator[ScannedBlock | EntriesBlock]:
        is_read_apart = self._jobs > 1 and not self._is_read_fast()
        texts = read_sources(
            self._paths,
            config=self._config,
            tally=self._tally,
            progress=self._progress,
            start=self._start,
            timings=self._timings,
            block_bytes=self._block_bytes,
            ahead=_read_ahead if is_read_apart else iter,
        )
        if self._jobs > 2:
            # one cuts the text, one writes
            yield from in_order(texts, self._scan, threads=self._jobs - 2, room=self._jobs)
        else:
            yield from map(self._scan, texts)

    def _is_read_fast(self) -> bool:
        """Say whether reading is so little work that a thread for it would wait more than it does.

        With more threads than processors each also waits for those that have no processor at the moment
        and hold the interpreter's lock.
        """
        return not self._needs_sha256 and all(map(is_plain_file, self._paths))

    def _scan(self, block: TextBlock | EntriesBlock) -> ScannedBlock | EntriesBlock:
        with self._timings.measure("scan"):
            return scan_source(block)

    def _finish_before(self, number: int) -> None:
        """Take in the sources before one; their digests are complete, as their reader is ahead."""
        first = 0 if self._start is None else self._start.source
        while len(self._before) < number:
            source = len(self._before)
            tally, path = self._tally.sources[source - first], self._paths[source]
            end = self._position
            if end is None or end.source != source:
                # it held no record
                end = ReadingPosition(source, 0, 1, 0, 0)
            entry = SourceEntry(
                name=name_in_folder(path),
                num_bytes=tally.digest.num_bytes,
                xxh3_128=tally.digest.xxh3_128,
                sha256=tally.digest.sha256,
                num_records=end.num_records,
                num_residues=end.num_residues,
            )
            self._before = (*self._before, entry)
            self._modified.append(_about(path)[1] if can_be_read_again(path) else 0)

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._last_report > _REPORT_SECONDS:
            self._last_report = now
            num_records = sum(source.num_records for source in self._before)
            num_records += self._position.num_records if self._position is not None else 0
            self._progress.advance(0, sequences=f"{num_records:,}")


def _read_ahead(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Draw pieces in a thread, as inflating them takes longer than all else."""
    # of bytes it is these, not a copy
    return in_order(pieces, bytes, threads=0, room=_PIECES_AHEAD)


def _about(path: Path | str) -> tuple[int, int]:
    """Return the size of a file and when it was last changed."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise ChangedSourceError(f"{path}: cannot be found ({error.strerror}), though reading began with it") from error
    # only what is a file by itself can be compared without reading it
    return (found.st_size, found.st_mtime_ns) if Path(path).is_file() else (-1, 0)


def _compare(path: Path | str, num_bytes: int, digest: str, *, is_all: bool) -> None:
    """Read the first bytes of a source and compare their digest."""
    found = xxhash.xxh3_128()
    left = num_bytes
    try:
        with Path(path).open("rb") as file:
            while left and (piece := file.read(min(left, _PIECE))):
                found.update(piece)
                left -= len(piece)
            is_longer = is_all and bool(file.read(1))
    except OSError as error:
        raise ChangedSourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if left or is_longer or found.hexdigest() != digest:
        raise ChangedSourceError(
            f"{path}: has changed since the work broke off (its first {num_bytes:,} bytes had xxh3_128 {digest}); "
            "bring back what it was, or begin anew with --restart"
        )
