"""The picture of the lengths of a corpus."""

from __future__ import annotations

import numpy
import pytest

from proteinlm.analysis.figures import draw_lengths, length_histogram
from proteinlm.corpus.summary import LENGTH_CUTS, summarise_sequences


def _summary(lengths):
    return summarise_sequences(numpy.array(lengths, dtype=numpy.int64), numpy.zeros(33, dtype=numpy.int64))


@pytest.fixture
def splits():
    return {"train": _summary([30, 31, 32, 100, 5000]), "validation_iid": _summary([40]), "empty": _summary([])}


def test_each_split_with_sequences_has_a_line_of_its_own_colour(splits):
    (axes,) = length_histogram(splits).axes
    assert [patch.get_label() for patch in axes.patches] == ["train, 5", "validation_iid, 1"]
    assert len({patch.get_edgecolor() for patch in axes.patches}) == 2


def test_both_cuts_are_marked_with_what_they_touch(splits):
    (axes,) = length_histogram(splits).axes
    assert [line.get_xdata()[0] for line in axes.lines] == list(LENGTH_CUTS)
    # 1 of 6 sequences; 3,978 of 5,233 residues
    assert axes.texts[0].get_text() == "1,022 residues\n16.7% of sequences longer\n76.0% of residues beyond"


def test_the_area_of_a_line_is_all_sequences(splits):
    (axes,) = length_histogram(splits).axes
    heights, edges, _ = axes.patches[0].get_data()
    assert (heights * numpy.diff(numpy.log2(edges))).sum() == pytest.approx(1)


def test_the_same_lengths_give_the_same_bytes(splits):
    assert draw_lengths(splits) == draw_lengths(splits)


def test_nothing_is_drawn_too():
    assert draw_lengths({"train": _summary([])}).startswith(b"\x89PNG")
