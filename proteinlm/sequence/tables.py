"""Tables of sequences, Parquet or text with tabs, commas or semicolons, read in batches by pyarrow."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from proteinlm.errors import FastaError, UnavailableError
from proteinlm.sequence.compression import PieceReader
from proteinlm.sequence.source_formats import IDENTIFIER_COLUMNS, PARQUET_MAGIC, SEQUENCE_COLUMNS, header_of_table

# bytes of text that are read at once; a row may not be longer
_BLOCK = 1 << 24
_ROWS = 1 << 12
_BUFFER = 1 << 20


class Row(NamedTuple):
    """One row: its line in a text, counted from 1 with the header, or its number from 1 in a Parquet file."""

    line: int
    identifier: str
    residues: str


def read_table(
    path: Path | str,
    pieces: Iterable[bytes],
    source: str,
    *,
    identifier_column: str | None = None,
    sequence_column: str | None = None,
    skip: int = 0,
) -> Iterator[Row]:
    """Yield the rows of a table; empty cells are empty text.

    Args:
        path: the file; a Parquet file is read from it and not from ``pieces``, for it begins at its end.
        pieces: its bytes.
        source: its name.
        identifier_column, sequence_column: names of the columns; the usual ones are looked for if None.
        skip: rows to pass over at the beginning.

    Raises:
        FastaError: if the table is damaged or lacks a column.
        UnavailableError: if pyarrow is not installed.
    """
    arrow_errors = _arrow_errors()
    pieces = iter(pieces)
    opening = next(pieces, b"")
    wanted = identifier_column, sequence_column
    is_parquet = opening.startswith(PARQUET_MAGIC)
    first_line = 1 if is_parquet else 2
    try:
        if is_parquet:
            # they are counted and digested before the rows are drawn
            for _ in pieces:
                pass
            batches = _parquet(path, source, wanted)
        else:
            batches = _text(opening, pieces, source, wanted)
        for number, (identifier, residues) in enumerate(chain.from_iterable(batches)):
            if number >= skip:
                yield Row(first_line + number, identifier or "", residues or "")
    except arrow_errors as error:
        if isinstance(error, OSError) and error.errno:
            raise FastaError(f"{source}: cannot be read ({os.strerror(error.errno)})") from error
        raise FastaError(f"{source}: the table is damaged or cut off ({str(error).splitlines()[0]})") from error


def _arrow_errors() -> tuple[type[Exception], ...]:
    try:
        import pyarrow
    except ImportError as error:
        raise UnavailableError(
            "tables need pyarrow, which is not installed: pip install 'proteinlm[tables]'"
        ) from error
    return pyarrow.ArrowException, OSError


def _parquet(path: Path | str, source: str, wanted: tuple[str | None, str | None]) -> Iterator[Iterator[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except FileNotFoundError as error:
        raise FastaError(f"{source}: a Parquet file is read from a file that is not compressed once more") from error
    with file:
        columns = _columns(file.schema_arrow.names, source, wanted)
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
            yield _rows(batch, columns, pyarrow)


def _text(
    opening: bytes, pieces: Iterator[bytes], source: str, wanted: tuple[str | None, str | None]
) -> Iterator[Iterator[Any]]:
    import pyarrow
    from pyarrow import csv

    delimiter, names = header_of_table(opening)
    columns = _columns(names, source, wanted)
    file = io.BufferedReader(PieceReader(chain([opening], pieces)), 1 << 18)
    reader = csv.open_csv(
        file,
        read_options=csv.ReadOptions(block_size=_BLOCK, use_threads=False),
        parse_options=csv.ParseOptions(delimiter=delimiter.decode()),
        convert_options=csv.ConvertOptions(
            include_columns=list(columns), column_types=dict.fromkeys(columns, pyarrow.string())
        ),
    )
    for batch in reader:
        yield _rows(batch, columns, pyarrow)


def _rows(batch: Any, columns: tuple[str, str], pyarrow: Any) -> Iterator[Any]:
    cells = [batch.column(batch.schema.get_field_index(name)).cast(pyarrow.string()).to_pylist() for name in columns]
    return zip(*cells, strict=True)


def _columns(names: list[str], source: str, wanted: tuple[str | None, str | None]) -> tuple[str, str]:
    """Return the names of the columns of identifiers and sequences as the table writes them."""
    found = []
    for kind, name, usual in zip(
        ("identifier", "sequence"), wanted, (IDENTIFIER_COLUMNS, SEQUENCE_COLUMNS), strict=True
    ):
        looked_for = (name,) if name else usual
        lower = {column.lower(): column for column in reversed(names)}
        matches = [lower[each.lower()] for each in looked_for if each.lower() in lower]
        if not matches:
            raise FastaError(
                f"{source}: has no column {' or '.join(looked_for)}; it has {', '.join(names)}; "
                f"name the one with '--{kind}-column'"
            )
        found.append(matches[0])
    return found[0], found[1]
