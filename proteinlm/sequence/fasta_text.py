"""The text of FASTA files before it is cut into records: whole lines, one kind of line end, nothing foreign."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NoReturn

from proteinlm.errors import FastaError
from proteinlm.sequence.foreign_formats import foreign_format
from proteinlm.sequence.source_formats import SourceFormat, format_of_opening

_LINE_FEED = ord("\n")
_MARK = b"\xef\xbb\xbf"
_BYTE_ORDER_MARK = re.compile(rb"^\xef\xbb\xbf", re.MULTILINE)
# a run of returns is looked through once, not from each of its bytes again
_RETURNS_BEFORE_LINE_FEED = re.compile(rb"(?<!\r)\r++\n")
_OTHER_FORMATS: dict[SourceFormat, str] = {
    "uniprot_flat": "a UniProt flat file",
    "uniprot_xml": "UniProt XML",
    "table": "a table",
}


class FastaText:
    """One file's text; ``_line`` is the line, from 1, at which what is not yet cut begins.

    Both readers of FASTA build on it, the one that yields records and the one that yields blocks.
    """

    def __init__(self, name: str, treatments: Counter[str]) -> None:
        self._name = name
        self._treatments = treatments
        self._line = 1

    def _whole_lines(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield text of whole lines, each ended by one LF, without byte order marks."""
        # of the line that has not ended, and returns at the end, which may be half of a line end
        unfinished: list[bytes] = []
        num_returns = 0
        is_opening = True
        for piece in pieces:
            if is_opening:
                self._refuse_foreign(piece)
                is_opening = False
            text = piece
            if num_returns or self._may_hold(b"\r", piece):
                text, num_returns = _with_line_feeds(piece, num_returns)
            cut = text.rfind(b"\n") + 1
            if cut and cut == len(text) and not unfinished:
                # most pieces that are cut before a header; they are not copied
                yield self._without_marks(text)
                continue
            if cut:
                yield self._without_marks(b"".join([*unfinished, memoryview(text)[:cut]]))
                unfinished.clear()
            if cut < len(text):
                unfinished.append(text[cut:])
        if rest := b"".join(unfinished) + b"\n" * num_returns:
            yield self._without_marks(rest if rest.endswith(b"\n") else rest + b"\n")

    def _may_hold(self, byte: bytes, text: bytes) -> bool:
        """Say whether a byte of ``wide_bytes.NEED_CARE`` may stand in a text; a reader may know it without looking."""
        return byte in text

    def _without_marks(self, text: bytes) -> bytes:
        # to look for the first byte alone is fastest
        if self._may_hold(_MARK[:1], text) and _MARK in text:
            text, num_marks = _BYTE_ORDER_MARK.subn(b"", text)
            self._count("byte order marks", num_marks)
        return text

    def _skip_opening(self, lines: bytes) -> None:
        """Pass over blank lines and comments before the first header, and refuse any other text."""
        self._refuse_foreign(lines)
        for text in lines.split(b"\n")[:-1]:
            if is_comment(text):
                self._count("comment lines", 1)
            elif text.strip():
                shown = decoded(text.strip()[:40])
                self._refuse(
                    self._line, f"text before the first header: {shown!r}; expected a line that begins with '>'"
                )
            self._line += 1

    def _count(self, treatment: str, amount: int) -> None:
        if amount:
            self._treatments[treatment] += amount

    def _refuse_foreign(self, opening: bytes) -> None:
        if (format := format_of_opening(opening)) != "fasta":
            raise FastaError(
                f"{self._name}: is no FASTA but looks like {_OTHER_FORMATS[format]}; "
                "'proteinlm ingest' reads one that is given as a file"
            )
        if (found := foreign_format(opening.removeprefix(b"\xef\xbb\xbf"))) is not None:
            raise FastaError(f"{self._name}: is no FASTA but looks like {found}")

    def _refuse_no_record(self) -> NoReturn:
        raise FastaError(f"{self._name}: holds no record; expected a header line that begins with '>'")

    def _refuse_nul(self, before: bytes) -> NoReturn:
        """Refuse a NUL byte that stands behind ``before``, the text not yet cut."""
        refuse_nul(self._name, self._line + before.count(b"\n"))

    def _refuse(self, line: int, reason: str) -> NoReturn:
        refuse(self._name, line, reason)


def refuse(name: str, line: int, reason: str) -> NoReturn:
    """Refuse a line of a source."""
    raise FastaError(f"{name}:{line}: {reason}")


def refuse_nul(name: str, line: int) -> NoReturn:
    """Refuse a line for a NUL byte."""
    refuse(name, line, "a NUL byte, which no FASTA holds; the file is damaged (an interrupted write leaves such bytes)")


def before_nul(text: bytes) -> bytes:
    """Return the whole lines of ``text`` before its first NUL byte, ``text`` itself where it has none."""
    found = text.find(b"\0")
    return text if found < 0 else text[: text.rfind(b"\n", 0, found) + 1]


def next_header(text: bytes, position: int) -> int:
    """Return where the first ``>`` stands that begins a line, from ``position`` on, or -1."""
    # a search for one byte is several times as fast as one for two
    found = text.find(b">", position)
    if found > 0 and text[found - 1] != _LINE_FEED:
        found = text.find(b"\n>", found)
        return found + 1 if found >= 0 else -1
    return found


def last_header(text: bytes) -> int:
    """Return where the last ``>`` stands that begins a line, or -1."""
    # a search for one byte is several times as fast as one for two
    found = text.rfind(b">")
    if found > 0 and text[found - 1] != _LINE_FEED:
        found = text.rfind(b"\n>", 0, found) + 1
        return found if found or text.startswith(b">") else -1
    return found


def is_comment(line: bytes) -> bool:
    """Say whether a line of a sequence is a comment."""
    return line.startswith((b";", b"#", b"!"))


def decoded(text: bytes) -> str:
    """Return ``text`` as UTF-8 where it is that, otherwise as Latin-1, which fits any bytes."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _with_line_feeds(piece: bytes, num_returns: int) -> tuple[bytes, int]:
    """Return a piece that follows so many returns with one kind of line end, and how many returns end it."""
    text = piece.rstrip(b"\r")
    if not text:
        return b"", num_returns + len(piece)
    num_last = len(piece) - len(text)
    if num_returns:
        after = text.lstrip(b"\r")
        text = after if after.startswith(b"\n") else b"\n" * num_returns + text
    if b"\r\r" in text:
        text = _RETURNS_BEFORE_LINE_FEED.sub(b"\n", text)
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), num_last
