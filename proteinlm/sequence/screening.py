"""Which records are worth keeping: every record read is either kept or dropped for one counted reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import xxhash

from proteinlm.sequence.alphabet import STANDARD, VOCAB_SIZE
from proteinlm.sequence.fasta import FastaRecord, accession

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMPTY = "no residues"
ONLY_X = "X only, nothing to predict"
TOO_SHORT = "too short"
TOO_LONG = "too long"
TOO_AMBIGUOUS = "too many ambiguous residues"
FRAGMENT = "fragment"
DUPLICATE = "duplicate sequence"
DUPLICATE_IDENTIFIER = "duplicate identifier"
NUCLEOTIDES = "looks like nucleotides"

# A, C, G and T make up a quarter of a usual protein, so a long run of them alone is no protein
_NUCLEOTIDE_LETTERS = b"ACGTUNacgtun"
_NUCLEOTIDE_SHARE = 0.95
_NUCLEOTIDE_MIN_LENGTH = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreeningConfig:
    """Which records to drop beside those without residues and those of X only."""

    min_length: int = 1  # residues
    max_length: int | None = None  # residues; None keeps every length
    max_ambiguous: float = 1.0  # share of the residues that are none of the 20 standard ones
    drop_fragments: bool = False  # told by the header, as UniProt and UniRef write it
    duplicates: Literal["count", "drop", "ignore"] = "count"  # "drop" keeps the first of equals

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise ValueError(f"min_length is {self.min_length}; expected at least 1")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(f"max_length {self.max_length} is below min_length {self.min_length}")
        if not 0 <= self.max_ambiguous <= 1:
            raise ValueError(f"max_ambiguous is {self.max_ambiguous}; expected a share from 0 to 1")
        if self.duplicates not in ("count", "drop", "ignore"):
            raise ValueError(f"duplicates is {self.duplicates!r}; expected 'count', 'drop' or 'ignore'")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What screening says of one record: why it is dropped, or what is odd about it."""

    dropped: str | None
    noted: tuple[str, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class ScreeningReport:
    """Counts of records: ``num_read`` is ``num_kept`` plus all of ``dropped``; ``noted`` were kept."""

    num_read: int
    num_kept: int
    dropped: Mapping[str, int]
    noted: Mapping[str, int]

    def __post_init__(self) -> None:
        assert self.num_read == self.num_kept + sum(self.dropped.values())


@dataclass(slots=True)
class Screen:
    """Judges records one after the other and remembers what it has seen.

    Sequences and identifiers are remembered by 128-bit hashes, about 100 bytes of memory each; a
    collision is not to be expected below 10^12 sequences and is not handled.
    """

    config: ScreeningConfig
    _num_read: int = 0
    _dropped: Counter[str] = field(default_factory=Counter)
    _noted: Counter[str] = field(default_factory=Counter)
    _sequences: set[bytes] = field(default_factory=set)
    _identifiers: set[bytes] = field(default_factory=set)

    def judge(self, record: FastaRecord, tokens: NDArray[np.uint8]) -> Verdict:
        """Return whether to keep ``record``; ``tokens`` are its residues, encoded."""
        digest = xxhash.xxh3_128_digest(tokens.data)
        dropped = self._reason_to_drop(record, tokens, digest)
        noted = () if dropped else self._notes(record, digest)
        self._num_read += 1
        if noted:
            self._noted.update(noted)
        if dropped:
            self._dropped[dropped] += 1
        return Verdict(dropped, noted, digest)

    def report(self) -> ScreeningReport:
        """Return the counts so far."""
        num_kept = self._num_read - self._dropped.total()
        return ScreeningReport(
            self._num_read, num_kept, dict(sorted(self._dropped.items())), dict(sorted(self._noted.items()))
        )

    def _reason_to_drop(self, record: FastaRecord, tokens: NDArray[np.uint8], digest: bytes) -> str | None:
        if not record.residues:
            return EMPTY
        # strip ends at the first letter that can be predicted, so this costs nothing on a protein
        if not record.residues.strip(b"XxJj*-.~"):
            return ONLY_X
        return self._reason_not_to_want(record, tokens, digest)

    def _reason_not_to_want(self, record: FastaRecord, tokens: NDArray[np.uint8], digest: bytes) -> str | None:
        config = self.config
        if len(tokens) < config.min_length:
            return TOO_SHORT
        if config.max_length is not None and len(tokens) > config.max_length:
            return TOO_LONG
        if config.max_ambiguous < 1 and _share_ambiguous(tokens) > config.max_ambiguous:
            return TOO_AMBIGUOUS
        if config.drop_fragments and is_fragment(record.description):
            return FRAGMENT
        return DUPLICATE if config.duplicates == "drop" and digest in self._sequences else None

    def _notes(self, record: FastaRecord, digest: bytes) -> tuple[str, ...]:
        noted = self._repeats(record, digest) if self.config.duplicates != "ignore" else []
        if looks_like_nucleotides(record.residues):
            noted.append(NUCLEOTIDES)
        return tuple(noted)

    def _repeats(self, record: FastaRecord, digest: bytes) -> list[str]:
        name = xxhash.xxh3_128_digest(accession(record.identifier).encode())
        noted = []
        if name in self._identifiers:
            noted.append(DUPLICATE_IDENTIFIER)
        if digest in self._sequences:
            noted.append(DUPLICATE)
        self._identifiers.add(name)
        self._sequences.add(digest)
        return noted


def looks_like_nucleotides(residues: bytes) -> bool:
    """Say whether a sequence of 30 or more letters is nearly all A, C, G, T, U and N."""
    # most proteins are told by their first letters
    head = residues[:_NUCLEOTIDE_MIN_LENGTH]
    if len(head) < _NUCLEOTIDE_MIN_LENGTH or _num_other_letters(head) > _NUCLEOTIDE_MIN_LENGTH // 10:
        return False
    return _num_other_letters(residues) <= (1 - _NUCLEOTIDE_SHARE) * len(residues)


def is_fragment(description: str) -> bool:
    """Say whether a header names its protein a fragment, as UniProt and UniRef do: (Fragment), (Fragments)."""
    return "(Fragment" in description


def _num_other_letters(residues: bytes) -> int:
    return len(residues.translate(None, _NUCLEOTIDE_LETTERS))


def _share_ambiguous(tokens: NDArray[np.uint8]) -> float:
    counts = np.bincount(tokens, minlength=VOCAB_SIZE)
    return float((len(tokens) - counts[STANDARD].sum()) / len(tokens))
