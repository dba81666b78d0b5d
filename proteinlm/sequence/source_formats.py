"""Which of the formats that hold sequences a source is, told by how it begins."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from proteinlm.errors import FastaError
from proteinlm.sequence.compression import STDIN, can_be_read_again, inflated_opening, read_decompressed, source_name
from proteinlm.sequence.standard_input import standard_input

SourceFormat = Literal["fasta", "uniprot_flat", "uniprot_xml", "table"]

# names of columns, in the order in which they are looked for
IDENTIFIER_COLUMNS = ("identifier", "id", "accession", "entry", "name")
SEQUENCE_COLUMNS = ("sequence", "seq", "residues")
PARQUET_MAGIC = b"PAR1"
DELIMITERS = b"\t,;"

# bytes that tell every format
_ENOUGH = 1 << 12
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# EMBL's flat files begin alike, and count in BP
_FLAT_OPENING = re.compile(rb"ID   \S+[^\n\r]* AA\.[ \t]*[\r\n]")
# possessive and atomic: a text that is none of it is not tried in every other division into such parts
_XML_OPENING = re.compile(rb"(?:\s+|(?><\?.*?\?>|<!--.*?-->)|<!DOCTYPE[^>]*+>)*+<uniprot[\s>]", re.DOTALL)


def format_of(path: Path | str, *, sequence_column: str | None = None) -> SourceFormat:
    """Return the format of a source, ``"fasta"`` for all that is none of the others.

    A file is opened for it and closed again. Standard input is looked at without being read, as far
    as bytes have come; pipes with a name are not looked at, and count as FASTA.

    Args:
        path: a file, plain or compressed, or ``-`` for standard input.
        sequence_column: name that makes a table of a text, beside the usual ones.

    Raises:
        FastaError: if the file cannot be opened or its compressed data are damaged at the beginning.
    """
    if str(path) == STDIN:
        return format_of_opening(_opening_of_stdin(), sequence_column=sequence_column)
    if not can_be_read_again(path):
        return "fasta"
    opening = bytearray()
    for piece in read_decompressed(path):
        opening += piece
        if len(opening) >= _ENOUGH:
            break
    return format_of_opening(bytes(opening), sequence_column=sequence_column)


def format_of_opening(opening: bytes, *, sequence_column: str | None = None) -> SourceFormat:
    """Return the format of a text that begins with ``opening``."""
    if opening.startswith(PARQUET_MAGIC):
        return "table"
    text = opening.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if _FLAT_OPENING.match(text):
        return "uniprot_flat"
    if _XML_OPENING.match(text):
        return "uniprot_xml"
    names = [*SEQUENCE_COLUMNS, sequence_column] if sequence_column else SEQUENCE_COLUMNS
    return "table" if _is_table(text, names) else "fasta"


def header_of_table(text: bytes) -> tuple[bytes, list[str]]:
    """Return the delimiter and the names of the columns of a table in text."""
    line = re.split(rb"[\r\n]", text.removeprefix(_BYTE_ORDER_MARK).lstrip(), maxsplit=1)[0]
    delimiter = max((DELIMITERS[place : place + 1] for place in range(len(DELIMITERS))), key=line.count)
    return delimiter, [name.strip().strip('"') for name in line.decode("utf-8", "replace").split(delimiter.decode())]


def _is_table(text: bytes, sequence_columns: Collection[str]) -> bool:
    # comment lines of FASTA among them
    if text.startswith((b">", b";", b"#", b"!")) or b"\0" in text:
        return False
    _, names = header_of_table(text)
    wanted = {name.lower() for name in sequence_columns}
    return len(names) > 1 and any(name.lower() in wanted for name in names)


def _opening_of_stdin() -> bytes:
    try:
        opening = standard_input().peek(_ENOUGH)
    except OSError as error:
        raise FastaError(f"{source_name(STDIN)}: cannot be read ({error.strerror or error})") from error
    return inflated_opening(opening, _ENOUGH)
