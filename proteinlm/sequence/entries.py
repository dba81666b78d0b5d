"""Records of sources that are no FASTA: UniProt's flat file, UniProt XML and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from proteinlm.errors import FastaError
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.compression import read_decompressed, source_name
from proteinlm.sequence.fasta import (
    FastaConfig,
    FastaRecord,
    ReadingTally,
    RecordParser,
    SourceTally,
    read_one,
    total_bytes,
)
from proteinlm.sequence.source_formats import SourceFormat, format_of


def read_records(
    paths: Iterable[Path | str],
    *,
    config: FastaConfig | None = None,
    tally: ReadingTally | None = None,
    progress: Progress = SILENT,
) -> Iterator[FastaRecord]:
    """Yield the records of sources of any format, told by content; otherwise as ``read_fasta`` does.

    Raises:
        FastaError: ``file:line: …`` for anything that cannot be read with certainty.
        UnavailableError: if a table is to be read without pyarrow.
    """
    paths = list(paths)
    config = config or FastaConfig()
    progress.start("reading", total_bytes(paths), "B")
    try:
        for path in paths:
            format = format_of(path, sequence_column=config.sequence_column)
            if format == "fasta":
                yield from read_one(path, config, tally, progress)
            else:
                yield from read_entries(path, format, config=config, tally=tally, progress=progress)
    finally:
        progress.finish()


def read_entries(
    path: Path | str,
    format: SourceFormat,
    *,
    config: FastaConfig | None = None,
    tally: ReadingTally | None = None,
    progress: Progress = SILENT,
    skip: int = 0,
) -> Iterator[FastaRecord]:
    """Yield the entries of one source as the records that UniProt's FASTA has of them, one in memory at a time.

    Residues are treated like those of FASTA. The line of a record is that of its entry's first line.

    Args:
        path: a file, plain or compressed, or ``-`` for standard input.
        format: what ``format_of`` said it is.
        config: what to do with gaps and ambiguous letters.
        tally: filled while records are drawn, skipped ones in the digest only.
        progress: hears of bytes as they lie on disk.
        skip: entries to pass over at the beginning.

    Raises:
        FastaError: ``file:line: …`` for an entry that is damaged, cut off or not what it says of itself.
    """
    name = source_name(path)
    source = SourceTally(name) if tally is None else tally.begin(name)
    treatments = Counter[str]() if tally is None else tally.treatments
    digest = None if tally is None else source.digest
    pieces = read_decompressed(path, digest=digest, progress=progress)
    for record in records_of_pieces(path, pieces, format, config or FastaConfig(), treatments, skip=skip):
        source.num_records += 1
        source.num_residues += len(record.residues)
        yield record


def records_of_pieces(
    path: Path | str,
    pieces: Iterator[bytes],
    format: SourceFormat,
    config: FastaConfig,
    treatments: Counter[str],
    *,
    skip: int = 0,
) -> Iterator[FastaRecord]:
    """Yield the records of one source whose bytes are ``pieces``, as ``read_entries`` does.

    ``treatments`` are added to as records are drawn.
    """
    parser = RecordParser(source_name(path), config, treatments)
    records = (
        _rows(path, pieces, config, parser, skip) if format == "table" else _entries(path, pieces, format, parser, skip)
    )
    is_empty = True
    for record in records:
        is_empty = False
        yield record
    if is_empty and not skip:
        raise FastaError(f"{source_name(path)}: holds no entry")


def _rows(
    path: Path | str, pieces: Iterator[bytes], config: FastaConfig, parser: RecordParser, skip: int
) -> Iterator[FastaRecord]:
    from proteinlm.sequence.tables import read_table

    columns = {"identifier_column": config.identifier_column, "sequence_column": config.sequence_column}
    for row in read_table(path, pieces, source_name(path), **columns, skip=skip):
        identifier, _, description = row.identifier.strip().partition(" ")
        yield parser.entry((identifier, description), row.residues.encode(), line=row.line, body_line=row.line)


def _entries(
    path: Path | str, pieces: Iterator[bytes], format: SourceFormat, parser: RecordParser, skip: int
) -> Iterator[FastaRecord]:
    from proteinlm.sequence.uniprot_flat import read_flat_file
    from proteinlm.sequence.uniprot_xml import read_xml

    read = read_flat_file if format == "uniprot_flat" else read_xml
    for entry in read(pieces, source_name(path), skip=skip):
        names = entry.identifier, entry.description
        yield parser.entry(names, entry.body, line=entry.line, body_line=entry.body_line)
