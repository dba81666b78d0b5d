"""Sources of any format come in blocks that hold what is read record by record."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy
import pytest

from proteinlm.errors import FastaError
from proteinlm.sequence import record_blocks
from proteinlm.sequence.alphabet import encode
from proteinlm.sequence.entries import read_records
from proteinlm.sequence.fasta import ReadingTally
from proteinlm.sequence.source_blocks import read_source_blocks

FILES = Path(__file__).parent.parent / "data"
PATHS = [
    FILES / "uniprot" / "entries.dat",
    FILES / "fasta" / "gaps.fasta",
    FILES / "uniprot" / "entries.xml",
    FILES / "uniprot" / "entries.fasta",
]


def _of_blocks(blocks):
    return [
        (block.identifier(number), block.tokens[block.offsets[number] : block.offsets[number + 1]].tolist(), line)
        for block in blocks
        for number, line in enumerate(block.lines.tolist())
    ]


def _of_records(records):
    return [(record.identifier, encode(record.residues).tokens.tolist(), record.line) for record in records]


def _sources(tally):
    return [(s.name, s.num_records, s.num_residues, s.digest.num_bytes, s.digest.sha256) for s in tally.sources]


def test_blocks_hold_the_records_of_a_mixture_of_formats():
    plain, blocked = ReadingTally(), ReadingTally()
    assert _of_blocks(read_source_blocks(PATHS, tally=blocked)) == _of_records(read_records(PATHS, tally=plain))
    assert _sources(blocked) == _sources(plain)
    assert blocked.treatments == plain.treatments == {"gaps": 5}


def test_reading_goes_on_at_the_end_of_any_block(monkeypatch):
    monkeypatch.setattr(record_blocks, "BLOCK_RESIDUES", 1)
    whole = list(read_source_blocks(PATHS, block_bytes=64))
    assert len({block.end.source for block in whole}) == 4
    for number, block in enumerate(whole):
        rest = list(read_source_blocks(PATHS, start=block.end, block_bytes=64))
        assert _of_blocks(rest) == _of_blocks(whole[number + 1 :])
        assert [found.end for found in rest] == [found.end for found in whole[number + 1 :]]


def test_treatments_are_told_with_the_block_they_were_met_in(monkeypatch, tmp_path):
    from Bio.SeqUtils.CheckSum import crc64

    monkeypatch.setattr(record_blocks, "BLOCK_RESIDUES", 1)
    text = PATHS[0].read_text().replace("     GSHMACDEFG HIKL", "     GSHMACDEFG HIK*")
    path = tmp_path / "entries.dat"
    path.write_text(text.replace(crc64("GSHMACDEFGHIKL")[4:], crc64("GSHMACDEFGHIK*")[4:]))
    tally = ReadingTally()
    met = [dict(tally.treatments) for _ in read_source_blocks([path], tally=tally)]
    assert met == [{}, {"stops at the end": 1}, {"stops at the end": 1}]


def test_digests_are_those_of_the_same_records_in_fasta():
    entries, fasta = (list(read_source_blocks([PATHS[place]])) for place in (0, 3))
    for name in ("digests", "name_digests", "marks", "num_predictable", "num_ambiguous"):
        found, expected = (numpy.concatenate([getattr(block, name) for block in blocks]) for blocks in (entries, fasta))
        assert numpy.array_equal(found, expected)
    assert entries[0].marks.tolist() == [0, record_blocks.FRAGMENT, record_blocks.FRAGMENT]


@pytest.mark.parametrize("path", [PATHS[0], PATHS[3]], ids=["entries", "fasta"])
def test_standard_input_cannot_be_gone_on_with(monkeypatch, path):
    first = next(read_source_blocks([path]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(path.read_bytes()))))
    with pytest.raises(FastaError, match="cannot be read a second time"):
        list(read_source_blocks(["-"], start=first.end))


def test_damage_is_refused_with_the_same_words(tmp_path):
    path = tmp_path / "entries.dat"
    path.write_bytes(PATHS[0].read_bytes().replace(b"Reviewed", b"Anything"))
    with pytest.raises(FastaError, match=":1: the entry is no entry of UniProt"):
        list(read_source_blocks([path]))
