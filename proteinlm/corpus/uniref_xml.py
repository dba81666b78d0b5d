"""UniRef's XML, read as rows: which cluster each member is in, at each level of identity."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from proteinlm.errors import ManifestError

UNIREF100, UNIREF90, UNIREF50, MEMBER = "uniref100", "uniref90", "uniref50", "member"
_COLUMNS = (UNIREF50, UNIREF90, UNIREF100, MEMBER)
_LEVEL = re.compile("(UniRef(?:50|90|100))_")
# property of a member -> its column
_PROPERTIES = {"UniRef50 ID": UNIREF50, "UniRef90 ID": UNIREF90, "UniRef100 ID": UNIREF100}
_ACCESSION = "UniProtKB accession"
# rows after which they are handed on
_ROWS = 1 << 12


@dataclass(frozen=True, slots=True)
class RowText:
    """Rows as lines of tab-separated text, and the line of the file in which each begins."""

    text: bytes
    lines: Sequence[int]


def is_xml(opening: bytes) -> bool:
    """Say whether a file that begins with ``opening`` is XML."""
    return opening.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def read_uniref_xml(
    path: Path, first: bytes, pieces: Iterable[bytes], *, columns: tuple[str, str] | None = None
) -> Iterator[RowText]:
    """Yield a row of two columns for every member of every cluster, holding one piece of the file.

    Args:
        path: of the file, for messages.
        first: its first piece.
        pieces: the others.
        columns: which two of uniref50, uniref90, uniref100 and member; UniRef50 and UniRef90 if None. A
            member is an accession of UniProtKB or, of what is not there, UniParc's identifier.

    Raises:
        ManifestError: if it is no whole XML of UniRef, or a member lacks one of the columns.
    """
    reader = _Reader(path, *(columns or (UNIREF50, UNIREF90)))
    yield from reader.read(first)
    for piece in pieces:
        yield from reader.read(piece)
    yield from reader.read(b"", is_last=True)


class _Reader:
    """Hears of elements as they begin and end, and gathers rows."""

    def __init__(self, path: Path, group: str, member: str) -> None:
        for name in (group, member):
            if name.lower() not in _COLUMNS:
                raise ManifestError(f"{path}: has no column '{name}'; UniRef's XML gives {', '.join(_COLUMNS)}")
        self._path = path
        self._asked = group.lower(), member.lower()
        self._root = ""
        self._entry: dict[str, str] = {}
        self._member: dict[str, str] | None = None
        self._line = 0
        self._rows: list[str] = []
        self._lines: list[int] = []
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def read(self, piece: bytes, *, is_last: bool = False) -> Iterator[RowText]:
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError as error:
            raise ManifestError(f"{self._path}:{error.lineno}: is damaged or cut off XML ({error})") from error
        except (LookupError, ValueError) as error:
            raise ManifestError(
                f"{self._path}: is XML in an encoding that cannot be read ({error}); expected UTF-8"
            ) from error
        if len(self._rows) >= _ROWS or (is_last and self._rows):
            yield RowText("".join(self._rows).encode(), self._lines)
            self._rows, self._lines = [], []

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(":")[2]
        if not self._root:
            self._root = tag
            if not tag.startswith("UniRef"):
                raise ManifestError(f"{self._path}: is XML of '{tag}'; expected UniRef's, or a table")
        if tag == "property":
            self._add_property(attributes)
        elif tag == "entry":
            self._entry = self._levels(attributes.get("id", ""))
        elif tag == "dbReference":
            self._member = dict(self._entry)
            self._line = self._parser.CurrentLineNumber
            if attributes.get("type") == "UniParc ID":
                self._member[MEMBER] = attributes.get("id", "")

    def _levels(self, identifier: str) -> dict[str, str]:
        found = _LEVEL.match(identifier)
        if found is None:
            place = f"{self._path}:{self._parser.CurrentLineNumber}"
            raise ManifestError(f"{place}: has an entry '{identifier}'; expected UniRef50_…, UniRef90_… or UniRef100_…")
        return {found[1].lower(): identifier}

    def _add_property(self, attributes: dict[str, str]) -> None:
        if self._member is None:
            return
        kind, value = attributes.get("type", ""), attributes.get("value", "")
        if kind == _ACCESSION:
            # the first one is the accession, later ones are what it was called before
            self._member.setdefault(MEMBER, value)
        elif (column := _PROPERTIES.get(kind)) is not None:
            self._member[column] = value

    def _end(self, name: str) -> None:
        if self._member is None or name.rpartition(":")[2] != "dbReference":
            return
        row = [self._member.get(column, "") for column in self._asked]
        if not all(row):
            missing = self._asked[row.index("")]
            raise ManifestError(f"{self._path}:{self._line}: a member has no {missing}; choose other columns")
        self._rows.append("\t".join(row) + "\n")
        self._lines.append(self._line)
        self._member = None
