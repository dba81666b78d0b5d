from __future__ import annotations

import functools
import math

import pytest
import torch

from proteinlm.ops import sparse_softmax
from proteinlm.ops.sampled_attention import (
    BlockSampling,
    eager,
    hash_orders,
    hash_planes,
    reference,
    sampled_attention,
    sampled_map,
)
from proteinlm.ops.softmax_attention import softmax_attention

HEADS, HEAD_DIM = 3, 5


def sampling(block_length: int, num_sampled_keys: int, draw: int = 0) -> BlockSampling:
    return BlockSampling(block_length=block_length, num_sampled_keys=num_sampled_keys, seed=0, layer=0, draw=draw)


def attend(q, k, v, sizes, **options):
    """Attend in the order of the hash of draw 0."""
    planes = hash_planes(q.shape[-1], seed=0, layer=0, draw=0)
    return sampled_attention(q, k, v, hash_orders(q, k, planes, **options), sizes, **options)


SIZES = {
    "blocks and sample": sampling(4, 3),
    "blocks only": sampling(8, 0),
    "single tokens": sampling(1, 2),
    "nearly all": sampling(3, 30),
    "one block": sampling(64, 5),
}


@pytest.fixture(params=list(SIZES.values()), ids=list(SIZES))
def sizes(request):
    return request.param


@pytest.fixture(params=[2**18, 60, 1], ids=["large readings", "small readings", "single queries"])
def _readings(request, monkeypatch):
    """Let many blocks share a reading, or rows of one block be cut apart."""
    monkeypatch.setattr(eager, "READING_ELEMENTS", request.param)


@pytest.fixture
def orders(layout):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    return hash_orders(q, k, hash_planes(HEAD_DIM, seed=0, layer=0, draw=0), **layout.options)


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("_readings")
def test_value_and_gradients_equal_the_reference(layout, orders, sizes):
    inputs = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(inputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    results = []
    for attention in (sampled_attention, reference.sampled_attention):
        out = attention(*inputs, orders, sizes, **layout.options)
        results.append([out, *torch.autograd.grad(out, inputs, weights)])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("heads", [slice(None), slice(1, 3)], ids=["all heads", "some heads"])
@pytest.mark.parametrize("part", [slice(None), slice(2, 30), slice(0, 0)], ids=["all", "block", "none"])
def test_map_equals_the_reference(layout, orders, sizes, part, heads):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    expected = reference.sampled_map(q, k, orders, sizes, **layout.options)[:, heads, part]
    got = sampled_map(q, k, orders, sizes, rows=part, heads=heads, **layout.options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "exact", [sampling(64, 0), sampling(4, 37), sampling(1, 36)], ids=["block", "sample", "single"]
)
def test_a_block_or_a_sample_that_holds_all_keys_is_exact_attention(layout, orders, exact):
    inputs = layout.draw(HEADS, HEAD_DIM)
    got = sampled_attention(*inputs, orders, exact, **layout.options)
    torch.testing.assert_close(got, softmax_attention(*inputs, **layout.options), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 127, 128, 129])
def test_lengths_around_a_block_equal_the_reference(length):
    inputs = [torch.randn(1, length, 2, 4, dtype=torch.float64) for _ in range(3)]
    orders = hash_orders(*inputs[:2], hash_planes(4, seed=0, layer=0, draw=0))
    expected = reference.sampled_attention(*inputs, orders, sampling(8, 5))
    torch.testing.assert_close(sampled_attention(*inputs, orders, sampling(8, 5)), expected, rtol=0, atol=1e-12)


@functools.cache
def estimates(num_draws: int = 300) -> dict[str, list[torch.Tensor]]:
    """Return normalisers_DHL and numerators_DLHK of many draws, and what they estimate, as normaliser_HL and so on.

    Several segments, some positions hidden, hash and sample drawn each time. A key of the block weighs 1 and any other
    one more, so the smallest weight beside exp(score) is 1 over the normaliser that was drawn.
    """
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 29, 2, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    seen = torch.rand(1, 29, generator=generator) < 0.8
    options = {"key_mask_BL": seen, "cu_seqlens": torch.tensor([0, 11, 29], dtype=torch.int32)}
    segment = torch.searchsorted(options["cu_seqlens"], torch.arange(29), right=True)
    exact_HLL = (torch.einsum("bihk,bjhk->bhij", q, k)[0] / 2).exp() * ((segment[:, None] == segment) & seen)
    normalisers, numerators = [], []
    for draw in range(num_draws):
        orders = hash_orders(q, k, hash_planes(4, seed=0, layer=0, draw=draw), **options)
        weights_HLL = sampled_map(q, k, orders, sampling(4, 3, draw), **options)[0]
        ratio_HL = torch.where(weights_HLL > 0, weights_HLL / exact_HLL, math.inf).amin(-1)
        normalisers.append(1 / ratio_HL)
        out_LHK = sampled_attention(q, k, v, orders, sampling(4, 3, draw), **options)[0]
        numerators.append(out_LHK / ratio_HL.T[..., None])
    return {
        "normaliser": [torch.stack(normalisers), exact_HLL.sum(-1)],
        "numerator": [torch.stack(numerators), torch.einsum("hij,jhk->ihk", exact_HLL, v[0])],
    }


@pytest.mark.parametrize("part", ["normaliser", "numerator"])
def test_numerator_and_normaliser_are_unbiased(part):
    drawn, expected = estimates()[part]
    error = (drawn.mean(0) - expected).abs()
    assert (error < 4 * drawn.std(0) / math.sqrt(len(drawn))).all()


@pytest.mark.parametrize("num_pads", [0, 1, 8, 96])
def test_pads_change_no_valid_output(num_pads):
    q, k, v = (torch.randn(2, 61, 2, 16, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, 16, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(61 + num_pads) < 61).expand(2, -1)
    got = attend(*padded, sampling(8, 10), key_mask_BL=key_mask)[:, :61]
    torch.testing.assert_close(got, attend(q, k, v, sampling(8, 10)), rtol=0, atol=1e-10)


def test_neighbours_in_a_window_change_no_output():
    lengths = [1, 300, 41, 7]
    parts = [[torch.randn(1, n, 2, 16, dtype=torch.float64) for _ in range(3)] for n in lengths]
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    together = attend(*packed, sampling(8, 10), cu_seqlens=cu_seqlens).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, attend(*part, sampling(8, 10)), rtol=0, atol=1e-10)


def test_queries_without_a_visible_key_are_exactly_zero_in_value_and_gradient():
    inputs = [torch.randn(2, 30, 2, 4, requires_grad=True) for _ in range(3)]
    out = attend(*inputs, sampling(4, 3), key_mask_BL=torch.tensor([[True], [False]]).expand(2, 30))
    assert out[0].all()
    assert not out[1].any()
    out[1].sum().backward()
    assert not any(x.grad.any() for x in inputs)


def test_hidden_keys_and_values_may_hold_anything():
    q, k, v = (torch.randn(1, 12, 2, 4, dtype=torch.float64) for _ in range(3))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty_k, dirty_v = (x.masked_fill(~key_mask[..., None, None], math.nan) for x in (k, v))
    results = []
    for inputs in ((q, k, v), (q, dirty_k, dirty_v)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attend(*leaves, sampling(2, 3), key_mask_BL=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_rounds_the_output_once(dtype):
    q, k, v = (torch.randn(1, 200, 2, 16).to(dtype) for _ in range(3))
    orders = hash_orders(q, k, hash_planes(16, seed=0, layer=0, draw=0))
    expected = sampled_attention(q.double(), k.double(), v.double(), orders, sampling(8, 20))
    error = (sampled_attention(q, k, v, orders, sampling(8, 20)).double() - expected).abs()
    # a score sums K products in float32 and a logarithm below 6; a weight has one in numerator and normaliser
    scores = torch.einsum("bihk,bjhk->bhij", q.abs().double(), k.abs().double()).max() / 4 + 6
    in_logarithm = 2 * (16 + 3) * 2**-24 * scores
    tolerance = 2 * in_logarithm * v.double().abs().max() + torch.finfo(dtype).eps / 2 * expected.abs()
    assert (error <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_finite_and_of_the_input_dtype(dtype):
    q, k, v = ((8 * torch.randn(1, 300, 2, 16)).to(dtype).requires_grad_() for _ in range(3))
    attend(q, k, v, sampling(8, 20)).float().square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in (q, k, v))


def test_no_tensor_of_queries_times_keys_is_alive(largest_tensor):
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(3)]
    with largest_tensor() as largest:
        attend(*inputs, sampling(16, 64)).sum().backward()
    # all pairs would take 256 MiB, all pairs that are seen 5 MiB
    assert largest.num_bytes <= max(4 * sparse_softmax.READING_ELEMENTS, 4 * inputs[0].numel())


def test_what_is_kept_for_backward_are_inputs_and_orders():
    inputs = [torch.randn(1, 512, 2, 8, requires_grad=True) for _ in range(3)]
    orders = hash_orders(*inputs[:2], hash_planes(8, seed=0, layer=0, draw=0))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        sampled_attention(*inputs, orders, sampling(16, 64))
    assert sum(x.numel() for x in kept) == 3 * inputs[0].numel()


def clustered(seed: int, *, length: int = 512, num_clusters: int = 16, head_dim: int = 16) -> list[torch.Tensor]:
    """Return queries and keys around common centres, clusters of unequal sizes, and values."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_clusters, head_dim, generator=generator, dtype=torch.float64)
    shares = torch.rand(num_clusters, generator=generator)
    drawn = []
    for spread, scale in ((0.3, 2.0), (0.3, 1.0)):
        owner = shares.multinomial(length, replacement=True, generator=generator)
        noise = torch.randn(length, head_dim, generator=generator, dtype=torch.float64)
        drawn.append(((centres[owner] + spread * noise) * scale)[None, :, None])
    v = torch.randn(1, length, 1, head_dim, generator=generator, dtype=torch.float64)
    return [*drawn, v]


def hyper_attention(q, k, v, orders, block_length: int, num_sampled_keys: int, generator: torch.Generator):
    """The published scheme: sorted blocks and one sample of all keys, n / s each, which counts a block's keys again."""
    length = q.shape[1]
    order_q, order_k = orders[:, 0].long()
    scores = q[0, :, 0] @ k[0, :, 0].T / math.sqrt(q.shape[-1])
    weights = torch.zeros(length, length, dtype=torch.float64)
    blocks = torch.arange(length) // block_length
    weights[order_q[:, None], order_k] = (blocks[:, None] == blocks).double()
    drawn = torch.randint(length, (num_sampled_keys,), generator=generator)
    weights.index_add_(1, drawn, torch.full((length, num_sampled_keys), length / num_sampled_keys, dtype=torch.float64))
    weights = (scores - scores.max()).exp() * weights
    return weights @ v[0, :, 0] / weights.sum(-1, keepdim=True)


def test_the_error_is_below_that_of_hyper_attention_at_equal_keys_visited():
    errors = []
    for seed in range(20):
        q, k, v = clustered(seed)
        exact = softmax_attention(q, k, v)[0, :, 0]
        orders = hash_orders(q, k, hash_planes(16, seed=seed, layer=0, draw=0))
        got = sampled_attention(q, k, v, orders, sampling(32, 64, draw=seed))[0, :, 0]
        theirs = hyper_attention(q, k, v, orders, 32, 64, torch.Generator().manual_seed(seed))
        errors.append([float((x - exact).square().mean()) for x in (got, theirs)])
    mine, theirs = torch.tensor(errors).T
    difference = theirs - mine
    # a paired difference, four standard errors from 0
    assert difference.mean() > 4 * difference.std() / math.sqrt(len(difference))
