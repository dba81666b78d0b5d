"""A corpus in numbers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.corpus import summarise_corpus, summarise_fasta
from proteinlm.corpus.summary import summarise_sequences
from proteinlm.sequence import encode

FILES = Path(__file__).parent.parent / "data" / "fasta"


def _summarise(*sequences):
    tokens = [encode(residues).tokens for residues in sequences]
    counts = numpy.bincount(numpy.concatenate(tokens), minlength=33)
    return summarise_sequences(numpy.array([len(part) for part in tokens]), counts)


def test_a_cut_touches_longer_sequences_and_the_residues_after_it():
    cuts = _summarise(b"M" * 1022, b"M" * 1023, b"M" * 10_000).cuts
    total = 1022 + 1023 + 10_000
    assert (cuts["1022"].num_longer, cuts["1022"].share_longer) == (2, pytest.approx(2 / 3))
    assert cuts["1022"].share_beyond == pytest.approx((1 + 8978) / total)
    assert (cuts["8192"].num_longer, cuts["8192"].share_beyond) == (1, pytest.approx(1808 / total))


@given(st.lists(st.integers(1, 40_000), max_size=30))
def test_every_length_is_in_one_bar_of_the_histogram(lengths):
    counts = numpy.zeros(33, dtype=numpy.int64)
    found = summarise_sequences(numpy.array(lengths, dtype=numpy.int64), counts).histogram
    bars = pairwise(found.edges)
    assert list(found.counts) == [sum(low <= length < high for length in lengths) for low, high in bars]
    assert sum(found.counts) == len(lengths)


def test_composition_and_ambiguity_are_shares_of_residues():
    summary = _summarise(b"MMMX", b"MMBU")
    assert summary.composition == {"M": 0.625, "X": 0.125, "B": 0.125, "U": 0.125}
    assert summary.ambiguous == 0.375


def test_nothing_gives_zeros():
    summary = summarise_sequences(numpy.empty(0, dtype=numpy.int64), numpy.zeros(33, dtype=numpy.int64))
    assert (summary.num_sequences, summary.shortest, summary.longest, summary.composition) == (0, 0, 0, {})


def test_sample_is_summarised_by_split(sample_corpus):
    summary = summarise_corpus(sample_corpus)
    assert {name: split.num_sequences for name, split in summary.splits.items()} == {
        "train": 17_351,
        "validation_iid": 467,
        "validation_ood": 941,
    }
    assert max(split.longest for split in summary.splits.values()) == 8_081
    assert summary.leaks["validation_ood"].same_cluster == 0
    assert sum(summary.splits["train"].composition.values()) == pytest.approx(1)


def test_fasta_is_summarised_as_ingest_would_see_it():
    summary = summarise_fasta([FILES / "no_residues.fasta", FILES / "gaps.fasta"])
    assert summary.screening.dropped == {"no residues": 2}
    assert summary.reading == {"gaps": 5}
    assert summary.sequences.num_residues == 44


def test_what_ingest_would_drop_is_in_no_number_of_the_summary(tmp_path):
    path = tmp_path / "proteins.fasta"
    path.write_text(">first\nMKV\n>second\nXXXXXX\n>third\n\n>fourth\nmkvl\n")
    summary = summarise_fasta([path])
    assert (summary.sequences.num_sequences, summary.sequences.num_residues) == (2, 7)
    assert (summary.sequences.shortest, summary.sequences.ambiguous) == (3, 0)
    assert summary.substitutions == {"lower case": 4}
