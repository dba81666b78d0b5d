"""Texts of FASTA in, blocks of records out: what read_fasta reads, without Python's time for each record.

Reading has three steps, so that the second can run in several threads: ``read_sources`` in
proteinlm.sequence.source_blocks reads, hashes and inflates files and cuts their text between
records; ``scan`` finds, encodes and hashes the records of one text in a compiled loop that needs no
interpreter lock; ``settle``, in the order of the texts, sends records that are not plain through the
parser of read_fasta, which stays the definition of how a record is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.sequence.alphabet import encode
from proteinlm.sequence.fasta import FastaConfig, FastaRecord, RecordParser
from proteinlm.sequence.fasta_text import refuse_nul
from proteinlm.sequence.record_blocks import FRAGMENT, ReadingPosition, RecordBlock
from proteinlm.sequence.screening import is_fragment
from proteinlm.sequence.substitutions import Substitutions
from proteinlm.sequence.text_blocks import TextBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ScannedBlock:
    """A text and what the compiled loop found in it.

    The arrays and numbers are those of ``scan_text`` in proteinlm.sequence.scanning, cut to the N records.
    """

    block: TextBlock
    tokens: NDArray[np.uint8]
    identifiers: NDArray[np.uint8]
    places: NDArray[np.int64]
    counts: NDArray[np.int64]
    digests: NDArray[np.uint64]
    marks: NDArray[np.uint8]
    num_lines: int
    num_odd: int
    num_stops: int
    num_lower: int


@dataclass(slots=True, eq=False)
class _Found:
    """What a RecordBlock holds, on its way there."""

    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    identifiers: NDArray[np.uint8]
    identifier_offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    digests: NDArray[np.uint64]
    marks: NDArray[np.uint8]
    substitutions: Mapping[int, Mapping[str, int]]


def scan(block: TextBlock) -> ScannedBlock:
    """Return what stands in a text; safe in any number of threads at once."""
    from proteinlm.sequence import scanning
    from proteinlm.sequence.wide_bytes import is_wide

    text = np.frombuffer(block.text, dtype=np.uint8)
    tokens = np.empty(len(text), dtype=np.uint8)
    capacity, num_identifier_bytes = len(text) // 64 + 16, len(text) // 8 + 1024
    while True:
        # names are a small part of a text, and memory that is not there need not be found for each block
        identifiers = np.empty(num_identifier_bytes, dtype=np.uint8)
        places = np.empty((3, capacity + 1), dtype=np.int64)
        counts = np.empty((4, capacity), dtype=np.int64)
        digests = np.empty((2, capacity, 2), dtype=np.uint64)
        marks = np.empty(capacity, dtype=np.uint8)
        filled = (tokens, identifiers, places, counts, digests, marks)
        number, num_lines, num_odd, num_stops, num_lower = scanning.scan_text(text, is_wide(), *filled)
        if number >= 0:
            break
        capacity, num_identifier_bytes = capacity * 4, len(text)
    return ScannedBlock(
        block=block,
        tokens=tokens[: places[1, number]],
        identifiers=identifiers[: places[2, number]],
        places=places[:, : number + 1],
        counts=counts[:, :number],
        digests=digests[:, :number],
        marks=marks[:number],
        num_lines=num_lines,
        num_odd=num_odd,
        num_stops=num_stops,
        num_lower=num_lower,
    )


def settle(
    scanned: ScannedBlock, treatments: Counter[str], config: FastaConfig, previous: ReadingPosition | None
) -> RecordBlock:
    """Return the block of records of a scanned text.

    Args:
        scanned: of the text that follows ``previous``, or begins a source.
        treatments: what was taken away is added to it, by kind.
        config: what to do with gaps and ambiguous letters.
        previous: the ``end`` of the block before; None before the first.

    Raises:
        FastaError: ``file:line: …`` for a record that cannot be read with certainty.
    """
    block = scanned.block
    if previous is None or previous.source != block.source:
        previous = ReadingPosition(block.source, block.position, 1 + block.num_opening_lines, 0, 0)
    assert previous.text == block.position, "blocks are settled in their order"
    treatments.update(block.treatments)
    if scanned.num_stops:
        treatments["stops at the end"] += scanned.num_stops
    if block.holds_nul:
        refuse_nul(block.name, previous.line + block.text.count(b"\n", 0, block.text.index(b"\0")))
    found = _with_odd_records(scanned, treatments, config, previous.line)
    return RecordBlock(
        source=block.name,
        tokens=found.tokens,
        offsets=found.offsets,
        identifiers=found.identifiers,
        identifier_offsets=found.identifier_offsets,
        lines=found.counts[0] + previous.line,
        digests=found.digests[0],
        name_digests=found.digests[1],
        num_predictable=found.counts[1],
        num_ambiguous=found.counts[2],
        marks=found.marks,
        substitutions=found.substitutions,
        end=ReadingPosition(
            source=block.source,
            text=previous.text + len(block.text),
            line=previous.line + scanned.num_lines,
            num_records=previous.num_records + len(found.marks),
            num_residues=previous.num_residues + len(found.tokens),
        ),
    )


def _with_odd_records(scanned: ScannedBlock, treatments: Counter[str], config: FastaConfig, first_line: int) -> _Found:
    """Return what was found, with the records that are not plain in their places."""
    from proteinlm.sequence import scanning

    found = _Found(
        tokens=scanned.tokens,
        offsets=scanned.places[1],
        identifiers=scanned.identifiers,
        identifier_offsets=scanned.places[2],
        counts=scanned.counts,
        digests=scanned.digests,
        marks=scanned.marks,
        substitutions=Substitutions(scanned.counts[3], {}) if scanned.num_lower else {},
    )
    if not scanned.num_odd:
        return found
    odd = np.flatnonzero(scanned.marks & scanning.NOT_PLAIN)
    records = _parsed(scanned, odd, RecordParser(scanned.block.name, config, treatments), first_line)
    encoded = [encode(record.residues) for record in records]
    names = [np.frombuffer(record.identifier.encode(), dtype=np.uint8) for record in records]
    found.tokens, found.offsets = _inserted(found.tokens, found.offsets, odd, [one.tokens for one in encoded])
    found.identifiers, found.identifier_offsets = _inserted(found.identifiers, found.identifier_offsets, odd, names)
    found.counts, found.digests, found.marks = found.counts.copy(), found.digests.copy(), found.marks.copy()
    found.marks[odd] = [FRAGMENT * is_fragment(record.description) for record in records]
    scanning.measure_records(
        odd,
        *(found.tokens, found.offsets, found.identifiers, found.identifier_offsets),
        *(found.counts, found.digests, found.marks),
    )
    substitutions = {
        number: one.substitutions for number, one in zip(odd.tolist(), encoded, strict=True) if one.substitutions
    }
    found.substitutions = Substitutions(scanned.counts[3], substitutions) if scanned.num_lower else substitutions
    return found


def _parsed(scanned: ScannedBlock, odd: NDArray[np.int64], parser: RecordParser, first_line: int) -> list[FastaRecord]:
    starts, ends = scanned.places[0, odd].tolist(), scanned.places[0, odd + 1].tolist()
    lines = (scanned.counts[0, odd] + first_line).tolist()
    text = scanned.block.text
    return [parser.record_at(line, text[start:end]) for line, start, end in zip(lines, starts, ends, strict=True)]


def _inserted(
    values: NDArray[np.uint8], offsets: NDArray[np.int64], numbers: NDArray[np.int64], parts: list[NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return values and offsets with ``parts`` in the places, empty so far, of the numbered records."""
    pieces = []
    end = 0
    for place, part in zip(offsets[numbers].tolist(), parts, strict=True):
        pieces += [values[end:place], part]
        end = place
    lengths = np.diff(offsets)
    lengths[numbers] = [len(part) for part in parts]
    return np.concatenate([*pieces, values[end:]]), np.concatenate([[0], np.cumsum(lengths)])
