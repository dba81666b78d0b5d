from __future__ import annotations

import math

import pytest
import torch

from proteinlm.ops import sparse_softmax
from proteinlm.ops.softmax_attention import softmax_attention
from proteinlm.ops.window_attention import eager, reference, window_attention, window_map

HEADS, HEAD_DIM = 3, 5
WINDOWS = [0, 1, 4, 13, 100]


@pytest.fixture(params=[2**19, 1], ids=["one tile", "many tiles"])
def _tiles(request, monkeypatch):
    """Let a segment be one tile, or be cut into several."""
    monkeypatch.setattr(eager, "READING_ELEMENTS", request.param)
    monkeypatch.setattr(eager, "LEAST_TILE", 7)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.usefixtures("_tiles")
def test_value_equals_the_reference(layout, window):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    expected = reference.window_attention(q, k, v, window, **layout.options)
    torch.testing.assert_close(window_attention(q, k, v, window, **layout.options), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.usefixtures("_tiles")
def test_gradients_equal_the_reference(layout, window):
    inputs = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    got = torch.autograd.grad(window_attention(*inputs, window, **layout.options), inputs, weights)
    wanted = torch.autograd.grad(reference.window_attention(*inputs, window, **layout.options), inputs, weights)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("part", [slice(None), slice(2, 30), slice(0, 0)], ids=["all", "block", "none"])
@pytest.mark.usefixtures("_tiles")
def test_map_equals_the_reference(layout, part):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    expected = reference.window_map(q, k, 4, **layout.options)[:, :, part]
    torch.testing.assert_close(window_map(q, k, 4, rows=part, **layout.options), expected, rtol=0, atol=1e-12)


def test_a_window_that_covers_the_segment_is_exact_attention(layout):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    got = window_attention(q, k, v, layout.length, **layout.options)
    torch.testing.assert_close(got, softmax_attention(q, k, v, **layout.options), rtol=0, atol=1e-12)


def test_queries_without_a_visible_key_nearby_are_exactly_zero_in_value_and_gradient():
    inputs = [torch.randn(1, 30, 2, 4, requires_grad=True) for _ in range(3)]
    key_mask = (torch.arange(30) < 4)[None]
    out = window_attention(*inputs, 3, key_mask_BL=key_mask)
    assert out[:, :7].all()
    assert not out[:, 7:].any()
    out[:, 7:].sum().backward()
    assert not any(x.grad.any() for x in inputs)


@pytest.mark.parametrize("num_pads", [0, 8, 96])
def test_pads_change_no_valid_output(num_pads):
    q, k, v = (torch.randn(2, 32, 2, 16, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, 16, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(32 + num_pads) < 32).expand(2, -1)
    got = window_attention(*padded, 5, key_mask_BL=key_mask)[:, :32]
    torch.testing.assert_close(got, window_attention(q, k, v, 5), rtol=0, atol=1e-10)


def test_neighbours_in_a_window_change_no_output():
    lengths = [1, 300, 41, 7]
    parts = [[torch.randn(1, n, 2, 16, dtype=torch.float64) for _ in range(3)] for n in lengths]
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    together = window_attention(*packed, 20, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int()).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, window_attention(*part, 20), rtol=0, atol=1e-10)


def test_hidden_keys_and_values_may_hold_anything():
    q, k, v = (torch.randn(1, 12, 2, 4, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty_k, dirty_v = (x.masked_fill(~key_mask[..., None, None], math.nan) for x in (k, v))
    results = []
    for inputs in ((q, k, v), (q, dirty_k, dirty_v)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = window_attention(*leaves, 2, key_mask_BL=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_rounds_the_output_once(dtype):
    q, k, v = (torch.randn(1, 200, 2, 16).to(dtype) for _ in range(3))
    expected = reference.window_attention(q, k, v, 11)
    error = (window_attention(q, k, v, 11).double() - expected).abs()
    # a score sums K products in float32, a weight has one in numerator and normaliser
    in_logarithm = 2 * (16 + 2) * 2**-24 * torch.einsum("bihk,bjhk->bhij", q.abs().double(), k.abs().double()).max() / 4
    tolerance = 2 * in_logarithm * v.double().abs().max() + torch.finfo(dtype).eps / 2 * expected.abs()
    assert (error <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_finite_and_of_the_input_dtype(dtype):
    q, k, v = ((8 * torch.randn(1, 300, 2, 16)).to(dtype).requires_grad_() for _ in range(3))
    window_attention(q, k, v, 40).float().square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in (q, k, v))


def test_autocast_changes_nothing():
    inputs = [torch.randn(2, 33, 2, 16, requires_grad=True) for _ in range(3)]
    plain = window_attention(*inputs, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = window_attention(*inputs, 4)
        gradients = torch.autograd.grad(under.square().sum(), inputs)
    assert torch.equal(plain, under)
    assert all(map(torch.equal, gradients, torch.autograd.grad(plain.square().sum(), inputs)))


def test_queries_may_have_another_dtype_than_values():
    q, k = (torch.randn(1, 6, 2, 4, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 6, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    out = window_attention(q, k, v, 2)
    out.sum().backward()
    assert (out.dtype, q.grad.dtype, v.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_inputs_are_left_as_they_were():
    q, k, v = (torch.randn(1, 6, 1, 4, requires_grad=True) for _ in range(3))
    before = [x.detach().clone() for x in (q, k, v)]
    window_attention(q, k, v, 2).sum().backward()
    assert all(map(torch.equal, before, (q, k, v)))


def test_a_second_derivative_is_refused():
    q, k, v = (torch.randn(1, 6, 1, 4, requires_grad=True) for _ in range(3))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(window_attention(q, k, v, 2).sum(), q, create_graph=True)


def test_no_tensor_of_queries_times_keys_is_alive(largest_tensor):
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(3)]
    with largest_tensor() as largest:
        window_attention(*inputs, 64).sum().backward()
    # all pairs would take 256 MiB, all pairs of the band 8 MiB
    assert largest.num_bytes <= max(4 * sparse_softmax.READING_ELEMENTS, 4 * inputs[0].numel())
