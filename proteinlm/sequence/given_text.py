"""Residues that are handed over as text, treated and refused as those of a FASTA file are."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

from proteinlm.errors import FastaError
from proteinlm.sequence.fasta import GAPS, LETTERS, FastaConfig, RecordParser


def residues_of_text(text: str, place: str) -> bytes:
    """Return the residues of a text: without blanks and gaps, and without stops at the end.

    Args:
        text: the lines of one sequence, without a header.
        place: what messages call it.

    Raises:
        FastaError: ``place: …`` for a character that no sequence of a FASTA file may hold.
    """
    parser = _GivenText(place, is_of_lines="\n" in text.strip())
    # what is no character at all has bytes too, and is refused by them
    body = text.encode("utf-8", "surrogatepass")
    return parser.entry((place, ""), body, line=1, body_line=1).residues


def checked_residues(residues: bytes, place: str) -> bytes:
    """Return residues that reading has treated as they are, and others as ``residues_of_text`` does."""
    if residues.isalpha() or not residues.translate(None, LETTERS + GAPS + b"*"):
        return residues
    return residues_of_text(residues.decode("latin-1"), place)


class _GivenText(RecordParser):
    """Treats one text; it has no file whose lines messages could name."""

    def __init__(self, place: str, *, is_of_lines: bool) -> None:
        super().__init__(place, FastaConfig(), Counter())
        self._is_of_lines = is_of_lines

    def _refuse(self, line: int, reason: str) -> NoReturn:
        raise FastaError(f"{self._name}, line {line}: {reason}" if self._is_of_lines else f"{self._name}: {reason}")
