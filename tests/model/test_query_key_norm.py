"""Query-key normalisation."""

from __future__ import annotations

import torch

from proteinlm.model.query_key_norm import QueryKeyNorm


def test_logit_is_temperature_times_cosine():
    norm = QueryKeyNorm(num_heads=2, head_dim=8, max_temperature=3.0).double()
    with torch.no_grad():
        norm.logit_H.copy_(torch.tensor([-1.0, 2.0]))
    q, k = torch.randn(2, 1, 5, 2, 8, dtype=torch.float64)
    scaled_q, scaled_k = norm(q, k)
    logits = (scaled_q * scaled_k).sum(-1) / 8**0.5
    cosine = torch.nn.functional.cosine_similarity(q, k, dim=-1)
    assert torch.allclose(logits, cosine * norm.temperature_H(), atol=1e-12)


def test_logit_of_shared_queries_and_keys_is_temperature_times_cosine():
    norm = QueryKeyNorm(num_heads=2, head_dim=8, max_temperature=3.0).double()
    q, k = torch.randn(2, 1, 5, 2, 8, dtype=torch.float64)
    # the mechanism brings keys to length 1
    logits = (norm(q, None)[0] * torch.nn.functional.normalize(norm(k, None)[1], dim=-1)).sum(-1) / 8**0.5
    cosine = torch.nn.functional.cosine_similarity(q, k, dim=-1)
    assert torch.allclose(logits, cosine * norm.temperature_H(), atol=1e-12)


def test_no_logit_passes_the_bound():
    norm = QueryKeyNorm(num_heads=1, head_dim=4, max_temperature=2.0)
    with torch.no_grad():
        norm.logit_H.fill_(100.0)
    q = torch.randn(1, 50, 1, 4) * 1000
    scaled_q, scaled_k = norm(q, q)
    assert (scaled_q * scaled_k).sum(-1).max() / 2 <= 2.0 + 1e-5


def test_float16_inputs_above_the_square_root_of_their_range_stay_finite():
    norm = QueryKeyNorm(num_heads=1, head_dim=64, max_temperature=2.0).half()
    q = torch.full((1, 1, 1, 64), 300.0, dtype=torch.float16)
    assert norm(q, q)[0].isfinite().all()
