"""Sequences as people hand them over in Python; what would be taken for residues by mistake is refused."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from proteinlm.errors import FastaError
from proteinlm.sequence.fasta import FastaRecord
from proteinlm.sequence.given_text import checked_residues, residues_of_text
from proteinlm.sequence.wording import on_one_line

SequenceLike: TypeAlias = str | tuple[str, str] | FastaRecord

_EXPECTED = "expected residues as a str, a pair (identifier, residues), or a record of read_fasta"
# its letters and its dot would pass as residues and a gap
_FILE_NAME = re.compile(r"\S+\.(fasta|fa|faa|fas|fsa|fna|ffn|txt|csv|tsv|gz|bgz|xz|bz2|zst|zip|h5|pdb|cif)")
# a name is hardly so long and all in the letters of the 20 amino acids
_LIKE_RESIDUES = re.compile(r"[ACDEFGHIKLMNPQRSTVWY]{10,}")


@dataclass(frozen=True, slots=True)
class GivenSequence:
    """One sequence: its name, its residues as from a FASTA file, and where it stood, for messages."""

    identifier: str
    residues: bytes
    source: str


def refuse_other_than_sequences(sequences: object) -> None:
    """Refuse, before anything is drawn from it, what is no series of sequences but can be looped over.

    Raises:
        FastaError: says what was found and what to write.
    """
    if isinstance(sequences, os.PathLike) or (isinstance(sequences, str) and _FILE_NAME.fullmatch(sequences)):
        path = os.fspath(sequences)
        raise FastaError(f"found the name of a file, {path!r}; expected sequences: write read_fasta([{path!r}])")
    if isinstance(sequences, io.IOBase):
        raise FastaError("found an open file; expected sequences: give its name to read_fasta([name])")
    kind = type(sequences).__name__
    if isinstance(sequences, str | bytes | bytearray | FastaRecord):
        raise FastaError(f"found a single {kind}; expected an iterable of sequences: write [sequence]")
    if isinstance(sequences, Mapping):
        raise FastaError(f"found a {kind}, whose keys would be embedded; write sequences.items()")
    if hasattr(sequences, "columns"):
        raise FastaError(
            f"found a {kind}, whose column names would be embedded; write zip(table['identifier'], table['sequence'])"
        )
    if not isinstance(sequences, Iterable):
        raise FastaError(f"found a value of type {kind}; expected an iterable of sequences")


def given_sequences(sequences: Iterable[SequenceLike]) -> Iterator[GivenSequence]:
    """Yield each sequence; one without an identifier is called ``sequence_`` and its number, from 0.

    Raises:
        FastaError: if one is no sequence; names its number, from 0, and its identifier.
    """
    for index, sequence in enumerate(sequences):
        yield _given(sequence, index)


def _given(sequence: object, index: int) -> GivenSequence:
    source = f"sequence {index}"
    if isinstance(sequence, str):
        return GivenSequence(f"sequence_{index}", _residues(sequence, source), source)
    if isinstance(sequence, FastaRecord):
        source = f"{sequence.source}:{sequence.line}"
        residues = checked_residues(sequence.residues, f"{source}: '{sequence.identifier}'")
        return GivenSequence(sequence.identifier, residues, source)
    if not isinstance(sequence, tuple):
        _refuse(source, f"found a value of type {type(sequence).__name__}")
    kinds = [type(part).__name__ for part in sequence]
    if len(sequence) != 2 or not all(isinstance(part, str) for part in sequence):
        _refuse(source, f"found a tuple of ({', '.join(kinds)})")
    identifier, text = sequence
    place = f"{source} ('{_short(identifier)}')"
    residues = _residues(text, place)
    if _LIKE_RESIDUES.fullmatch(identifier) and len(identifier) > len(residues) and text.upper() not in identifier:
        _refuse(place, f"the identifier reads like residues and the residues, '{_short(text)}', like a name")
    return GivenSequence(identifier, residues, source)


def _residues(text: str, place: str) -> bytes:
    if text.lstrip("\ufeff \t\r\n").startswith(">"):
        _refuse(place, f"found FASTA text, '{_short(text.strip())}'; it is read from files by read_fasta([name])")
    if _FILE_NAME.fullmatch(text):
        _refuse(place, f"found the name of a file, '{_short(text)}'; it is read by read_fasta([name])")
    return residues_of_text(text, place)


def _refuse(place: str, found: str) -> NoReturn:
    raise FastaError(f"{place}: {found}; {_EXPECTED}")


def _short(text: str) -> str:
    return on_one_line(text if len(text) <= 40 else text[:39] + "…")
