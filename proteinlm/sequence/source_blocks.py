"""Sources of any format in, blocks of records out.

The three steps of proteinlm.sequence.block_reader, for FASTA and for what is none: ``read_sources``
yields the texts of FASTA files, and of other sources, told by ``format_of``, blocks of finished
records, which ``scan_source`` and ``settle_source`` hand through. A source that is no FASTA is
therefore read in the thread that reads, by one entry after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from proteinlm.errors import FastaError
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.block_reader import ScannedBlock, scan, settle
from proteinlm.sequence.compression import PIECE, SourceDigest, can_be_read_again, read_decompressed, source_name
from proteinlm.sequence.entries import records_of_pieces
from proteinlm.sequence.fasta import FastaConfig, ReadingTally, total_bytes
from proteinlm.sequence.record_blocks import ReadingPosition, RecordBlock, blocks_of_records
from proteinlm.sequence.source_formats import SourceFormat, format_of
from proteinlm.sequence.text_blocks import BLOCK_BYTES, RECORD_END, TextBlock, texts_of_pieces
from proteinlm.sequence.timings import Timings, measured

# draws pieces in a thread of its own, or hands them through
ReadAhead = Callable[[Iterator[bytes]], Iterator[bytes]]


@dataclass(frozen=True, slots=True, eq=False)
class EntriesBlock:
    """Records of a source that is no FASTA, beside what a ``TextBlock`` says of its source.

    Attributes:
        source: number of the source, from 0.
        name: name of the source, as messages call it.
        records: the block.
        treatments: what was taken away in its records.
        num_bytes_read: bytes of the source, as it lies on disk, that had been read by then.
        digest_read: their xxh3_128.
    """

    source: int
    name: str
    records: RecordBlock
    treatments: Mapping[str, int]
    num_bytes_read: int
    digest_read: str


def read_source_blocks(
    paths: Iterable[Path | str],
    *,
    config: FastaConfig | None = None,
    tally: ReadingTally | None = None,
    progress: Progress = SILENT,
    start: ReadingPosition | None = None,
    timings: Timings | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[RecordBlock]:
    """Yield the records of sources of any format, as ``read_records`` reads them, in blocks.

    Args:
        paths: files, plain or compressed (told by content), or ``-`` for standard input.
        config: what to do with gaps and ambiguous letters.
        tally: filled while blocks are drawn.
        progress: hears of bytes as they lie on disk.
        start: the end of the last block that is not wanted again; from the beginning if None. The
            tally then has no sources before it, and counts no treatments before it.
        timings: gets the stages ``read``, ``hash``, ``inflate``, ``cut``, ``scan`` and ``settle``.
        block_bytes: text after about which a block is handed on; a longer record makes a longer block.

    Raises:
        FastaError: as ``read_records``, with the same words.
        UnavailableError: if a table is to be read without pyarrow.
    """
    config = config or FastaConfig()
    tally = ReadingTally() if tally is None else tally
    previous = start
    for block in read_sources(
        paths, config=config, tally=tally, progress=progress, start=start, timings=timings, block_bytes=block_bytes
    ):
        with measured(timings, "scan"):
            scanned = scan_source(block)
        with measured(timings, "settle"):
            records = settle_source(scanned, tally.treatments, config, previous)
        source, previous = tally.sources[-1], records.end
        source.num_records, source.num_residues = previous.num_records, previous.num_residues
        yield records


def read_sources(
    paths: Iterable[Path | str],
    *,
    config: FastaConfig,
    tally: ReadingTally | None = None,
    progress: Progress = SILENT,
    start: ReadingPosition | None = None,
    timings: Timings | None = None,
    block_bytes: int = BLOCK_BYTES,
    ahead: ReadAhead = iter,
) -> Iterator[TextBlock | EntriesBlock]:
    """Yield the texts of FASTA files, and the records of other sources, in blocks.

    Arguments and errors are those of ``read_source_blocks``, but for what damage scanning and settling
    find. The tally gets the sources with their digests; the records and the treatments are known to who
    settles the blocks. What is read and inflated goes through ``ahead``, which may do that in a thread.
    """
    paths = list(paths)
    first = 0 if start is None else start.source
    progress.start("reading", total_bytes(paths), "B", done=total_bytes(paths[:first]) or 0)
    try:
        for number, path in enumerate(paths[first:], first):
            position = start if start is not None and number == first else ReadingPosition(number, 0, 1, 0, 0)
            yield from _blocks_of_source(path, position, config, tally, progress, timings, block_bytes, ahead)
    finally:
        progress.finish()


def scan_source(block: TextBlock | EntriesBlock) -> ScannedBlock | EntriesBlock:
    """Return what stands in a text, or the block of records as it is; safe in any number of threads."""
    return block if isinstance(block, EntriesBlock) else scan(block)


def settle_source(
    scanned: ScannedBlock | EntriesBlock,
    treatments: Counter[str],
    config: FastaConfig,
    previous: ReadingPosition | None,
) -> RecordBlock:
    """Return the block of records; arguments and errors are those of ``settle``."""
    if isinstance(scanned, EntriesBlock):
        treatments.update(scanned.treatments)
        return scanned.records
    return settle(scanned, treatments, config, previous)


def _blocks_of_source(
    path: Path | str,
    position: ReadingPosition,
    config: FastaConfig,
    tally: ReadingTally | None,
    progress: Progress,
    timings: Timings | None,
    block_bytes: int,
    ahead: ReadAhead,
) -> Iterator[TextBlock | EntriesBlock]:
    name, format = source_name(path), format_of(path, sequence_column=config.sequence_column)
    if position.text and not can_be_read_again(path):
        raise FastaError(f"{name}: cannot be read a second time to go on where reading ended; begin again")
    digest = SourceDigest(with_sha256=False) if tally is None else tally.begin(name).digest
    piece, mark = (block_bytes, RECORD_END) if format == "fasta" else (PIECE, b"")
    pieces = ahead(
        read_decompressed(path, digest=digest, progress=progress, plain_piece=piece, plain_mark=mark, timings=timings)
    )
    if format != "fasta":
        yield from _entries_of_pieces(path, pieces, digest, format, config, position)
        return
    yield from texts_of_pieces(
        position.source, name, pieces, digest, skipped=position.text, block_bytes=block_bytes, timings=timings
    )


def _entries_of_pieces(
    path: Path | str,
    pieces: Iterator[bytes],
    digest: SourceDigest,
    format: SourceFormat,
    config: FastaConfig,
    position: ReadingPosition,
) -> Iterator[EntriesBlock]:
    treatments = Counter[str]()
    records = records_of_pieces(path, pieces, format, config, treatments, skip=position.text)
    for block in blocks_of_records(records, source=position.source, start=position):
        num_bytes_read, digest_read = digest.so_far
        yield EntriesBlock(
            source=position.source,
            name=source_name(path),
            records=block,
            treatments=dict(treatments),
            num_bytes_read=num_bytes_read,
            digest_read=digest_read,
        )
        treatments.clear()
