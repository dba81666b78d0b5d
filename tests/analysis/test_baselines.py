"""Attention that does not look."""

from __future__ import annotations

import torch

from proteinlm.analysis.baselines import UniformAttention, with_uniform_attention
from tests.analysis.conftest import small_model


def values(windows: int = 2, length: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(windows, length, 3, 4, generator=generator, dtype=torch.float64)


def test_map_times_values_is_the_output():
    v = values()
    bounds = torch.tensor([0, 4, 11, 22], dtype=torch.int32)
    attention = UniformAttention(4)
    map_BHLL = attention.attention_map(v, v, cu_seqlens=bounds)
    out = torch.einsum("bhij,bjhk->bihk", map_BHLL, v)
    torch.testing.assert_close(out, attention(v, v, v, cu_seqlens=bounds), rtol=0, atol=1e-14)


def test_uniform_attention_returns_the_mean_of_visible_values():
    v = values(1)
    visible = torch.arange(11)[None] < 7
    out = UniformAttention(4)(v, v, v, key_mask_BL=visible)
    torch.testing.assert_close(out[0, 3], v[0, :7].mean(0))


def test_uniform_attention_stays_within_its_segment():
    v = values(1)
    bounds = torch.tensor([0, 4, 11], dtype=torch.int32)
    out = UniformAttention(4)(v, v, v, cu_seqlens=bounds)
    torch.testing.assert_close(out[0, 2], v[0, :4].mean(0))
    torch.testing.assert_close(out[0, 9], v[0, 4:].mean(0))


def test_model_with_uniform_attention_shares_the_weights():
    model = small_model()
    other = with_uniform_attention(model)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


def test_model_with_uniform_attention_leaves_the_model_as_it_was():
    model = small_model()
    tokens = torch.randint(4, 24, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens)
        other = with_uniform_attention(model)(tokens)
        assert torch.equal(model(tokens), before)
    assert not torch.equal(other, before)
