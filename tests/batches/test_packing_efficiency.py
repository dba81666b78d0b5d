"""How full windows get."""

from __future__ import annotations

import numpy

from proteinlm.batches import packing_efficiency as module
from proteinlm.batches.packing import PackingConfig
from proteinlm.batches.packing_efficiency import packing_efficiency

SIXTEEN = PackingConfig(window_length=16)


def test_fill_counts_special_tokens_and_no_padding():
    # framed by two special tokens: 10 and 6 fill one window, 12 three quarters of another
    found = packing_efficiency(numpy.array([8, 4, 10]), SIXTEEN)
    assert (found.num_windows, found.num_sequences, found.num_cut) in {(2, 3, 0)}
    assert found.fill == 28 / 32


def test_only_sequences_longer_than_a_window_are_cut():
    assert packing_efficiency(numpy.array([14, 15, 60]), SIXTEEN).num_cut == 2


def test_nothing_fills_nothing():
    found = packing_efficiency(numpy.empty(0, dtype=numpy.int64), SIXTEEN)
    assert (found.num_windows, found.num_sequences, found.fill) == (0, 0, 0)


def test_of_many_sequences_the_same_few_are_drawn_each_time(monkeypatch):
    monkeypatch.setattr(module, "MOST_SEQUENCES", 50)
    lengths = numpy.random.default_rng(0).integers(2, 300, 400)
    first, second = (packing_efficiency(lengths, PackingConfig(window_length=512)) for _ in range(2))
    assert first == second
    assert (first.num_sequences, first.num_all) == (50, 400)
