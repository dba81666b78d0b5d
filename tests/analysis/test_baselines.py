"""Attention that reads nothing."""

from __future__ import annotations

import pytest
import torch

from proteinlm.analysis.baselines import IdentityAttention, UniformAttention, with_baseline
from tests.analysis.conftest import small_model

BASELINES = [UniformAttention, IdentityAttention]


def values(windows: int = 2, length: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(windows, length, 3, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("baseline", BASELINES)
def test_map_times_values_is_the_output(baseline):
    v = values()
    bounds = torch.tensor([0, 4, 11, 22], dtype=torch.int32)
    attention = baseline(4)
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


def test_identity_attention_returns_its_own_value():
    v = values()
    assert torch.equal(IdentityAttention(4)(v, v, v), v)


@pytest.mark.parametrize("baseline", BASELINES)
def test_model_with_a_baseline_shares_the_weights(baseline):
    model = small_model()
    other = with_baseline(model, baseline)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


@pytest.mark.parametrize("baseline", BASELINES)
def test_model_with_a_baseline_leaves_the_model_as_it_was(baseline):
    model = small_model()
    tokens = torch.randint(4, 24, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens)
        other = with_baseline(model, baseline)(tokens)
        assert torch.equal(model(tokens), before)
    assert not torch.equal(other, before)
