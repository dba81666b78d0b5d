"""Records in blocks: many records of one source, encoded and hashed, as flat arrays.

Building a corpus handles millions of records a second, so nothing may cost Python time for each of
them. ``blocks_of_records`` is the plain form, record by record, and the definition of what a block
holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from proteinlm.sequence.alphabet import STANDARD, TOKENS, VOCAB_SIZE, encode
from proteinlm.sequence.fasta import FastaRecord, accession
from proteinlm.sequence.screening import is_fragment, looks_like_nucleotides

if TYPE_CHECKING:
    from numpy.typing import NDArray

# residues of a block, after which it is handed on
BLOCK_RESIDUES = 1 << 22

# bits of ``RecordBlock.marks``
NUCLEOTIDES = 1
FRAGMENT = 2

_IS_STANDARD = np.isin(np.arange(VOCAB_SIZE), STANDARD)
_PREDICTABLE = np.isin(np.arange(VOCAB_SIZE), [*STANDARD.tolist(), *(TOKENS.index(letter) for letter in "BUZO")])


@dataclass(frozen=True, slots=True)
class ReadingPosition:
    """Where a reader is: everything before it has been handed on.

    Attributes:
        source: number of the source, from 0.
        text: bytes of the source's text before it, decompressed and with its line ends made LF; in a
            source that is no FASTA, records before it.
        line: the line that comes next, from 1.
        num_records: records of the source before it.
        num_residues: their residues.
    """

    source: int
    text: int
    line: int
    num_records: int
    num_residues: int


@dataclass(frozen=True, slots=True, eq=False)
class RecordBlock:
    """N records of one source that follow each other, with R residues in all.

    Attributes:
        source: name of the source, as messages call it.
        tokens: uint8 (R,), one for every residue.
        offsets: int64 (N + 1,), record i is ``tokens[offsets[i]:offsets[i + 1]]``.
        identifiers: uint8, the UTF-8 bytes of the identifiers, one after the other.
        identifier_offsets: int64 (N + 1,) into them.
        lines: int64 (N,), line of each header in the source, from 1.
        digests: uint64 (N, 2), xxh3_128 of each record's tokens: low half, high half.
        name_digests: uint64 (N, 2), xxh3_128 of each accession.
        num_predictable: int64 (N,), residues that are one of the 20 standard ones or B, U, Z, O: 0
            where there is nothing to predict.
        num_ambiguous: int64 (N,), residues that are none of the 20 standard ones.
        marks: uint8 (N,), bits NUCLEOTIDES and FRAGMENT.
        substitutions: for the records that had some, by number: residues replaced, by kind.
        end: where the reader is after the block.
    """

    source: str
    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    identifiers: NDArray[np.uint8]
    identifier_offsets: NDArray[np.int64]
    lines: NDArray[np.int64]
    digests: NDArray[np.uint64]
    name_digests: NDArray[np.uint64]
    num_predictable: NDArray[np.int64]
    num_ambiguous: NDArray[np.int64]
    marks: NDArray[np.uint8]
    substitutions: Mapping[int, Mapping[str, int]]
    end: ReadingPosition

    def __len__(self) -> int:
        return len(self.lines)

    def identifier(self, number: int) -> str:
        """Return the identifier of a record."""
        start, end = self.identifier_offsets[number : number + 2].tolist()
        return self.identifiers[start:end].tobytes().decode()


def blocks_of_records(
    records: Iterable[FastaRecord], *, source: int, start: ReadingPosition | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of one source in blocks.

    Args:
        records: of the source with number ``source``, from ``start`` on.
        source: its number.
        start: where they begin; the beginning of the source if None.
    """
    end = start or ReadingPosition(source, 0, 1, 0, 0)
    gathered: list[FastaRecord] = []
    num_residues = 0
    for record in records:
        gathered.append(record)
        num_residues += len(record.residues)
        if num_residues >= BLOCK_RESIDUES:
            end = _after(end, gathered, num_residues)
            yield block_of(gathered, end)
            gathered, num_residues = [], 0
    if gathered:
        yield block_of(gathered, _after(end, gathered, num_residues))


def _after(start: ReadingPosition, records: list[FastaRecord], num_residues: int) -> ReadingPosition:
    return ReadingPosition(
        source=start.source,
        text=start.text + len(records),
        line=records[-1].line + 1,
        num_records=start.num_records + len(records),
        num_residues=start.num_residues + num_residues,
    )


def block_of(records: list[FastaRecord], end: ReadingPosition) -> RecordBlock:
    """Return the block of these records of one source."""
    encoded = [encode(record.residues) for record in records]
    tokens = [found.tokens for found in encoded]
    names = [record.identifier.encode() for record in records]
    counts = np.array([np.bincount(found, minlength=VOCAB_SIZE) for found in tokens]).reshape(len(tokens), VOCAB_SIZE)
    num_residues = counts.sum(axis=1)
    return RecordBlock(
        source=records[0].source,
        tokens=np.concatenate(tokens),
        offsets=_offsets(len(found) for found in tokens),
        identifiers=np.frombuffer(b"".join(names), dtype=np.uint8),
        identifier_offsets=_offsets(len(name) for name in names),
        lines=np.array([record.line for record in records], dtype=np.int64),
        digests=_digests(found.tobytes() for found in tokens),
        name_digests=_digests(accession(record.identifier).encode() for record in records),
        num_predictable=counts[:, _PREDICTABLE].sum(axis=1),
        num_ambiguous=num_residues - counts[:, _IS_STANDARD].sum(axis=1),
        marks=np.array([_marks(record) for record in records], dtype=np.uint8),
        substitutions={number: found.substitutions for number, found in enumerate(encoded) if found.substitutions},
        end=end,
    )


def _marks(record: FastaRecord) -> int:
    return NUCLEOTIDES * looks_like_nucleotides(record.residues) | FRAGMENT * is_fragment(record.description)


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.array([0, *accumulate(lengths)], dtype=np.int64)


def _digests(texts: Iterable[bytes]) -> NDArray[np.uint64]:
    # the library's digest is the high half, then the low half, big end first
    joined = b"".join([xxhash.xxh3_128_digest(text) for text in texts])
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 2)[:, ::-1].astype(np.uint64)
