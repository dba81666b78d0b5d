from __future__ import annotations

import math

import pytest
import torch

from proteinlm.ops import sparse_softmax
from proteinlm.ops.block_sparse_attention import BlockPattern, bigbird_attention, bigbird_map, eager, reference
from proteinlm.ops.softmax_attention import softmax_attention
from proteinlm.ops.window_attention import reference as window_reference

HEADS, HEAD_DIM = 3, 5


def pattern(block_length: int, near: int, num_global: int, drawn: int) -> BlockPattern:
    return BlockPattern(
        block_length=block_length,
        num_window_blocks=near,
        num_global_tokens=num_global,
        num_random_blocks=drawn,
        seed=0,
        layer=0,
    )


PATTERNS = {
    "small blocks": pattern(3, 1, 1, 2),
    "single tokens": pattern(1, 2, 0, 1),
    "many global tokens": pattern(4, 0, 10, 1),
    "random only": pattern(5, 0, 0, 2),
    "one block": pattern(64, 1, 1, 3),
}


@pytest.fixture(params=list(PATTERNS.values()), ids=list(PATTERNS))
def sparse(request):
    return request.param


@pytest.fixture(params=[2**19, 60], ids=["large readings", "small readings"])
def _readings(request, monkeypatch):
    """Let many blocks share a reading, or rows of one block be cut apart."""
    monkeypatch.setattr(eager, "READING_ELEMENTS", request.param)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("_readings")
def test_value_equals_the_reference(layout, sparse):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    expected = reference.bigbird_attention(q, k, v, sparse, **layout.options)
    torch.testing.assert_close(bigbird_attention(q, k, v, sparse, **layout.options), expected, rtol=0, atol=1e-12)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("_readings")
def test_gradients_equal_the_reference(layout, sparse):
    inputs = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(inputs[0].shape, dtype=torch.float64)
    got = torch.autograd.grad(bigbird_attention(*inputs, sparse, **layout.options), inputs, weights)
    wanted = torch.autograd.grad(reference.bigbird_attention(*inputs, sparse, **layout.options), inputs, weights)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("part", [slice(None), slice(2, 30), slice(0, 0)], ids=["all", "block", "none"])
def test_map_equals_the_reference(layout, sparse, part):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    expected = reference.bigbird_map(q, k, sparse, **layout.options)[:, :, part]
    torch.testing.assert_close(bigbird_map(q, k, sparse, rows=part, **layout.options), expected, rtol=0, atol=1e-12)


def test_blocks_of_one_token_without_extras_are_a_sliding_window(layout):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    expected = window_reference.window_attention(q, k, v, 4, **layout.options)
    got = bigbird_attention(q, k, v, pattern(1, 4, 0, 0), **layout.options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_block_that_covers_the_segment_is_exact_attention(layout):
    # global and random keys are in the block as well, and count once
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    got = bigbird_attention(q, k, v, pattern(64, 1, 3, 3), **layout.options)
    torch.testing.assert_close(got, softmax_attention(q, k, v, **layout.options), rtol=0, atol=1e-12)


def test_the_first_tokens_see_all_and_are_seen_by_all():
    q, k = (torch.randn(1, 40, 1, 4) for _ in range(2))
    map_LL = bigbird_map(q, k, pattern(4, 0, 2, 0))[0, 0]
    assert (map_LL[:2] > 0).all()
    assert (map_LL[:, :2] > 0).all()
    assert not map_LL[8:12, 12:].any()


@pytest.mark.parametrize("num_pads", [0, 1, 8, 96])
def test_pads_change_no_valid_output(num_pads):
    q, k, v = (torch.randn(2, 61, 2, 16, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, 16, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(61 + num_pads) < 61).expand(2, -1)
    sparse = pattern(4, 1, 1, 2)
    got = bigbird_attention(*padded, sparse, key_mask_BL=key_mask)[:, :61]
    torch.testing.assert_close(got, bigbird_attention(q, k, v, sparse), rtol=0, atol=1e-10)


def test_neighbours_in_a_window_change_no_output():
    lengths = [1, 300, 41, 7]
    parts = [[torch.randn(1, n, 2, 16, dtype=torch.float64) for _ in range(3)] for n in lengths]
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    sparse = pattern(8, 1, 1, 2)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    together = bigbird_attention(*packed, sparse, cu_seqlens=cu_seqlens).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, bigbird_attention(*part, sparse), rtol=0, atol=1e-10)


def test_queries_without_a_visible_key_are_exactly_zero_in_value_and_gradient():
    inputs = [torch.randn(1, 30, 2, 4, requires_grad=True) for _ in range(3)]
    out = bigbird_attention(*inputs, pattern(4, 0, 0, 1), key_mask_BL=(torch.arange(30) < 4)[None])
    assert out[:, :4].all()
    assert not out[:, 4:].any()
    out[:, 4:].sum().backward()
    assert not any(x.grad.any() for x in inputs)


def test_hidden_keys_and_values_may_hold_anything():
    q, k, v = (torch.randn(1, 12, 2, 4, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty_k, dirty_v = (x.masked_fill(~key_mask[..., None, None], math.nan) for x in (k, v))
    results = []
    for inputs in ((q, k, v), (q, dirty_k, dirty_v)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = bigbird_attention(*leaves, pattern(2, 1, 1, 1), key_mask_BL=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_rounds_the_output_once(dtype):
    q, k, v = (torch.randn(1, 200, 2, 16).to(dtype) for _ in range(3))
    sparse = pattern(8, 1, 1, 2)
    expected = bigbird_attention(q.double(), k.double(), v.double(), sparse)
    error = (bigbird_attention(q, k, v, sparse).double() - expected).abs()
    # a score sums K products in float32, a weight has one in numerator and normaliser
    in_logarithm = 2 * (16 + 2) * 2**-24 * torch.einsum("bihk,bjhk->bhij", q.abs().double(), k.abs().double()).max() / 4
    tolerance = 2 * in_logarithm * v.double().abs().max() + torch.finfo(dtype).eps / 2 * expected.abs()
    assert (error <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_finite_and_of_the_input_dtype(dtype):
    q, k, v = ((8 * torch.randn(1, 300, 2, 16)).to(dtype).requires_grad_() for _ in range(3))
    bigbird_attention(q, k, v, pattern(8, 1, 1, 2)).float().square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in (q, k, v))


def test_no_tensor_of_queries_times_keys_is_alive(largest_tensor):
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(3)]
    with largest_tensor() as largest:
        bigbird_attention(*inputs, pattern(16, 1, 1, 3)).sum().backward()
    # all pairs would take 256 MiB, all pairs that are seen 7 MiB
    assert largest.num_bytes <= max(4 * sparse_softmax.READING_ELEMENTS, 4 * inputs[0].numel())
