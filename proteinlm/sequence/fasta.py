"""FASTA as people really have it: read in one pass, one record at a time, nothing lost unnoticed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.compression import STDIN, SourceDigest, read_decompressed, source_name
from proteinlm.sequence.fasta_text import FastaText, before_nul, is_comment, next_header

LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
GAPS = b"-.~"
_LINE_FEED = ord("\n")
# half of a usual line: what is as long as that is no word of a title
_LONGEST_WORD = 30
# FastaRecord(…) takes twice as long
_new_tuple = tuple.__new__
_NOT_A_RESIDUE = re.compile(rb"[^A-Za-z*.~-]")
_GAP = re.compile(rb"[.~-]")
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
    with_sha256: bool = True  # of every source, beside its XXH3

    def begin(self, name: str) -> SourceTally:
        """Add a source and return its tally."""
        self.sources.append(SourceTally(name, SourceDigest(with_sha256=self.with_sha256)))
        return self.sources[-1]


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
        tally: filled while records are drawn; asking for it costs digests of every file.
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
    source = SourceTally(source_name(path)) if tally is None else tally.begin(source_name(path))
    pieces = read_decompressed(path, digest=None if tally is None else source.digest, progress=progress)
    treatments = Counter[str]() if tally is None else tally.treatments
    parser = RecordParser(source.name, config, treatments)
    try:
        yield from parser.records(pieces)
    finally:
        source.num_records, source.num_residues = parser.num_records, parser.num_residues


def total_bytes(paths: list[Path | str]) -> int | None:
    """Return the size on disk of all ``paths``, or None where one is no regular file or cannot be looked at."""
    if any(str(path) == STDIN or not os.path.isfile(path) for path in paths):
        return None
    try:
        return sum(Path(path).stat().st_size for path in paths)
    except OSError:  # who opens it says what is wrong
        return None


def accession(identifier: str) -> str:
    """Return the accession in ``identifier``: P12345 of ``sp|P12345|NAME``, others as they are."""
    parts = identifier.split("|")
    is_uniprot = len(parts) == 3 and parts[0] in {"sp", "tr"}
    return parts[1] if is_uniprot and parts[1] else identifier


class RecordParser(FastaText):
    """Cuts one file into records."""

    def __init__(self, name: str, config: FastaConfig, treatments: Counter[str]) -> None:
        super().__init__(name, treatments)
        self._config = config
        self._is_strict = config.strict
        self.num_records = self.num_residues = 0

    def record_at(self, line: int, text: bytes) -> FastaRecord:
        """Return the record of ``text``, whose header stands in ``line``."""
        self._line = line
        return self._record(*_header_and_body(text))

    def records(self, pieces: Iterable[bytes]) -> Iterator[FastaRecord]:
        """Yield the records of the text in ``pieces``."""
        # whole lines of the record at hand, or None before the first header
        pending: list[bytes] | None = None
        for whole in self._whole_lines(pieces):
            text = before_nul(whole)
            start = next_header(text, 0)
            head = text if start < 0 else text[:start]
            if pending is None:
                self._skip_opening(head)
            else:
                pending.append(head)
            if start >= 0:
                if pending is not None:
                    yield self._record(*_header_and_body(b"".join(pending)))
                line_end = text.index(b"\n", start)
                while (end := text.find(b">", line_end)) > 0:
                    if text[end - 1] != _LINE_FEED and (end := next_header(text, end)) < 0:
                        break
                    yield self._record(text[start + 1 : line_end], text[line_end + 1 : end])
                    start, line_end = end, text.index(b"\n", end)
                pending = [text[start:]]
            if text is not whole:
                self._refuse_nul(b"".join(pending or []))
        if pending is None:
            self._refuse_no_record()
        yield self._record(*_header_and_body(b"".join(pending)))

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
            if is_comment(text):
                self._count("comment lines", 1)
                continue
            words = text.split()
            num_words = len(words)
            # a number that stands apart at either end is a line number, as in GenBank and GCG layouts
            for end in (0, -1):
                if len(words) > 1 and words[end].isdigit():
                    del words[end]
                    self._count("line numbers", 1)
            joined = b"".join(words)
            if joined.translate(None, LETTERS + GAPS + b"*"):
                self._refuse_character(joined, line)
            if len(words) == num_words and _is_prose(words):
                self._refuse(
                    line,
                    f"{b' '.join(words)[:60].decode()!r} are words, not residues in blocks of one length; take out "
                    "the line if it is a title or the rest of a header, and its blanks if these are residues",
                )
            self._count("lines with blanks", int(len(joined) < len(text)))
            yield joined

    def _refuse_comments(self, body: bytes, first_line: int) -> None:
        """Refuse what only FASTA has; elsewhere such a line is damage."""
        for line, text in enumerate(body.split(b"\n"), first_line):
            if is_comment(text):
                self._refuse_character(text, line)

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
            if not is_comment(text) and (found := pattern.search(text)):
                self._refuse(number, f"'{found[0].decode()}' {reason}")
        raise AssertionError("the pattern was found in the residues, so it is in a line")


def _header_and_body(text: bytes) -> tuple[bytes, bytes]:
    header, _, body = text[1:].partition(b"\n")
    return header, body


def _is_prose(words: list[bytes]) -> bool:
    """Say whether the words of a line are unequal, as those of titles are: only the last block may be shorter."""
    lengths = [len(word) for word in words]
    is_in_blocks = len(set(lengths[:-1])) < 2 and lengths[-1:] <= lengths[:1]
    return not is_in_blocks and max(lengths) < _LONGEST_WORD


def _first_character(text: bytes) -> str:
    for size in range(1, 5):
        with suppress(UnicodeDecodeError):
            return text[:size].decode()
    return text[:1].decode("latin-1")
