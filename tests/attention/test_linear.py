from __future__ import annotations

import pytest
import torch

from proteinlm.attention import LinearConfig, build_attention


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalisation": "none"}, "normalisation is 'none'; expected 'division' or 'numerator'"),
        ({"decay": "yes"}, "decay is 'yes'; expected 'none' or 'distance'"),
    ],
    ids=["normalisation", "decay"],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearConfig(**settings)


def test_its_name_tells_the_settings():
    attention = build_attention(LinearConfig(decay="distance"), head_dim=6, layer=0, seed=0)
    assert repr(attention) == "LinearAttention(normalisation=division decay=distance)"


def test_each_head_decays_at_its_own_rate():
    attention = build_attention(LinearConfig(decay="distance"), head_dim=6, layer=0, seed=0)
    q = torch.zeros(1, 2, 3, 6, dtype=torch.float64)
    map_BHRL = attention.attention_map(q, q)
    ratios = map_BHRL[0, :, 0, 1] / map_BHRL[0, :, 0, 0]
    torch.testing.assert_close(ratios, torch.tensor([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], dtype=torch.float64))


def test_the_bidirectional_map_is_symmetric_under_reversal():
    attention = build_attention(LinearConfig(decay="distance"), head_dim=6, layer=0, seed=0)
    q, k = (torch.randn(1, 200, 3, 6, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 200, 3, 6, dtype=torch.float64)
    forward, backward = attention(q, k, v), attention(q.flip(1), k.flip(1), v.flip(1)).flip(1)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-12)
