from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from proteinlm.ops.random_features import (
    causal,
    causal_favor_attention,
    causal_favor_map,
    causal_reference,
    feature_rows,
    projection_rows,
)

HEADS, HEAD_DIM = 3, 5


def rows(num_rows: int = 8, head_dim: int = HEAD_DIM) -> Tensor:
    return projection_rows(num_rows, head_dim, projection="orthogonal", seed=0, layer=0, redraw_index=0)


@pytest.fixture(params=[64, 7], ids=["one chunk", "many chunks"])
def chunk_length(request, monkeypatch):
    """Let a segment be one chunk, or be cut into several."""
    monkeypatch.setattr(causal, "CHUNK_LENGTH", request.param)
    return request.param


@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic"])
@pytest.mark.usefixtures("chunk_length")
def test_value_equals_the_reference(layout, feature_map):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    out = causal_favor_attention(q, k, v, feature_rows(rows(), feature_map), **layout.options)
    expected = causal_reference.causal_favor_attention(q, k, v, rows(), feature_map=feature_map, **layout.options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("feature_map", ["positive", "hyperbolic"])
@pytest.mark.usefixtures("chunk_length")
def test_gradients_equal_the_reference(layout, feature_map):
    q, k, v = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(q.shape, dtype=torch.float64)
    out = causal_favor_attention(q, k, v, feature_rows(rows(), feature_map), **layout.options)
    expected = causal_reference.causal_favor_attention(q, k, v, rows(), feature_map=feature_map, **layout.options)
    for got, wanted in zip(
        torch.autograd.grad(out, (q, k, v), weights), torch.autograd.grad(expected, (q, k, v), weights), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("part", [slice(None), slice(12, -1), slice(0, 0)], ids=["all", "block", "none"])
@pytest.mark.usefixtures("chunk_length")
def test_implied_map_equals_the_reference(layout, part):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    expected = causal_reference.causal_favor_map(q, k, rows(), **layout.options)[:, :, part]
    got = causal_favor_map(q, k, rows(), rows=part, **layout.options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("chunk_length")
def test_queries_before_the_first_visible_key_are_exactly_zero_in_value_and_gradient():
    q, k, v = (torch.randn(1, 29, 2, 4, requires_grad=True) for _ in range(3))
    out = causal_favor_attention(q, k, v, rows(8, 4), key_mask_BL=torch.arange(29)[None] >= 10)
    out[:, :10].sum().backward()
    assert not any(x.any() for x in (out[:, :10], q.grad, k.grad, v.grad))


def test_the_first_token_reads_its_own_value_even_against_its_direction():
    q, v = 8 * torch.randn(1, 1, 8, 64), torch.randn(1, 1, 8, 64)
    torch.testing.assert_close(causal_favor_attention(q, -q, v, rows(256, 64)), v)


def test_gradcheck_in_several_chunks(monkeypatch):
    monkeypatch.setattr(causal, "CHUNK_LENGTH", 3)
    inputs = [torch.randn(1, 7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    key_mask = torch.tensor([[True, False, True, True, True, True, False]])
    assert torch.autograd.gradcheck(
        lambda q, k, v: causal_favor_attention(q, k, v, rows(4, 3), key_mask_BL=key_mask), inputs
    )


@pytest.mark.parametrize(
    "wanted",
    [c for n in (1, 2) for c in itertools.combinations(range(3), n)],
    ids=lambda c: "".join("qkv"[i] for i in c),
)
def test_each_gradient_is_the_same_when_others_are_not_wanted(wanted, monkeypatch):
    monkeypatch.setattr(causal, "CHUNK_LENGTH", 4)
    drawn = [torch.randn(2, 11, 2, 4, dtype=torch.float64) for _ in range(3)]
    every = [x.clone().requires_grad_() for x in drawn]
    some = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(drawn)]
    causal_favor_attention(*every, rows(8, 4)).square().sum().backward()
    causal_favor_attention(*some, rows(8, 4)).square().sum().backward()
    assert all(torch.equal(some[i].grad, every[i].grad) for i in wanted)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("j", [0, 5, 20, 40, 60])
def test_a_later_key_changes_no_earlier_chunk_and_only_rounding_in_its_own(monkeypatch, scale, j):
    monkeypatch.setattr(causal, "CHUNK_LENGTH", 16)
    q, k, v = (torch.randn(1, 61, 2, 8, dtype=torch.float64) for _ in range(3))
    changed = (q, *(x.index_copy(1, torch.tensor([j]), scale * torch.randn(1, 1, 2, 8).double()) for x in (k, v)))
    before = causal_favor_attention(q, k, v, rows(32, 8))
    after = causal_favor_attention(*changed, rows(32, 8))
    start = j // 16 * 16
    assert torch.equal(after[:, :start], before[:, :start])
    torch.testing.assert_close(after[:, :j], before[:, :j], rtol=0, atol=1e-12)
    assert not torch.isclose(after[:, j], before[:, j]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_later_key_far_out_leaves_single_precision_as_it_was(dtype):
    q, k, v = (torch.randn(1, 40, 2, 16).to(dtype) for _ in range(3))
    far = k.index_fill(1, torch.tensor([20]), 200.0)
    before, after = (causal_favor_attention(q, keys, v, rows(32, 16)) for keys in (k, far))
    torch.testing.assert_close(after[:, :20], before[:, :20], rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("num_pads", [0, 8, 96])
def test_pads_change_no_valid_output(num_pads):
    q, k, v = (torch.randn(2, 132, 2, 16, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, 16, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(132 + num_pads) < 132).expand(2, -1)
    got = causal_favor_attention(*padded, rows(64, 16), key_mask_BL=key_mask)[:, :132]
    torch.testing.assert_close(got, causal_favor_attention(q, k, v, rows(64, 16)), rtol=0, atol=1e-10)


def test_neighbours_in_a_window_change_no_output():
    lengths = [1, 300, 41, 7, 24, 23, 1200]
    parts = [[torch.randn(1, n, 2, 16, dtype=torch.float64) for _ in range(3)] for n in lengths]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    together = causal_favor_attention(*packed, rows(512, 16), cu_seqlens=cu_seqlens).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, causal_favor_attention(*part, rows(512, 16)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures("chunk_length")
def test_hidden_keys_and_values_may_hold_anything(value):
    q, k, v = (torch.randn(1, 24, 2, 4, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(24)[None] % 3 > 0
    dirty = (q, *(x.masked_fill(~key_mask[..., None, None], value) for x in (k, v)))
    results = []
    for inputs in ((q, k, v), dirty):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = causal_favor_attention(*leaves, rows(8, 4), key_mask_BL=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_single_precision_gradients_stay_close_to_those_of_float64(spread):
    drawn = [spread * torch.randn(1, 300, 2, 16), spread * torch.randn(1, 300, 2, 16), torch.randn(1, 300, 2, 16)]
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in drawn]
        gradients.append(torch.autograd.grad(causal_favor_attention(*leaves, rows(64, 16)).square().sum(), leaves))
    for got, wanted in zip(*gradients, strict=True):
        # log-features are of the order of spread^2 K^(1/2) / 2 and off by 2^-24 of that a few times over
        assert (got - wanted).norm() <= 100 * spread**2 * 2**-24 * wanted.norm()


@pytest.mark.parametrize("cu_seqlens", [None, torch.arange(0, 8193, 64, dtype=torch.int32)], ids=["long", "packed"])
def test_no_tensor_of_all_positions_features_and_heads_is_alive(cu_seqlens, largest_tensor):
    inputs = [torch.randn(1, 8192, 4, 8, requires_grad=True) for _ in range(3)]
    with largest_tensor() as largest:
        causal_favor_attention(*inputs, rows(256, 8), cu_seqlens=cu_seqlens).sum().backward()
    # one input, or the features of one chunk; all features would take 32 MiB
    assert largest.num_bytes <= 4 * max(inputs[0].numel(), 4 * causal.CHUNK_LENGTH * 256)
