"""Tables that put names into groups: the members of clusters, the proteins of families."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpus.uniref_xml import RowText, is_xml, read_uniref_xml
from proteinlm.errors import ManifestError
from proteinlm.sequence.compression import SourceDigest, read_decompressed

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TableKind:
    """What a table may look like.

    Attributes:
        plain: names of the two columns of a table without a header line.
        group: the column of groups in it, 0 or 1.
        headers: pairs (group, member) of columns; the first pair that the first line names is taken.
        openings: words that tell a first line as a header line, whose first two columns are taken.
        is_asked: whether a table without one of ``headers`` is refused.
    """

    plain: tuple[str, str]
    group: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    openings: frozenset[str] = frozenset()
    is_asked: bool = False


@dataclass(frozen=True, slots=True)
class _Columns:
    """How many columns there are, and which hold the groups and the members."""

    num_columns: int
    group: int
    member: int
    has_header: bool


@dataclass(frozen=True, slots=True, eq=False)
class NameRows:
    """N rows of a table, hashed.

    Attributes:
        groups: uint64 (N,), xxh3_64 of each row's group, seeded; of a protein by its accession.
        members: uint64 (N,), low half of the xxh3_128 of each row's member, by its accession.
    """

    groups: NDArray[np.uint64]
    members: NDArray[np.uint64]
    _text: RowText
    _columns: _Columns

    def line(self, row: int) -> int:
        """Return the line of the file in which a row stands, from 1."""
        return self._text.lines[row]

    def names(self, rows: NDArray[np.int64]) -> list[tuple[str, str]]:
        """Return the group and the member of some rows as they are written."""
        lines = self._text.text.split(b"\n")
        words = [lines[row].removesuffix(b"\r").decode("utf-8", errors="replace").split("\t") for row in rows.tolist()]
        return [(row[self._columns.group], row[self._columns.member]) for row in words]


def read_name_rows(
    path: Path, kind: TableKind, *, seed: int = 0, digest: SourceDigest | None = None
) -> Iterator[NameRows]:
    """Read a table or, where groups are those of UniRef, UniRef's XML, in pieces.

    Args:
        path: the table, plain or compressed.
        kind: what it may look like.
        seed: of the hash of the groups.
        digest: takes in the bytes as they lie on disk.

    Raises:
        ManifestError: if a line has not the columns that it must, or the file holds no table.
        FastaError: if the file cannot be read or decompressed.
    """
    pieces = read_decompressed(path, digest=digest)
    first = next(pieces, b"")
    if is_xml(first):
        columns = _Columns(2, 0, 1, has_header=False)
        asked = kind.headers[0] if kind.is_asked else None
        for text in read_uniref_xml(path, first, pieces, columns=asked):
            yield _hashed(path, kind, text, columns, seed)
        return
    chosen: _Columns | None = None
    for text in _texts(path, first, pieces):
        is_first = chosen is None
        chosen = chosen or _columns(path, kind, text.text.partition(b"\n")[0])
        rows = RowText(text.text.partition(b"\n")[2], text.lines[1:]) if is_first and chosen.has_header else text
        yield _hashed(path, kind, rows, chosen, seed)


def _texts(path: Path, first: bytes, pieces: Iterator[bytes]) -> Iterator[RowText]:
    """Yield whole lines, holding one piece of the file; a mark of UTF-8 at its beginning is left out."""
    unfinished, line = b"", 1
    # the mark would make another name of the first
    for piece in chain([first.removeprefix(codecs.BOM_UTF8)], pieces):
        if len(unfinished) > _LONGEST_LINE:
            raise ManifestError(f"{path}:{line}: has over {_LONGEST_LINE:,} bytes in one line; expected a table")
        *whole, unfinished = (unfinished + piece).rsplit(b"\n", 1)
        if whole:
            text = whole[0] + b"\n"
            end = line + text.count(b"\n")
            yield RowText(text, range(line, end))
            line = end
    if unfinished:
        yield RowText(unfinished + b"\n", range(line, line + 1))


def _columns(path: Path, kind: TableKind, first_line: bytes) -> _Columns:
    shown = first_line.removesuffix(b"\r").decode("utf-8", errors="replace").removeprefix("#").split("\t")
    words = [word.strip().lower() for word in shown]
    for pair in kind.headers:
        group, member = (name.lower() for name in pair)
        if group in words and member in words:
            return _Columns(len(words), words.index(group), words.index(member), has_header=True)
    if kind.is_asked:
        missing = next(name for name in kind.headers[0] if name.lower() not in words)
        raise ManifestError(f"{path}:1: has no column '{missing}'; the first line names {', '.join(shown)[:120]}")
    if len(words) > 1 and words[0] in kind.openings:
        return _Columns(len(words), 0, 1, has_header=True)
    return _Columns(2, kind.group, 1 - kind.group, has_header=False)


def _hashed(path: Path, kind: TableKind, text: RowText, columns: _Columns, seed: int) -> NameRows:
    from proteinlm.corpus.row_hashes import hash_rows

    letters = np.frombuffer(text.text, dtype=np.uint8)
    groups, members = hash_rows(letters, columns.num_columns, columns.group, columns.member, seed)
    if len(groups) < len(text.lines):
        line = text.text.split(b"\n")[len(groups)].decode("utf-8", errors="replace")
        expected = "<TAB>".join(kind.plain) if columns.num_columns == 2 else f"{columns.num_columns} columns"
        raise ManifestError(f"{path}:{text.lines[len(groups)]}: expected {expected}, found {line[:60]!r}")
    return NameRows(groups, members, text, columns)
