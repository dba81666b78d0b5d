"""Residues replaced in a block are told as a dictionary for each record would tell them."""

from __future__ import annotations

import numpy as np
import pytest

from proteinlm.sequence.substitutions import Substitutions, total_of

OTHERS = {1: {"J": 2}, 4: {"*": 1, "lower case": 5}}
PLAIN = {0: {"lower case": 3}, 1: {"J": 2}, 3: {"lower case": 7}, 4: {"*": 1, "lower case": 5}}


@pytest.fixture
def found():
    return Substitutions(np.array([3, 0, 0, 7, 0]), OTHERS)


def test_it_reads_as_the_dictionary_of_all_records(found):
    assert dict(found) == PLAIN
    assert list(found) == [0, 1, 3, 4]
    assert len(found) == 4
    assert [found.get(number) for number in (-1, 2, 5)] == [None, None, None]


@pytest.mark.parametrize("wanted", [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 1, 0, 0, 1]])
def test_totals_are_those_of_the_wanted_records(found, wanted):
    chosen = np.array(wanted, dtype=np.bool_)
    total = total_of(found, chosen)
    assert total == total_of(PLAIN, chosen)
    assert 0 not in total.values()
