"""FASTA as people really have it: read in one pass, one record at a time, nothing lost unnoticed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from proteinlm.errors import FastaError
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.compression import STDIN, SourceDigest, read_decompressed, source_name
from proteinlm.sequence.foreign_formats import foreign_format
from proteinlm.sequence.source_formats import SourceFormat, format_of_opening

LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
GAPS = b"-.~"
_LINE_FEED = ord("\n")
# FastaRecord(…) takes twice as long
_new_tuple = tuple.__new__
_BYTE_ORDER_MARK = re.compile(rb"^\xef\xbb\xbf", re.MULTILINE)
_RETURNS_BEFORE_LINE_FEED = re.compile(rb"\r+\n")
_NOT_A_RESIDUE = re.compile(rb"[^A-Za-z*.~-]")
_GAP = re.compile(rb"[.~-]")
_OTHER_FORMATS: dict[SourceFormat, str] = {
    "uniprot_flat": "a UniProt flat file",
    "uniprot_xml": "UniProt XML",
    "table": "a table",
}
_BECOMES_X = re.compile(rb"[Jj*]")


class FastaRecord(NamedTuple):
    """One record: its header, its residues in the case of the file, and where it stands.

    ``identifier`` is the header's first word, ``description`` the rest; ``line`` is the line of the
    header in ``source``, counted from 1. A tuple because reading makes millions of them.
    """

    identifier: str
    description: str
    residues: bytes
    source: str
    line: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FastaConfig:
    """What to do with characters that are no residues, and where tables have their sequences."""

    gaps: Literal["drop", "keep", "refuse"] = "drop"  # the characters - . ~
    strict: bool = False  # refuse J and stops inside a sequence, which otherwise become X
    identifier_column: str | None = None  # of tables; None looks for the usual names
    sequence_column: str | None = None


@dataclass(slots=True)
class SourceTally:
    """What one file held, as far as it has been read."""

    name: str
    digest: SourceDigest = field(default_factory=SourceDigest)
    num_records: int = 0
    num_residues: int = 0


@dataclass(slots=True)
class ReadingTally:
    """What a reader met in all its files; ``treatments`` counts what was taken away, by kind."""

    sources: list[SourceTally] = field(default_factory=list)
    treatments: Counter[str] = field(default_factory=Counter)


def read_fasta(
    paths: Iterable[Path | str],
    *,
    config: FastaConfig | None = None,
    tally: ReadingTally | None = None,
    progress: Progress = SILENT,
) -> Iterator[FastaRecord]:
    """Yield the records of FASTA files in their order, holding one record and one piece of a file.

    Line ends may be LF, CR LF, CR or mixed; byte order marks, blanks, line numbers and comment
    lines (``;``, ``#``, ``!``) are taken away, so are gaps unless kept, and stops at the end of a
    sequence. docs/reading.md lists every case.

    Args:
        paths: files, plain or compressed (told by content), or ``-`` for standard input.
        config: what to do with gaps and ambiguous letters.
        tally: filled while records are drawn; asking for it costs a sha256 of every file.
        progress: hears of bytes as they lie on disk.

    Raises:
        FastaError: ``file:line: …`` for anything that cannot be read with certainty.
    """
    paths = list(paths)
    progress.start("reading", total_bytes(paths), "B")
    try:
        for path in paths:
            yield from read_one(path, config or FastaConfig(), tally, progress)
    finally:
        progress.finish()


def read_one(
    path: Path | str, config: FastaConfig, tally: ReadingTally | None, progress: Progress
) -> Iterator[FastaRecord]:
    """Yield the records of one FASTA file, as ``read_fasta`` does."""
    source = SourceTally(source_name(path))
    if tally is not None:
        tally.sources.append(source)
    pieces = read_decompressed(path, digest=None if tally is None else source.digest, progress=progress)
    treatments = Counter[str]() if tally is None else tally.treatments
    parser = FastaParser(source.name, config, treatments)
    try:
        yield from parser.records(pieces)
    finally:
        source.num_records, source.num_residues = parser.num_records, parser.num_residues


def total_bytes(paths: list[Path | str]) -> int | None:
    """Return the size of all files on disk, None where one is no file."""
    if any(str(path) == STDIN or not Path(path).is_file() for path in paths):
        return None
    return sum(Path(path).stat().st_size for path in paths)


def accession(identifier: str) -> str:
    """Return the accession in ``identifier``: P12345 of ``sp|P12345|NAME``, others as they are."""
    parts = identifier.split("|")
    is_uniprot = len(parts) == 3 and parts[0] in {"sp", "tr"}
    return parts[1] if is_uniprot and parts[1] else identifier


class FastaParser:
    """Cuts one file into records; ``_line`` is the line at which the text not yet cut begins."""

    def __init__(self, name: str, config: FastaConfig, treatments: Counter[str]) -> None:
        self._name = name
        self._config = config
        self._is_strict = config.strict
        self._treatments = treatments
        self.num_records = self.num_residues = 0
        self._line = 1

    def records(self, pieces: Iterable[bytes]) -> Iterator[FastaRecord]:
        """Yield the records of the file that ``pieces`` are."""
        # whole lines of the record at hand, or None before the first header
        pending: list[bytes] | None = None
        for text in self._whole_lines(pieces):
            if b"\0" in text:
                self._refuse_nul(pending or [], text)
            start = _next_header(text, 0)
            head = text if start < 0 else text[:start]
            if pending is None:
                self._skip_opening(head)
            else:
                pending.append(head)
            if start < 0:
                continue
            if pending is not None:
                yield self._record(*_header_and_body(b"".join(pending)))
            line_end = text.index(b"\n", start)
            while (end := text.find(b">", line_end)) > 0:
                if text[end - 1] != _LINE_FEED and (end := _next_header(text, end)) < 0:
                    break
                yield self._record(text[start + 1 : line_end], text[line_end + 1 : end])
                start, line_end = end, text.index(b"\n", end)
            pending = [text[start:]]
        if pending is None:
            raise FastaError(f"{self._name}: holds no record; expected a header line that begins with '>'")
        yield self._record(*_header_and_body(b"".join(pending)))

    def _whole_lines(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield text of whole lines, each ended by one LF, without byte order marks."""
        unfinished: list[bytes] = []
        returns = b""
        is_opening = True
        for piece in pieces:
            if is_opening:
                self._refuse_foreign(piece)
                is_opening = False
            # a CR at the end may be half of a line end
            joined = returns + piece
            returns = joined[len(joined.rstrip(b"\r")) :]
            text = _with_line_feeds(joined[: len(joined) - len(returns)])
            cut = text.rfind(b"\n") + 1
            if cut:
                yield self._without_marks(b"".join(unfinished) + text[:cut])
                unfinished.clear()
            unfinished.append(text[cut:])
        if rest := b"".join(unfinished) + _with_line_feeds(returns):
            yield self._without_marks(rest if rest.endswith(b"\n") else rest + b"\n")

    def _without_marks(self, text: bytes) -> bytes:
        if b"\xef" in text:
            text, num_marks = _BYTE_ORDER_MARK.subn(b"", text)
            self._count("byte order marks", num_marks)
        return text

    def _record(self, header: bytes, body: bytes) -> FastaRecord:
        # this runs for every record of every file: no pass over the text that a plain record can do without
        residues = body.replace(b"\n", b"")
        line = self._line
        self._line = line + 1 + len(body) - len(residues)
        if self._is_strict or not residues.isalpha():
            residues = self._tidy(body, residues, line)
        self.num_records += 1
        self.num_residues += len(residues)
        try:
            names = header.decode()
        except UnicodeDecodeError:
            names = header.decode("latin-1")  # fits any bytes
        identifier, _, description = names.partition(" ")
        if not identifier or "\t" in identifier or "\x01" in identifier:
            identifier, description = self._unusual_names(names, line)
        return _new_tuple(FastaRecord, (identifier, description.rstrip(), residues, self._name, line))

    def entry(self, names: tuple[str, str], body: bytes, *, line: int, body_line: int) -> FastaRecord:
        """Return the record of an entry of another format, its residues treated like those of FASTA.

        Args:
            names: identifier and description.
            body: the sequence in lines, as they stand in the file.
            line: where the entry begins.
            body_line: where the sequence begins.
        """
        residues = body.replace(b"\n", b"")
        if self._is_strict or not residues.isalpha():
            self._refuse_comments(body, body_line)
            residues = self._tidy(body, residues, body_line - 1)
        identifier, description = names
        if not identifier:
            self._count("headers without identifier", 1)
            identifier = f"unnamed:{line}"
        self.num_records += 1
        self.num_residues += len(residues)
        return FastaRecord(identifier, description, residues, self._name, line)

    def _unusual_names(self, header: str, line: int) -> tuple[str, str]:
        if not header.strip() or header[0].isspace():
            self._count("headers without identifier", 1)
            return f"unnamed:{line}", header.strip()
        # NCBI's nr joins the headers of identical proteins by a byte 1
        first, *rest = header.replace("\x01", " \x01").split(None, 1)
        return first, rest[0] if rest else ""

    def _tidy(self, body: bytes, residues: bytes, line: int) -> bytes:
        """Return the residues of a body that holds more than letters, and count what goes."""
        if residues.translate(None, LETTERS + GAPS + b"*"):
            residues = b"".join(self._tidy_lines(body, line + 1))
        without_gaps = residues.translate(None, GAPS)
        if len(without_gaps) < len(residues) and self._config.gaps != "keep":
            if self._config.gaps == "refuse":
                self._refuse_first(_GAP, body, line, "is a gap; choose to drop or to keep gaps")
            self._count("gaps", len(residues) - len(without_gaps))
            residues = without_gaps
        stripped = residues.rstrip(b"*")
        self._count("stops at the end", len(residues) - len(stripped))
        self._count("sequences with a stop inside", int(b"*" in stripped))
        if self._config.strict and _BECOMES_X.search(stripped):
            self._refuse_first(_BECOMES_X, body, line, "would become X, which the strict setting refuses")
        return stripped

    def _tidy_lines(self, body: bytes, first_line: int) -> Iterator[bytes]:
        for line, text in enumerate(body.split(b"\n"), first_line):
            if _is_comment(text):
                self._count("comment lines", 1)
                continue
            words = text.split()
            # a number that stands apart at either end is a line number, as in GenBank and GCG layouts
            for end in (0, -1):
                if len(words) > 1 and words[end].isdigit():
                    del words[end]
                    self._count("line numbers", 1)
            joined = b"".join(words)
            if joined.translate(None, LETTERS + GAPS + b"*"):
                self._refuse_character(joined, line)
            self._count("lines with blanks", int(len(joined) < len(text)))
            yield joined

    def _count(self, treatment: str, amount: int) -> None:
        if amount:
            self._treatments[treatment] += amount

    def _skip_opening(self, lines: bytes) -> None:
        """Pass over blank lines and comments before the first header, and refuse any other text."""
        self._refuse_foreign(lines)
        for text in lines.split(b"\n")[:-1]:
            if _is_comment(text):
                self._count("comment lines", 1)
            elif text.strip():
                shown = _decoded(text.strip()[:40])
                self._refuse(
                    self._line, f"text before the first header: {shown!r}; expected a line that begins with '>'"
                )
            self._line += 1

    def _refuse_foreign(self, opening: bytes) -> None:
        if (format := format_of_opening(opening, sequence_column=self._config.sequence_column)) != "fasta":
            raise FastaError(
                f"{self._name}: is no FASTA but looks like {_OTHER_FORMATS[format]}; "
                "'proteinlm ingest' reads one that is given as a file"
            )
        if (found := foreign_format(opening.removeprefix(b"\xef\xbb\xbf"))) is not None:
            raise FastaError(f"{self._name}: is no FASTA but looks like {found}")

    def _refuse_comments(self, body: bytes, first_line: int) -> None:
        """Refuse what only FASTA has; elsewhere such a line is damage."""
        for line, text in enumerate(body.split(b"\n"), first_line):
            if _is_comment(text):
                self._refuse_character(text, line)

    def _refuse_nul(self, pending: list[bytes], text: bytes) -> NoReturn:
        before = b"".join([*pending, text[: text.index(b"\0")]])
        line = self._line + before.count(b"\n")
        self._refuse(
            line, "a NUL byte, which no FASTA holds; the file is damaged (an interrupted write leaves such bytes)"
        )

    def _refuse_character(self, text: bytes, line: int) -> NoReturn:
        found = _NOT_A_RESIDUE.search(text)
        assert found is not None
        if found[0] == b">":
            self._refuse(line, "'>' inside a sequence line; was a file without a last line end joined to another?")
        shown = _first_character(text[found.start() :])
        name = f"'{shown}'" if shown.isascii() and shown.isprintable() else f"character U+{ord(shown):04X}"
        context = text[max(0, found.start() - 5) : found.start()].decode("ascii")
        place = f" after '{context}'" if context else ""
        self._refuse(line, f"{name}{place} is no residue; expected letters, '*' or gaps (- . ~)")

    def _refuse_first(self, pattern: re.Pattern[bytes], body: bytes, line: int, reason: str) -> NoReturn:
        for number, text in enumerate(body.split(b"\n"), line + 1):
            if not _is_comment(text) and (found := pattern.search(text)):
                self._refuse(number, f"'{found[0].decode()}' {reason}")
        raise AssertionError("the pattern was found in the residues, so it is in a line")

    def _refuse(self, line: int, reason: str) -> NoReturn:
        raise FastaError(f"{self._name}:{line}: {reason}")


def _next_header(text: bytes, position: int) -> int:
    """Return where the first ``>`` stands that begins a line, from ``position`` on, or -1."""
    # a search for one byte is several times as fast as one for two
    found = text.find(b">", position)
    while found > 0 and text[found - 1] != _LINE_FEED:
        found = text.find(b">", found + 1)
    return found


def _header_and_body(text: bytes) -> tuple[bytes, bytes]:
    header, _, body = text[1:].partition(b"\n")
    return header, body


def _with_line_feeds(text: bytes) -> bytes:
    if b"\r" not in text:
        return text
    if b"\r\r" in text:
        text = _RETURNS_BEFORE_LINE_FEED.sub(b"\n", text)
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _is_comment(line: bytes) -> bool:
    return line.startswith((b";", b"#", b"!"))


def _first_character(text: bytes) -> str:
    for size in range(1, 5):
        with suppress(UnicodeDecodeError):
            return text[:size].decode()
    return text[:1].decode("latin-1")


def _decoded(text: bytes) -> str:
    """Return ``text`` as UTF-8 where it is that, otherwise as Latin-1, which fits any bytes."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
