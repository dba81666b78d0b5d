"""Dropout by window."""

from __future__ import annotations

import torch

from proteinlm.model.dropout import KeyedDropout


def test_a_window_is_dropped_alike_in_any_batch():
    dropout = KeyedDropout(0.3, layer=1, site="attention").train()
    x = torch.ones(3, 20, 8)
    together = dropout(x, [5, 6, 7])
    assert torch.equal(dropout(x[:1], [6])[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_mean_is_kept():
    dropout = KeyedDropout(0.25, layer=0, site="attention").train()
    dropped = dropout(torch.ones(1, 400, 100), [1])
    # each value is 0 or 4/3: variance 1/3 over 40,000 values
    assert abs(dropped.mean() - 1) < 4 * (1 / 3 / 40_000) ** 0.5


def test_evaluation_drops_nothing():
    dropout = KeyedDropout(0.25, layer=0, site="attention").eval()
    x = torch.randn(1, 4, 4)
    assert torch.equal(dropout(x, [1]), x)


def test_a_key_names_the_same_mask_whatever_the_default_dtype():
    dropout = KeyedDropout(0.3, layer=1, site="attention").train()
    x = torch.ones(2, 20, 8)
    expected = dropout.draw(x, [5, 6])
    torch.set_default_dtype(torch.float64)
    try:
        drawn = dropout.draw(x.double(), [5, 6])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(drawn, expected)
