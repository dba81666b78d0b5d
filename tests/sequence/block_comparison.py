"""Whether the reader of blocks reads what the reader of records reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from proteinlm.errors import FastaError
from proteinlm.sequence.entries import read_records
from proteinlm.sequence.fasta import FastaConfig, FastaRecord, ReadingTally
from proteinlm.sequence.record_blocks import ReadingPosition, RecordBlock, blocks_of_records
from proteinlm.sequence.source_blocks import read_source_blocks
from proteinlm.sequence.text_blocks import BLOCK_BYTES

PLAIN_FIELDS = ("lines", "digests", "name_digests", "num_predictable", "num_ambiguous", "marks")
assert {field.name for field in fields(RecordBlock)} == {
    *PLAIN_FIELDS,
    *("source", "tokens", "offsets", "identifiers", "identifier_offsets", "substitutions", "end"),
}


def contents(blocks: Sequence[RecordBlock]) -> list[tuple]:
    """Return everything that blocks say of each of their records, and check that they are arrays as promised."""
    found = []
    for block in blocks:
        assert (block.tokens.dtype, block.offsets.dtype, block.digests.dtype) == (np.uint8, np.int64, np.uint64)
        assert (block.identifiers.dtype, block.lines.dtype, block.marks.dtype) == (np.uint8, np.int64, np.uint8)
        assert block.offsets[0] == block.identifier_offsets[0] == 0
        assert (block.offsets[-1], block.identifier_offsets[-1]) == (len(block.tokens), len(block.identifiers))
        for number in range(len(block)):
            start, end = block.offsets[number : number + 2]
            own = [getattr(block, name)[number].tolist() for name in PLAIN_FIELDS]
            tokens = block.tokens[start:end].tobytes()
            found.append((block.source, block.identifier(number), tokens, block.substitutions.get(number), *own))
    return found


def in_records(paths: Sequence[Path], config: FastaConfig) -> tuple[str | list[tuple], ReadingTally]:
    """Return the contents of files, or why they are refused, as the reader of records has them."""
    tally, blocks = ReadingTally(with_sha256=False), list[RecordBlock]()
    by_source: dict[str, list[FastaRecord]] = {}
    try:
        for record in read_records(paths, config=config, tally=tally):
            by_source.setdefault(record.source, []).append(record)
    except FastaError as error:
        return str(error), tally
    for source, records in enumerate(by_source.values()):
        blocks += blocks_of_records(records, source=source)
    return contents(blocks), tally


def in_blocks(
    paths: Sequence[Path],
    config: FastaConfig,
    block_bytes: int = BLOCK_BYTES,
    start: ReadingPosition | None = None,
) -> tuple[str | list[tuple], ReadingTally]:
    """Return the same as the reader of blocks has it."""
    tally = ReadingTally(with_sha256=False)
    try:
        blocks = list(read_source_blocks(paths, config=config, tally=tally, block_bytes=block_bytes, start=start))
    except FastaError as error:
        return str(error), tally
    return contents(blocks), tally


def assert_read_alike(path: Path, config: FastaConfig | None = None, block_bytes: int = BLOCK_BYTES) -> None:
    """Compare records, tallies and refusals of both readers on one file.

    What kind of foreign file it is both tell from its first piece, so in tiny pieces they may
    give different reasons to refuse its opening.
    """
    config = config or FastaConfig()
    expected, expected_tally = in_records([path], config)
    found, tally = in_blocks([path], config, block_bytes)
    if isinstance(expected, str):
        openings = ("looks like", "text before the first header", "holds no record")
        if block_bytes < BLOCK_BYTES and any(words in expected for words in openings):
            assert any(words in found for words in openings), (expected, found)
            return
        assert found == expected
        return
    assert found == expected
    assert tally.treatments == expected_tally.treatments
    for one, other in zip(tally.sources, expected_tally.sources, strict=True):
        assert (one.name, one.num_records, one.num_residues) == (other.name, other.num_records, other.num_residues)
        assert (one.digest.num_bytes, one.digest.xxh3_128) == (other.digest.num_bytes, other.digest.xxh3_128)
