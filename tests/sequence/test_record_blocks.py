"""Blocks hold what their records are."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from proteinlm.sequence import decode, encode, read_fasta
from proteinlm.sequence.record_blocks import FRAGMENT, NUCLEOTIDES, blocks_of_records


@pytest.fixture
def block(tmp_path):
    path = tmp_path / "some.fasta"
    path.write_text(
        ">sp|P12345|A_B One (Fragment) OS=X\nMKLV\nXB\n>two words\n"
        + "ACGT" * 10
        + "\n>three\nXXJ*X\n>four\n\n>é\nmkl\n"
    )
    (found,) = blocks_of_records(read_fasta([path]), source=0)
    return found


def test_tokens_and_identifiers_are_those_of_the_records(block):
    parts = [decode(block.tokens[start:end]) for start, end in zip(block.offsets, block.offsets[1:], strict=False)]
    assert parts == ["MKLVXB", "ACGT" * 10, "XXXXX", "", "MKL"]
    assert [block.identifier(number) for number in range(len(block))] == ["sp|P12345|A_B", "two", "three", "four", "é"]
    assert block.lines.tolist() == [1, 4, 6, 8, 10]
    assert block.substitutions == {2: {"J": 1, "*": 1}, 4: {"lower case": 3}}


def test_counts_and_marks(block):
    assert block.num_predictable.tolist() == [5, 40, 0, 0, 3]
    assert block.num_ambiguous.tolist() == [2, 0, 5, 0, 0]
    assert block.marks.tolist() == [FRAGMENT, NUCLEOTIDES, 0, 0, 0]


def test_digests_are_xxh3_128(block):
    def whole(halves):
        return (int(halves[1]) << 64) | int(halves[0])

    expected = xxhash.xxh3_128_intdigest(encode(b"MKLVXB").tokens.tobytes())
    assert whole(block.digests[0]) == expected
    assert whole(block.name_digests[0]) == xxhash.xxh3_128_intdigest(b"P12345")
    assert block.digests.dtype == np.uint64
