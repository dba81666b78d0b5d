from __future__ import annotations

import pytest
import torch

from proteinlm.ops.lsh_attention import Chunking, hash_buckets, lsh_map, lsh_sparse_map, reference, rotations

HEADS, HEAD_DIM = 3, 5


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("part", [slice(None), slice(2, 30), slice(0, 0)], ids=["all", "block", "none"])
def test_maps_equal_the_reference(layout, part, is_causal):
    q, _, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    buckets = hash_buckets(q, rotations(3, HEAD_DIM, seed=1, layer=0, draw=0), 4, **layout.options)
    expected = reference.lsh_map(q, buckets, Chunking(4, 1, 0), is_causal=is_causal, **layout.options)[:, :, part]
    got = lsh_map(q, buckets, Chunking(4, 1, 0), rows=part, is_causal=is_causal, **layout.options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", [slice(None), slice(20, 31), slice(0, 0)], ids=["all", "block", "none"])
def test_a_sparse_map_is_the_map_and_keeps_pairs_with_a_weight_only(part):
    q = torch.randn(2, 61, HEADS, HEAD_DIM, dtype=torch.float64)
    buckets = hash_buckets(q, rotations(2, HEAD_DIM, seed=1, layer=0, draw=0), 4)
    dense = lsh_map(q, buckets, Chunking(4), rows=part)[1, 2]
    sparse = lsh_sparse_map(q[1:, :, 2:], buckets[1:, :, 2:], Chunking(4), rows=part)
    assert len(sparse.weights_P) == (dense > 0).sum() <= len(dense) * 2 * 12
    torch.testing.assert_close(sparse.to_dense(), dense, rtol=0, atol=1e-12)


def test_rows_of_visible_positions_sum_to_one():
    q = torch.randn(2, 61, HEADS, HEAD_DIM)
    visible = torch.rand(2, 61) > 0.4
    buckets = hash_buckets(q, rotations(2, HEAD_DIM, seed=1, layer=0, draw=0), 4, key_mask_BL=visible)
    sums_BHL = lsh_map(q, buckets, Chunking(4), key_mask_BL=visible).sum(-1)
    torch.testing.assert_close(sums_BHL, visible[:, None].expand_as(sums_BHL).float(), rtol=0, atol=1e-5)
