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
    FastaParser,
    FastaRecord,
    ReadingTally,
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
    source = SourceTally(source_name(path))
    if tally is not None:
        tally.sources.append(source)
    config = config or FastaConfig()
    parser = FastaParser(source.name, config, Counter() if tally is None else tally.treatments)
    pieces = read_decompressed(path, digest=None if tally is None else source.digest, progress=progress)
    is_empty = True
    try:
        for record in _records(path, pieces, format, config, parser, skip):
            is_empty = False
            yield record
    finally:
        source.num_records, source.num_residues = parser.num_records, parser.num_residues
    if is_empty and not skip:
        raise FastaError(f"{source.name}: holds no entry")


def _records(
    path: Path | str,
    pieces: Iterator[bytes],
    format: SourceFormat,
    config: FastaConfig,
    parser: FastaParser,
    skip: int,
) -> Iterator[FastaRecord]:
    source = source_name(path)
    if format == "table":
        from proteinlm.sequence.tables import read_table

        columns = {"identifier_column": config.identifier_column, "sequence_column": config.sequence_column}
        for row in read_table(path, pieces, source, **columns, skip=skip):
            identifier, _, description = row.identifier.strip().partition(" ")
            yield parser.entry((identifier, description), row.residues.encode(), line=row.line, body_line=row.line)
        return
    from proteinlm.sequence.uniprot_flat import read_flat_file
    from proteinlm.sequence.uniprot_xml import read_xml

    read = read_flat_file if format == "uniprot_flat" else read_xml
    for entry in read(pieces, source, skip=skip):
        names = entry.identifier, entry.description
        yield parser.entry(names, entry.body, line=entry.line, body_line=entry.body_line)
