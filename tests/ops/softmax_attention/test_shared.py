"""Exact attention whose keys are its queries."""

from __future__ import annotations

import pytest
import torch

from proteinlm.ops.lsh_attention.reference import shared_query_key_map as reference_map
from proteinlm.ops.softmax_attention import reference, shared, shared_query_key_attention, shared_query_key_map

HEADS, HEAD_DIM = 3, 5


@pytest.fixture(params=[False, True], ids=["bidirectional", "causal"])
def is_causal(request):
    return request.param


def expected_map(layout, q, is_causal):
    pairs_B1LL = reference.visible_pairs(q, **layout.options)
    return reference_map(q, pairs_B1LL.expand(-1, q.shape[2], -1, -1), is_causal=is_causal)


@pytest.mark.parametrize("elements", [2**18, 60], ids=["large readings", "small readings"])
def test_values_and_gradients_equal_the_reference(layout, is_causal, elements, monkeypatch):
    monkeypatch.setattr(shared, "READING_ELEMENTS", elements)
    monkeypatch.setattr(shared, "LEAST_TILE", 4)
    q, _, v = layout.draw(HEADS, HEAD_DIM)
    got = shared_query_key_attention(q, v, is_causal=is_causal, **layout.options)
    expected = torch.einsum("bhij,bjhk->bihk", expected_map(layout, q, is_causal), v)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weights = torch.randn(q.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(out, (q, v), weights) for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("part", [slice(None), slice(2, 30), slice(0, 0)], ids=["all", "block", "none"])
def test_map_equals_the_reference(layout, is_causal, part):
    q, _, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    got = shared_query_key_map(q, is_causal=is_causal, rows=part, **layout.options)
    torch.testing.assert_close(got, expected_map(layout, q, is_causal)[:, :, part], rtol=0, atol=1e-12)


def test_a_position_sees_itself_only_in_the_last_resort(is_causal):
    map_HLL = shared_query_key_map(torch.randn(1, 9, 2, 4), is_causal=is_causal)[0]
    expected = torch.zeros(9)
    expected[0] = 1.0 * is_causal
    assert torch.equal(map_HLL.diagonal(dim1=1, dim2=2), expected.expand(2, -1))


def test_a_query_of_zeros_has_finite_gradients(is_causal):
    q, v = (torch.randn(1, 9, 2, 4) for _ in range(2))
    q[:, 3] = 0
    inputs = [x.requires_grad_() for x in (q, v)]
    shared_query_key_attention(*inputs, is_causal=is_causal).square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_finite_and_of_the_input_dtype(dtype, is_causal):
    inputs = [(300 * torch.randn(1, 300, 2, 16)).to(dtype).requires_grad_() for _ in range(2)]
    out = shared_query_key_attention(*inputs, is_causal=is_causal)
    (out.float() / 300).square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in inputs)


def test_no_tensor_of_queries_times_keys_is_alive(largest_tensor):
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(2)]
    with largest_tensor() as largest:
        shared_query_key_attention(*inputs).sum().backward()
    # all pairs would take 256 MiB; a tile has LEAST_TILE queries at least
    assert largest.num_bytes <= 4 * max(shared.LEAST_TILE * 4 * 4096, inputs[0].numel())
