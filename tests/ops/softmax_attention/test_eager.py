from __future__ import annotations

import math

import pytest
import torch

from proteinlm.ops.softmax_attention import reference, softmax_attention, softmax_map

HEADS, HEAD_DIM = 3, 5


@pytest.fixture(params=[False, True], ids=["bidirectional", "causal"])
def is_causal(request):
    return request.param


def test_value_equals_the_reference(layout, is_causal):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    expected = reference.softmax_attention(q, k, v, is_causal=is_causal, **layout.options)
    got = softmax_attention(q, k, v, is_causal=is_causal, **layout.options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_gradients_equal_the_reference(layout, is_causal):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(q.shape, dtype=torch.float64)
    out = softmax_attention(q, k, v, is_causal=is_causal, **layout.options)
    expected = reference.softmax_attention(q, k, v, is_causal=is_causal, **layout.options)
    for got, wanted in zip(
        torch.autograd.grad(out, (q, k, v), weights), torch.autograd.grad(expected, (q, k, v), weights), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("part", [slice(None), slice(2, 30), slice(0, 0)], ids=["all", "block", "none"])
def test_map_equals_the_reference(layout, part, is_causal):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    expected = reference.softmax_map(q, k, is_causal=is_causal, **layout.options)[:, :, part]
    got = softmax_map(q, k, is_causal=is_causal, rows=part, **layout.options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_map_times_values_is_the_output(layout, is_causal):
    q, k, v = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    product = torch.einsum("bhrl,blhk->brhk", softmax_map(q, k, is_causal=is_causal, **layout.options), v)
    got = softmax_attention(q, k, v, is_causal=is_causal, **layout.options)
    torch.testing.assert_close(got, product, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_queries_before_the_first_visible_key_are_exactly_zero_in_value_and_gradient(dtype):
    q, k, v = (torch.randn(1, 300, 2, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    out = softmax_attention(q, k, v, is_causal=True, key_mask_BL=torch.arange(300)[None] >= 100)
    out[:, :100].sum().backward()
    assert not any(x.any() for x in (out[:, :100], q.grad, k.grad, v.grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_causal_half_precision_with_holes_stays_close(dtype):
    q, k, v = (torch.randn(1, 150, 2, 8).to(dtype) for _ in range(3))
    options = {"is_causal": True, "key_mask_BL": torch.rand(1, 150) > 0.3}
    expected = reference.softmax_attention(q, k, v, **options)
    error = (softmax_attention(q, k, v, **options).double() - expected).abs().max()
    assert error <= 2 * torch.finfo(dtype).eps * v.double().abs().max()


def test_causal_attention_with_holes_has_no_mask_of_all_pairs(largest_tensor):
    inputs = [torch.randn(1, 8192, 1, 8, requires_grad=True) for _ in range(3)]
    key_mask = torch.arange(8192)[None] % 7 > 0
    with largest_tensor() as largest:
        softmax_attention(*inputs, is_causal=True, key_mask_BL=key_mask).sum().backward()
    # one input with a coordinate more; a mask of bools would take 64 MiB
    assert largest.num_bytes <= 4 * 8192 * 9


def test_a_row_without_visible_key_is_exactly_zero_in_value_and_gradient(is_causal):
    q, k, v = (torch.randn(2, 4, 2, 4, requires_grad=True) for _ in range(3))
    key_mask = torch.tensor([[False] * 4, [True] * 4])
    out = softmax_attention(q, k, v, is_causal=is_causal, key_mask_BL=key_mask)
    out[0].sum().backward()
    assert not any(x.any() for x in (out[0], q.grad, k.grad, v.grad))


def test_nothing_visible_at_all_still_has_gradients():
    q, k, v = (torch.randn(2, 3, 2, 4, requires_grad=True) for _ in range(3))
    softmax_attention(q, k, v, key_mask_BL=torch.zeros(2, 3, dtype=torch.bool)).sum().backward()
    assert not v.grad.any()


@pytest.mark.parametrize("num_pads", [0, 8, 96])
def test_pads_change_no_valid_output(num_pads):
    q, k, v = (torch.randn(2, 32, 2, 16, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, 16, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(32 + num_pads) < 32).expand(2, -1)
    got = softmax_attention(*padded, key_mask_BL=key_mask)[:, :32]
    torch.testing.assert_close(got, softmax_attention(q, k, v), rtol=0, atol=1e-10)


def test_neighbours_in_a_window_change_no_output():
    lengths = [1, 300, 41, 7]
    parts = [[torch.randn(1, n, 2, 16, dtype=torch.float64) for _ in range(3)] for n in lengths]
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    together = softmax_attention(*packed, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int()).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, softmax_attention(*part), rtol=0, atol=1e-10)


def test_hidden_keys_and_values_may_hold_anything(is_causal):
    q, k, v = (torch.randn(1, 12, 2, 4, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty_k, dirty_v = (x.masked_fill(~key_mask[..., None, None], math.nan) for x in (k, v))
    options = {"key_mask_BL": key_mask, "is_causal": is_causal}
    clean = softmax_attention(q, k, v, **options)
    assert torch.equal(softmax_attention(q, dirty_k, dirty_v, **options), clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_the_dtype_and_stays_close(dtype):
    q, k, v = (torch.randn(1, 50, 2, 8).to(dtype) for _ in range(3))
    out = softmax_attention(q, k, v)
    assert out.dtype == dtype
    expected = reference.softmax_attention(q, k, v)
    # weights are rounded to the dtype once before they multiply the values, and so is the output
    assert (out.double() - expected).abs().max() <= 2 * torch.finfo(dtype).eps * v.double().abs().max()


def test_queries_may_have_another_dtype_than_values():
    q, k = (torch.randn(1, 6, 2, 4) for _ in range(2))
    assert softmax_attention(q, k, torch.randn(1, 6, 2, 4).bfloat16()).dtype == torch.bfloat16
